//! Places for image files, and other people's tools that make, read, write and check them.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::tools;

/// [`image_dir_in`] the directory that cargo gives to the calling test.
#[macro_export]
macro_rules! image_dir {
    () => {
        $crate::images::image_dir_in(env!("CARGO_TARGET_TMPDIR"))
    };
}

/// A directory for image files, removed with the value. `parent` is on the file system of the
/// build, a real disk as a rule, where O_DIRECT works; the system's temporary directory may be in
/// memory.
pub fn image_dir_in(parent: &str) -> TempDir {
    fs::create_dir_all(parent).expect("create the directory for test images");
    tempfile::tempdir_in(parent).expect("create a directory for test images")
}

/// An image of `bytes` bytes, all zero and sparse, called `name` in `dir`.
pub fn sparse_image(dir: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = dir.join(name);
    fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("create an image");
    path
}

/// A raw image made by `qemu-img create`, of `bytes` rounded up to sectors.
pub fn qemu_img_create(dir: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = dir.join(name);
    let size = bytes.to_string();
    tools::run("qemu-img", ["create", "-q", "-f", "raw", tools::text(&path), &size]);
    path
}

/// Runs `qemu-io` commands on a raw image. All must succeed, `read -P` by finding its pattern.
#[track_caller]
pub fn qemu_io(image: &Path, commands: &[&str]) {
    let mut args = vec!["-f", "raw"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(tools::text(image));
    let said = tools::run("qemu-io", args);
    assert!(!said.contains("failed"), "qemu-io {commands:?} on {}: {said}", image.display());
}

/// `qemu-img compare`: the same content for a guest; and the same length.
#[track_caller]
pub fn assert_same_content(a: &Path, b: &Path) {
    let len = |path: &Path| fs::metadata(path).expect("an image").len();
    assert_eq!(len(a), len(b), "the lengths of {} and {}", a.display(), b.display());
    let (a, b) = (tools::text(a), tools::text(b));
    tools::run("qemu-img", ["compare", "-f", "raw", "-F", "raw", a, b]);
}

/// An ext4 file system in an image, filled with what is in `content`.
pub fn mkfs_ext4(dir: &Path, name: &str, bytes: u64, content: &Path) -> PathBuf {
    let path = sparse_image(dir, name, bytes);
    tools::run("mkfs.ext4", ["-q", "-F", "-d", tools::text(content), tools::text(&path)]);
    path
}

/// `e2fsck -fn`: the file system in the image is without fault.
#[track_caller]
pub fn assert_clean_ext4(image: &Path) {
    tools::run("e2fsck", ["-fn", tools::text(image)]);
}

/// The content of a file in an ext4 image.
#[track_caller]
pub fn ext4_cat(image: &Path, file: &str) -> Vec<u8> {
    let output = tools::output("debugfs", ["-R", &format!("cat {file}"), tools::text(image)]);
    assert!(output.status.success(), "debugfs: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
