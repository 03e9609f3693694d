//! What a program asks of a file, on an export and on a plain file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use rustix::io::Errno;
use serde_json::json;

use super::util::{Place, SIZE, wait_until};
use super::{MIB, Signal, is_mounted, open, pattern, qmp, start};

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

/// Takes the same steps on an export that has no data yet, and on a plain file, which are on one file system, so
/// that holes are of one size.
pub fn compare(place: &Place, file: &File) {
    let plain = place.path("plain");
    let plain = OpenOptions::new().create_new(true).read(true).write(true).open(plain).unwrap();
    plain.set_len(SIZE).unwrap();
    for (what, step) in STEPS {
        assert_eq!(step(file), step(&plain), "{what}");
    }
}

#[test]
fn mounts_a_file_that_does_what_a_plain_file_does() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on,growable=on");
    let file = open(&place);
    compare(&place, &file);
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
