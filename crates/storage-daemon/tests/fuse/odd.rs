//! What few programs ask for, and connections that are cut.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use coblk_tests::tools;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use serde_json::json;

use super::util::{Place, SIZE, wait_until};
use super::{DISK, MIB, QMP, Signal, is_mounted, open, qmp, start};

fn errno<T>(result: std::io::Result<T>) -> Result<T, i32> {
    result.map_err(|error| error.raw_os_error().unwrap())
}

/// To the kernel ENOSYS of a sync means that there is nothing to be synced, now and later.
#[test]
fn mounts_fail_each_sync_that_the_node_does_not_know() {
    let place = Place::new();
    fs::write(place.path("mnt"), "").unwrap();
    let daemon = place.start(
        "--blockdev blkdebug,node-name=disk,image.driver=file,image.filename=@/disk.img,\
         inject-error.0.event=none,inject-error.0.iotype=flush,inject-error.0.errno=38,\
         inject-error.1.event=none,inject-error.1.iotype=write-zeroes,inject-error.1.errno=38 \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,writable=on",
    );
    let file = open(&place);
    for _ in 0..2 {
        file.write_all_at(&[1; 512], 0).unwrap();
        assert_eq!(errno(file.sync_all()), Err(libc::EOPNOTSUPP));
        assert_eq!(errno(file.sync_data()), Err(libc::EOPNOTSUPP));
        let zeroed = fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4096);
        assert_eq!(zeroed, Err(Errno::OPNOTSUPP));
    }
    drop(file);
    daemon.stop(Signal::TERM);
}

/// The kernel cuts the connection, and the file is not closed any more.
#[test]
fn mounts_that_are_cut_off_are_in_use_no_more() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on");
    let (mut client, mnt, file) = (qmp(&place), place.path("mnt"), open(&place));
    let delete = json!({"id": "f0", "mode": "safe"});
    assert_eq!(client.refused("block-export-del", delete.clone()), "export 'f0' still in use");
    assert!(!tools::output("umount", ["--force", tools::text(&mnt)]).status.success());
    assert_eq!(errno(file.read_at(&mut [0; 512], 0)), Err(libc::ENOTCONN));
    wait_until("it is in use no more", || {
        client.ask("block-export-del", delete.clone()).get("return").is_some()
    });
    client.event("BLOCK_EXPORT_DELETED");
    assert!(!is_mounted(&mnt));
    // The place is free, and what is left of the old file does not disturb the new one.
    client.run(
        "block-export-add",
        json!({"type": "fuse", "id": "f0", "node-name": "disk", "mountpoint": mnt}),
    );
    drop(file);
    assert_eq!(fs::metadata(&mnt).unwrap().len(), SIZE);
    daemon.stop(Signal::TERM);
}

/// No length but one that storage can have, and nothing is lost by trying.
#[test]
fn mounts_refuse_lengths_that_nothing_can_have() {
    let place = Place::new();
    let daemon = start(&place, ",writable=on,growable=on");
    let file = open(&place);
    file.write_all_at(&[7; 512], 0).unwrap();
    let largest = i64::MAX as u64;
    for at in [1 << 62, largest - 1023] {
        assert_eq!(errno(file.write_at(&[1; 512], at)), Err(libc::EFBIG), "{at}");
    }
    for len in [1 << 62, largest - 511, largest] {
        assert_eq!(errno(file.set_len(len)), Err(libc::EFBIG), "{len}");
        for flags in [FallocateFlags::empty(), FallocateFlags::ZERO_RANGE] {
            assert_eq!(fallocate(&file, flags, SIZE, len - SIZE), Err(Errno::FBIG), "{len}");
        }
    }
    assert_eq!(file.metadata().unwrap().len(), SIZE);
    // Behind the end there is nothing to be punched.
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&file, punch, MIB, 1 << 62), Ok(()));
    assert_eq!(seek(&file, SeekFrom::Data(MIB)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(largest)), Err(Errno::NXIO));
    let mut back = [0; 512];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [7; 512]);
    drop(file);
    daemon.stop(Signal::TERM);
}

/// The node becomes shorter and longer beside writes to its end: they fit, or fit in part, or there is no space.
#[test]
fn mounts_write_what_fits_while_the_node_changes_its_length() {
    let place = Place::new();
    let daemon = place_with(&place, "writable=on");
    let (mut client, file) = (qmp(&place), open(&place));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut seen = [0; 3];
            while seen.iter().any(|count| *count < 20) && seen.iter().sum::<u64>() < 20_000 {
                match errno(file.write_at(&[5; 8192], SIZE - 4096)) {
                    Ok(8192) => seen[0] += 1,
                    Ok(4096) => seen[1] += 1,
                    Err(libc::ENOSPC) => seen[2] += 1,
                    other => panic!("{other:?}"),
                }
            }
            seen
        });
        let mut lengths = [SIZE - 4096, SIZE, SIZE + 4096].into_iter().cycle();
        while !writer.is_finished() {
            client.run("block_resize", json!({"node-name": "disk", "size": lengths.next()}));
        }
        let seen = writer.join().unwrap();
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    });
    drop(file);
    daemon.stop(Signal::TERM);
}

fn place_with(place: &Place, options: &str) -> super::util::Daemon {
    fs::write(place.path("mnt"), "").unwrap();
    place.start(&format!(
        "--object iothread,id=t0 {DISK} {QMP} \
         --export fuse,id=f0,node-name=disk,mountpoint=@/mnt,iothread=t0,{options}"
    ))
}

/// A file may cover the image that it shows, by which the daemon goes on.
#[test]
fn mounts_cover_their_own_image() {
    let place = Place::new();
    let image = place.image();
    let below = fs::metadata(&image).unwrap().ino();
    let daemon = place.start(&format!(
        "{DISK} {QMP} --export fuse,id=f0,node-name=disk,mountpoint=@/disk.img,writable=on"
    ));
    let file = File::options().read(true).write(true).open(&image).unwrap();
    assert_ne!(file.metadata().unwrap().ino(), below);
    file.write_all_at(b"through", 4096).unwrap();
    drop(file);
    daemon.stop(Signal::TERM);
    assert_eq!((fs::metadata(&image).unwrap().ino(), is_mounted(&image)), (below, false));
    assert_eq!(fs::read(&image).unwrap()[4096..][..7], *b"through");
}
