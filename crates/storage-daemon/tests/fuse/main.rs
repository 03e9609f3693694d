//! Nodes as files of this machine: the requests that programs make, beside a plain file; where exports may
//! be mounted; and their end. Needs root and `/dev/fuse`. Where those cannot be had, `tests/run` counts tests
//! whose names have `mounts_` in them as not run.

mod file_systems;
#[path = "../util/mod.rs"]
mod util;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_tests::tools;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Daemon, Place, SIZE, wait_until};

const DISK: &str = "--blockdev file,node-name=disk,filename=@/disk.img,discard=unmap";
const QMP: &str = "--chardev socket,id=q,path=@/qmp.sock,server=on,wait=off --monitor chardev=q";
const MIB: u64 = 1 << 20;

/// A place with a file to mount over, and a daemon that does so.
fn start(place: &Place, options: &str) -> Daemon {
    fs::write(place.path("mnt"), "below").unwrap();
    place.start(&format!(
        "{DISK} {QMP} --export fuse,id=f0,node-name=disk,mountpoint=@/mnt{options}"
    ))
}

fn open(place: &Place) -> File {
    OpenOptions::new().read(true).write(true).open(place.path("mnt")).unwrap()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(tools::text(path)))
}

fn qmp(place: &Place) -> Client {
    Client::new(&place.path("qmp.sock"))
}

/// Asks for an export that must be refused; says why.
fn refusal(client: &mut Client, mountpoint: &Path) -> String {
    let export = json!({"type": "fuse", "id": "no", "node-name": "disk", "mountpoint": mountpoint});
    client.refused("block-export-add", export)
}

fn pattern(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB as usize];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number * MIB + at as u64).wrapping_mul(0x9e37_79b9).to_ne_bytes());
    }
    bytes
}

#[test]
fn mounts_a_file_that_programs_copy_in_and_out() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let source = place.path("source");
    fs::write(&source, (0..SIZE / MIB).flat_map(pattern).collect::<Vec<u8>>()).unwrap();
    let (mnt, back) = (place.path("mnt"), place.path("back"));
    tools::run("cp", [&source, &mnt]);
    tools::run("cmp", [&source, &mnt]);
    tools::run("cmp", [&source, &place.image()]);
    tools::run("cp", ["--sparse=always", tools::text(&mnt), tools::text(&back)]);
    tools::run("cmp", [&source, &back]);
    tools::run(
        "qemu-img",
        ["compare", "-f", "raw", "-F", "raw", tools::text(&mnt), tools::text(&source)],
    );
    let mapped = "import mmap,sys; f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0); \
        assert m[:]==open(sys.argv[2],'rb').read(); m[5:9]=b'mmap'; m.flush()";
    tools::run("/usr/bin/python3", ["-c", mapped, tools::text(&mnt), tools::text(&source)]);
    let mut bytes = [0; 6];
    File::open(place.image()).unwrap().read_exact_at(&mut bytes, 4).unwrap();
    assert_eq!(bytes[1..5], *b"mmap");
    daemon.stop(Signal::TERM);
    assert_eq!(fs::read(place.path("mnt")).unwrap(), b"below");
}

/// What a program asks of a file, and what comes of it: a number, or an errno.
type Step = (&'static str, fn(&File) -> Result<u64, Errno>);

fn io<T>(result: std::io::Result<T>, value: impl Fn(T) -> u64) -> Result<u64, Errno> {
    result.map(value).map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap()))
}

fn done(result: rustix::io::Result<()>) -> Result<u64, Errno> {
    result.map(|()| 0)
}

fn read_back(file: &File, at: u64, len: usize) -> Result<u64, Errno> {
    let mut bytes = vec![0xee; len];
    let read = io(file.read_at(&mut bytes, at), |read| read as u64)?;
    // A sum that tells which bytes are there.
    let sum = bytes.iter().zip(1..).fold(0u64, |sum, (byte, at)| sum + u64::from(*byte) * at);
    Ok(read << 32 | sum)
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_INSIDE: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// On a file of 16 MiB that has no data yet.
const STEPS: &[Step] = &[
    ("all is a hole", |it| seek(it, SeekFrom::Hole(0))),
    ("there is no data", |it| seek(it, SeekFrom::Data(0))),
    ("write", |it| io(it.write_at(&pattern(1)[..100_000], MIB), |it| it as u64)),
    ("read", |it| read_back(it, MIB - 10, 200_000)),
    ("read across the end", |it| read_back(it, SIZE - 7, 100)),
    ("read at the end", |it| read_back(it, SIZE, 100)),
    ("read past the end", |it| read_back(it, SIZE + MIB, 100)),
    ("data", |it| seek(it, SeekFrom::Data(0))),
    ("a hole behind it", |it| seek(it, SeekFrom::Hole(MIB)).map(|at| at.next_multiple_of(4096))),
    ("data at the end", |it| seek(it, SeekFrom::Data(SIZE))),
    ("punch", |it| done(fallocate(it, PUNCH, MIB + 4096, 8192))),
    ("read the hole", |it| read_back(it, MIB, 20_000)),
    ("seek the hole", |it| seek(it, SeekFrom::Hole(MIB))),
    ("punch bytes", |it| done(fallocate(it, PUNCH, MIB + 1, 3))),
    ("read them", |it| read_back(it, MIB, 10)),
    ("punch past the end", |it| done(fallocate(it, PUNCH, SIZE - 4096, MIB))),
    ("punch behind the end", |it| done(fallocate(it, PUNCH, SIZE + MIB, MIB))),
    ("zero", |it| done(fallocate(it, ZERO_INSIDE, MIB + 50_000, 10_000))),
    ("read zeroes", |it| read_back(it, MIB + 40_000, 30_000)),
    ("zero past the end", |it| done(fallocate(it, ZERO_INSIDE, SIZE - 100, MIB))),
    ("no byte", |it| done(fallocate(it, ZERO_INSIDE, 0, 0))),
    ("punch without the size", |it| done(fallocate(it, FallocateFlags::PUNCH_HOLE, 0, 4096))),
    ("the length", |it| io(it.metadata(), |it| it.len())),
    ("shorten", |it| io(it.set_len(MIB + 8192), |()| 0)),
    ("its length", |it| io(it.metadata(), |it| it.len())),
    ("read what is left", |it| read_back(it, MIB, 20_000)),
    ("lengthen", |it| io(it.set_len(SIZE), |()| 0)),
    ("read new bytes", |it| read_back(it, MIB + 4096, 20_000)),
    ("sync", |it| io(it.sync_all(), |()| 0)),
    ("sync data", |it| io(it.sync_data(), |()| 0)),
    ("append", |it| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(it));
        let appending = OpenOptions::new().append(true).open(path);
        io(appending.and_then(|mut it| std::io::Write::write(&mut it, &[7; 512])), |it| it as u64)
    }),
    ("the length then", |it| io(it.metadata(), |it| it.len())),
    ("read it", |it| read_back(it, SIZE, 512)),
    ("direct", |it| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(it));
        let mut options = OpenOptions::new();
        let direct = options.read(true).custom_flags(libc::O_DIRECT).open(path);
        io(direct.map(|it| read_back(&it, 0, 0)), |it| it.unwrap())
    }),
    ("times", |it| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1000, 5);
        io(it.set_modified(time).and_then(|()| it.metadata()), |it| it.mtime() as u64)
    }),
    ("permissions", |it| {
        let set = it.set_permissions(fs::Permissions::from_mode(0o640));
        io(set.and_then(|()| it.metadata()), |it| u64::from(it.mode()))
    }),
    ("owner", |it| {
        let set = std::os::unix::fs::fchown(it, Some(12), Some(34));
        io(set.and_then(|()| it.metadata()), |it| u64::from(it.uid() * 100 + it.gid()))
    }),
];

#[test]
fn mounts_a_file_that_does_what_a_plain_file_does() {
    // Where both are on one file system, and holes are of one size.
    let place = Place::new();
    let daemon = start(&place, ",writable=on,growable=on");
    let file = open(&place);
    let plain = place.path("plain");
    let plain = OpenOptions::new().create_new(true).read(true).write(true).open(plain).unwrap();
    plain.set_len(SIZE).unwrap();
    for (what, step) in STEPS {
        assert_eq!(step(&file), step(&plain), "{what}");
    }
    // What cannot be had without writing, or means nothing.
    let allocated = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4096);
    assert_eq!(allocated, Err(Errno::OPNOTSUPP));
    let collapsed = fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapsed, Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::fgetxattr(&file, "user.x", &mut [0u8; 8][..]), Err(Errno::OPNOTSUPP));
    assert!(fs::create_dir(place.path("mnt/x")).is_err());
    let system = statvfs(place.path("mnt")).unwrap();
    assert_eq!((system.f_bsize, system.f_blocks), (4096, SIZE / 4096 + 1));
    // A file that grows does so by fallocate, too.
    assert_eq!(fallocate(&file, FallocateFlags::empty(), SIZE + 512, MIB), Ok(()));
    assert_eq!(file.metadata().unwrap().len(), SIZE + 512 + MIB);
    let zeroed = fallocate(&file, FallocateFlags::ZERO_RANGE, SIZE + MIB, MIB);
    assert_eq!((zeroed, file.metadata().unwrap().len()), (Ok(()), SIZE + 2 * MIB));
    drop(file);
    daemon.stop(Signal::TERM);
    assert_eq!(fs::metadata(place.image()).unwrap().len(), SIZE + 2 * MIB);
}

#[test]
fn mounts_a_file_that_ends_with_the_node_unless_it_may_grow() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let file = open(&place);
    let errno = |result: std::io::Result<usize>| result.map_err(|it| it.raw_os_error().unwrap());
    assert_eq!(errno(file.write_at(&[1; 100], SIZE - 50)), Ok(50));
    assert_eq!(errno(file.write_at(&[1; 100], SIZE)), Err(libc::ENOSPC));
    let grown = fallocate(&file, FallocateFlags::empty(), SIZE, 4096);
    assert_eq!(grown, Err(Errno::NOSPC));
    assert_eq!(fallocate(&file, FallocateFlags::ZERO_RANGE, SIZE - 512, 4096), Err(Errno::NOSPC));
    // By a change of length it may, and the kernel knows at once what others have changed.
    file.set_len(SIZE + 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE + 4096);
    let resize = json!({"node-name": "disk", "size": 2 * SIZE});
    qmp(&place).run("block_resize", resize);
    wait_until("the new length", || file.metadata().unwrap().len() == 2 * SIZE);
    assert_eq!(errno(file.write_at(&[1; 100], 2 * SIZE - 100)), Ok(100));
    drop(file);
    daemon.stop(Signal::TERM);
}

#[test]
fn mounts_a_file_that_is_not_written_to_unless_it_may_be() {
    let place = Place::new();
    let daemon = start(&place, "");
    let mnt = place.path("mnt");
    let refused = OpenOptions::new().write(true).open(&mnt).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let file = File::open(&mnt).unwrap();
    assert_eq!(file.metadata().unwrap().mode(), 0o100400);
    let truncated = rustix::fs::open(&mnt, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
    assert_eq!(truncated.unwrap_err(), Errno::ROFS);
    assert_eq!(
        errno(fs::set_permissions(&mnt, fs::Permissions::from_mode(0o600))),
        Some(libc::EROFS)
    );
    fs::set_permissions(&mnt, fs::Permissions::from_mode(0o444)).unwrap();
    daemon.stop(Signal::INT);
    assert!(!is_mounted(&mnt));
}

#[test]
fn mounts_only_over_regular_files_that_are_free() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let mut client = qmp(&place);
    let (mnt, missing) = (place.path("mnt"), place.path("missing"));
    let said = refusal(&mut client, &missing);
    assert!(
        said.starts_with(&format!("Failed to stat '{}': No such file", missing.display())),
        "{said}"
    );
    let dir = place.path("dir");
    fs::create_dir(&dir).unwrap();
    let regular = format!("'{}' is not a regular file", dir.display());
    assert_eq!(refusal(&mut client, &dir), regular);
    // Also by another name.
    std::os::unix::fs::symlink(&mnt, place.path("link")).unwrap();
    for name in ["mnt", "link", "dir/../mnt"] {
        let expected = format!("There already is a FUSE export on '{}'", mnt.display());
        assert_eq!(refusal(&mut client, &place.path(name)), expected, "{name}");
    }
    // Another daemon does not take it away.
    let other = Place::new();
    let second = start(&other, "");
    let said = refusal(&mut qmp(&other), &mnt);
    assert_eq!(said, format!("'{}' is a mount point of another FUSE file system", mnt.display()));
    second.stop(Signal::TERM);
    // Nothing was left behind, and a second export of the node has its own.
    let file = place.path("second");
    fs::write(&file, "").unwrap();
    let export = json!({"type": "fuse", "id": "f1", "node-name": "disk", "mountpoint": file, "writable": true});
    client.run("block-export-add", export);
    open(&place).write_all_at(b"both", 4096).unwrap();
    let mut bytes = [0; 4];
    File::open(&file).unwrap().read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(bytes, *b"both");
    daemon.stop(Signal::TERM);
    assert!(!is_mounted(&mnt) && !is_mounted(&file));
}

#[test]
fn mounts_end_when_exports_do() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let (mut client, mnt) = (qmp(&place), place.path("mnt"));
    let delete = |mode: &str| json!({"id": "f0", "mode": mode});
    let file = open(&place);
    assert_eq!(client.refused("block-export-del", delete("safe")), "export 'f0' still in use");
    client.run("block-export-del", delete("hard"));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({"id": "f0"}));
    let errno = file.read_at(&mut [0; 512], 0).unwrap_err().raw_os_error();
    assert_eq!((errno, is_mounted(&mnt)), (Some(libc::ENOTCONN), false));
    assert_eq!(fs::read(&mnt).unwrap(), b"below");
    // Another one, closed before it is deleted.
    let export = json!({"type": "fuse", "id": "f0", "node-name": "disk", "mountpoint": mnt});
    client.run("block-export-add", export);
    assert_eq!(fs::read(&mnt).unwrap().len() as u64, SIZE);
    wait_until("the file is closed", || {
        client.ask("block-export-del", delete("safe")).get("return").is_some()
    });
    client.event("BLOCK_EXPORT_DELETED");
    client.run("blockdev-del", json!({"node-name": "disk"}));
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn mounts_take_over_from_a_daemon_that_was_killed() {
    let place = Place::new();
    for round in 0..3 {
        let daemon = start_over(&place, round);
        open(&place).write_all_at(&pattern(round), 0).unwrap();
        daemon.signal(Signal::KILL);
        assert!(!daemon.wait().success());
        // Its mount is still there, and nothing is behind it.
        let left = fs::File::open(place.path("mnt")).unwrap_err();
        assert_eq!(
            (left.raw_os_error(), is_mounted(&place.path("mnt"))),
            (Some(libc::ENOTCONN), true)
        );
        fs::remove_file(place.pid_file()).unwrap();
    }
    let daemon = start_over(&place, 3);
    let mut bytes = vec![0; MIB as usize];
    open(&place).read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(2));
    daemon.stop(Signal::TERM);
    assert!(!is_mounted(&place.path("mnt")));
}

fn start_over(place: &Place, round: u64) -> Daemon {
    if round == 0 {
        return start(place, ",writable=on");
    }
    place.start(&format!("{DISK} --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on"))
}

/// Held by the policy of the export: requests neither end nor keep the monitor from answering.
#[test]
fn mounts_whose_requests_hang_let_the_daemon_be_asked_and_ended() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(&format!(
        "--blockdev blkdebug,node-name=disk,image.driver=file,image.filename=@/disk.img,\
         inject-error.0.event=none,inject-error.0.iotype=read {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,rerror=stop"
    ));
    let mut reader = tools::command("head")
        .args(["-c", "512", tools::text(&place.path("mnt"))])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut client = qmp(&place);
    wait_until("the export has stopped", || {
        let exports = client.run("query-block-exports", json!({}));
        exports[0]["x-coblk-io-status"] == "failed"
    });
    assert_eq!(reader.try_wait().unwrap(), None);
    // It is answered, with its error, before the file goes.
    client.run("block-export-del", json!({"id": "f0", "mode": "hard"}));
    client.event("BLOCK_EXPORT_DELETED");
    assert!(!reader.wait().unwrap().success());
    daemon.stop(Signal::TERM);
}

/// Each writer knows what it has written, whatever the node goes through.
#[test]
fn mounts_served_by_several_threads_lose_nothing_while_the_node_is_drained() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(&format!(
        "--object iothread,id=t0 --object iothread,id=t1 {DISK} {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on,\
         iothread.0=t0,iothread.1=t1"
    ));
    let mut client = qmp(&place);
    let (file, ended) = (open(&place), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (file, ended) = (&file, &ended);
                scope.spawn(move || {
                    let mut round = 0;
                    while round < 40 || !ended.load(Ordering::Relaxed) {
                        let data = pattern(writer * 1000 + round % 50);
                        // A length that needs both blocks of a request, and one that does not.
                        let data = &data[..if round % 2 == 0 { 700_000 } else { 4096 }];
                        let mut back = vec![0; data.len()];
                        file.write_all_at(data, writer * 2 * MIB + 512).unwrap();
                        file.read_exact_at(&mut back, writer * 2 * MIB + 512).unwrap();
                        assert!(back == data, "writer {writer}, round {round}");
                        round += 1;
                    }
                })
            })
            .collect();
        for round in 0..20 {
            let option = if round % 2 == 0 { "off" } else { "on" };
            let options = json!({"options": [{"driver": "file", "node-name": "disk",
                "filename": place.image(), "discard": "unmap", "detect-zeroes": option}]});
            client.run("blockdev-reopen", options);
        }
        ended.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    drop(file);
    daemon.stop(Signal::TERM);
}

/// A mount namespace in which every user may open `/dev/fuse`, as they may where udev has made it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Namespace {
        let script = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && \
                      mount --bind /mnt/fuse /dev/fuse && echo ready && exec cat";
        let mut command = tools::command("unshare");
        command.args(["--mount", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("root, and /dev/fuse");
        Namespace(child)
    }

    /// A command in there, of a user without rights. Descriptor 3 is the daemon's program, which root has
    /// opened, so that it is found wherever it lies.
    fn command(&self) -> Command {
        let script = "exec 3<\"$0\" setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
        let mut command = tools::command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.0.id()));
        command.args(["sh", "-c", script, env!("CARGO_BIN_EXE_coblk-storage-daemon")]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A user without rights has `fusermount3` mount, over files of its own.
#[test]
fn mounts_of_a_user_are_made_by_the_helper() {
    let (place, namespace) = (Place::in_memory(), Namespace::new());
    let dir = place.path("");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    for (name, owner) in [("mnt", 65534), ("theirs", 0), ("disk", 65534)] {
        File::create(place.path(name)).unwrap().set_len(MIB).unwrap();
        std::os::unix::fs::chown(place.path(name), Some(owner), Some(owner)).unwrap();
    }
    let daemon = |mountpoint: &str| {
        let mut command = namespace.command();
        let arguments = format!(
            "/proc/self/fd/3 --blockdev file,node-name=disk,filename=@/disk --pidfile @/pid \
             --export fuse,id=f0,node-name=disk,mountpoint=@/{mountpoint},writable=on"
        );
        command.args(arguments.split_whitespace().map(|it| place.fill_in(it)));
        command
    };
    let output = daemon("theirs").output().unwrap();
    let said = util::stderr(&output);
    assert!(!output.status.success() && said.contains("fusermount3: "), "{said}");
    let running = place.start_command(daemon("mnt"));
    let as_user = |script: &str| {
        let mut command = namespace.command();
        command.args(["sh", "-c", script, "sh"]).arg(place.path("mnt")).output().unwrap()
    };
    assert!(as_user("printf user | dd of=\"$1\" bs=4 seek=1024 conv=notrunc").status.success());
    running.signal(Signal::KILL);
    running.wait();
    // What was left is taken away by the helper, too.
    assert!(!as_user("cat \"$1\"").status.success());
    fs::remove_file(place.pid_file()).unwrap();
    let running = place.start_command(daemon("mnt"));
    let read = as_user("dd if=\"$1\" bs=4 skip=1024 count=1 2>/dev/null");
    assert_eq!(read.stdout, b"user");
    running.stop(Signal::TERM);
    let below = as_user("wc -c <\"$1\"; grep -c coblk /proc/self/mounts");
    assert_eq!(String::from_utf8_lossy(&below.stdout), "1048576\n0\n");
}
