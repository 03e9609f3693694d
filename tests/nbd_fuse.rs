//! A file system on an NBD export: the export as a file by nbdfuse, that as a loop device, and ext4 on
//! it. Needs root, for the mounts.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use coblk_tests::loop_device::LoopDevice;
use coblk_tests::nbd::{SIZE, Served};
use coblk_tests::random::Random;
use coblk_tests::tools;

/// Something mounted, until the value is dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Path, at: &Path, options: &str) -> Mount {
        fs::create_dir_all(at).unwrap();
        tools::run("mount", ["-o", options, tools::text(device), tools::text(at)]);
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let output = tools::output("umount", [&self.0]);
        if !output.status.success() {
            eprintln!("umount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// An export as a file.
struct Fuse {
    file: PathBuf,
    mount: Option<Mount>,
    child: Child,
}

impl Fuse {
    fn new(uri: &str, dir: &Path) -> Fuse {
        fs::create_dir_all(dir).unwrap();
        let (file, ready) = (dir.join("disk.img"), dir.with_extension("pid"));
        let args = ["-P", tools::text(&ready), tools::text(&file), uri];
        let mut child = tools::command("nbdfuse").args(args).spawn().expect(
            "this test needs nbdfuse: apt-get install libnbd-bin", //
        );
        for _ in 0..600 {
            if fs::metadata(&ready).is_ok_and(|pid| pid.len() > 0) {
                break;
            }
            assert_eq!(child.try_wait().unwrap(), None, "nbdfuse needs root, and /dev/fuse");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mount = Some(Mount(dir.to_owned()));
        Fuse { file, mount, child }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // It ends when it is not mounted any more.
        drop(self.mount.take());
        let ended = self.child.wait();
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Files of many lengths, in directories.
fn write_tree(root: &Path, random: &mut Random) -> Vec<(PathBuf, Vec<u8>)> {
    let files = (0..120).map(|number| {
        let dir = root.join(format!("dir{}", number % 7));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("file{number}"));
        let bytes: Vec<u8> = (0..random.below(200_000)).map(|_| random.below(256) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        (path, bytes)
    });
    let mut files: Vec<_> = files.collect();
    // Some are overwritten, and some removed.
    for number in (0..files.len()).step_by(5).rev() {
        fs::remove_file(&files[number].0).unwrap();
        files.remove(number);
    }
    for (path, bytes) in files.iter_mut().step_by(3) {
        bytes.reverse();
        fs::write(&path, &bytes).unwrap();
    }
    files
}

#[test]
fn a_file_system_lives_on_an_export() {
    let served = Served::new(env!("CARGO_TARGET_TMPDIR"));
    let root = served.dir.path().join("root");
    let fuse = Fuse::new(&served.uri("disk"), &served.dir.path().join("fuse"));
    assert_eq!(fs::metadata(&fuse.file).unwrap().len(), SIZE);
    tools::run("mkfs.ext4", ["-q", "-F", tools::text(&fuse.file)]);

    let device = LoopDevice::new(&fuse.file, 512);
    let mount = Mount::new(device.path(), &root, "discard");
    let files = write_tree(&root, &mut Random::new(1));
    assert!(files.iter().map(|file| file.1.len()).sum::<usize>() > 4 << 20, "too little to matter");
    drop(mount);
    let mount = Mount::new(device.path(), &root, "ro");
    for (path, bytes) in &files {
        assert!(fs::read(path).unwrap() == *bytes, "{path:?} has other bytes");
    }
    drop((mount, device));
    tools::run("e2fsck", ["-f", "-n", tools::text(&fuse.file)]);
    drop(fuse);

    // The image itself, past the server.
    let image = served.dir.path().join("disk.img");
    tools::run("e2fsck", ["-f", "-n", tools::text(&image)]);
    let device = LoopDevice::new(&image, 512);
    let _mount = Mount::new(device.path(), &root, "ro");
    for (path, bytes) in &files {
        assert!(fs::read(path).unwrap() == *bytes, "{path:?} has other bytes in the image");
    }
}
