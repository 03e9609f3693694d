//! A node: its requests, its length, its status, and other clients of the image.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coblk::{AioContext, BlockBackend, IoVector, IoVectorMut, WriteFlags, ZeroFlags};
use coblk_tests::ceph::{Image, rbd};

use crate::{Bench, MIB, pattern};

/// Where the kinds of ranges change: offset and whether there is data.
fn map(bench: &Bench, disk: &BlockBackend) -> Vec<(u64, bool)> {
    let (length, mut at, mut map) = (disk.length().unwrap(), 0, Vec::new());
    bench.ctx.run(|co| {
        while at < length {
            let extent = disk.co_block_status(co, at, length - at).expect("a status");
            if map.last().is_none_or(|(_, data)| *data != extent.data) {
                map.push((at, extent.data));
            }
            at += extent.bytes;
        }
    });
    map
}

#[test]
fn ceph_bytes_come_back_across_ranges_objects_and_opens() {
    let (bench, image) = (Bench::new(), Image::new("rbd", 16 * MIB, &["--object-size", "1M"]));
    let disk = bench.disk(&image.options());
    assert_eq!(disk.length().unwrap(), 16 * MIB);
    let data = pattern(1, 3 * MIB as usize + 777);
    let (first, second) = data.split_at(12345);
    let mut source = IoVector::from(first);
    source.push(second);
    // Odd offsets, and pieces of one range in several objects.
    disk.pwritev(&bench.ctx, 511, &source, WriteFlags::empty()).unwrap();
    disk.pwritev(&bench.ctx, 8 * MIB, &source, WriteFlags::FUA).unwrap();
    disk.flush(&bench.ctx).unwrap();
    bench.close(disk);

    let disk = bench.disk(&format!("{},read-only=on", image.options()));
    for offset in [511, 8 * MIB] {
        let mut read = vec![0xee; data.len() + 2];
        let (first, second) = read.split_at_mut(99);
        let mut target = IoVectorMut::from(first);
        target.push(second);
        disk.preadv(&bench.ctx, offset - 1, &mut target).unwrap();
        assert!(read[1..=data.len()] == data, "at {offset}");
        assert_eq!((read[0], read[data.len() + 1]), (0, 0));
    }
    bench.close(disk);
}

#[test]
fn ceph_zeroes_and_discards_are_seen_in_reads_and_in_the_status() {
    let (bench, image) = (Bench::new(), Image::new("rbd", 16 * MIB, &["--object-size", "1M"]));
    let disk = bench.disk(&format!("{},discard=unmap", image.options()));
    assert_eq!(map(&bench, &disk), [(0, false)]);
    let all = vec![7; 4 * MIB as usize];
    disk.pwritev(&bench.ctx, 4 * MIB, &IoVector::from(&all), WriteFlags::empty()).unwrap();
    // Soon after the first question: what was known then is forgotten.
    assert_eq!(map(&bench, &disk), [(0, false), (4 * MIB, true), (8 * MIB, false)]);
    bench.ctx.run(|co| {
        disk.co_pwrite_zeroes(co, 4 * MIB, MIB, ZeroFlags::MAY_UNMAP).unwrap();
        disk.co_pwrite_zeroes(co, 5 * MIB + 100, 100, ZeroFlags::empty()).unwrap();
        disk.co_pdiscard(co, 7 * MIB, MIB).unwrap();
        // Keeps its space.
        disk.co_pwrite_zeroes(co, 12 * MIB, MIB, ZeroFlags::empty()).unwrap();
        // Those that keep their space are written by the cluster, so they are no faster than data.
        let fast = disk.co_pwrite_zeroes(co, 12 * MIB, MIB, ZeroFlags::NO_FALLBACK);
        assert_eq!(fast.unwrap_err().raw_os_error(), Some(libc::ENOTSUP));
        let fast = ZeroFlags::NO_FALLBACK | ZeroFlags::MAY_UNMAP;
        disk.co_pwrite_zeroes(co, 4 * MIB, MIB, fast).unwrap();
    });
    let found = map(&bench, &disk);
    let wanted =
        [(0, false), (5 * MIB, true), (7 * MIB, false), (12 * MIB, true), (13 * MIB, false)];
    assert_eq!(found, wanted);
    let mut wanted = vec![0; 16 * MIB as usize];
    wanted[5 * MIB as usize..7 * MIB as usize].fill(7);
    wanted[5 * MIB as usize + 100..][..100].fill(0);
    let mut read = vec![0xee; wanted.len()];
    disk.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut read)).unwrap();
    assert!(read == wanted);
    bench.close(disk);
}

/// The table of objects says the same as the objects.
#[test]
fn ceph_a_status_is_told_by_a_table_a_clone_and_stripes() {
    let bench = Bench::new();
    let by_table = ["--object-size", "1M", "--image-feature"];
    let by_table = [&by_table[..], &["layering,exclusive-lock,object-map,fast-diff"]].concat();
    let striped = ["--object-size", "1M", "--stripe-unit", "65536", "--stripe-count", "4"];
    for features in [&by_table[..], &striped] {
        let image = Image::new("rbd", 8 * MIB, features);
        let disk = bench.disk(&image.options());
        let data = vec![1; MIB as usize];
        disk.pwritev(&bench.ctx, 4 * MIB, &IoVector::from(&data), WriteFlags::empty()).unwrap();
        let found = map(&bench, &disk);
        assert!(found.starts_with(&[(0, false), (4 * MIB, true)]), "{features:?}: {found:?}");
        bench.close(disk);
    }
    // What a parent has is data of its clone.
    let parent = Image::new("rbd", 4 * MIB, &by_table);
    let disk = bench.disk(&parent.options());
    disk.pwritev(&bench.ctx, MIB, &IoVector::from(&[3; 4096]), WriteFlags::empty()).unwrap();
    bench.close(disk);
    rbd(&["snap", "create", "--no-progress", &format!("{}@s", parent.spec())]);
    rbd(&["snap", "protect", &format!("{}@s", parent.spec())]);
    {
        let clone = Image::named("rbd");
        rbd(&["clone", &format!("{}@s", parent.spec()), &clone.spec()]);
        let disk = bench.disk(&clone.options());
        let found = map(&bench, &disk);
        assert!(found.len() == 3 && found[1].1 && found[1].0 <= MIB, "{found:?}");
        let mut read = [0; 4096];
        disk.preadv(&bench.ctx, MIB, &mut IoVectorMut::from(&mut read)).unwrap();
        assert_eq!(read, [3; 4096]);
        bench.close(disk);
    }
    rbd(&["snap", "unprotect", &format!("{}@s", parent.spec())]);
}

#[test]
fn ceph_lengths_change_by_the_node_and_by_others() {
    let (bench, image) = (Bench::new(), Image::new("rbd", 8 * MIB, &[]));
    let disk = bench.disk(&image.options());
    let told = Rc::new(Cell::new(0));
    let listener = Rc::clone(&told);
    disk.set_length_listener(move |_, length| listener.set(length));
    let data = pattern(2, 8192);
    disk.pwritev(&bench.ctx, 8 * MIB - 8192, &IoVector::from(&data), WriteFlags::empty()).unwrap();
    let truncate = |length| {
        bench.ctx.run(|co| disk.co_truncate(co, length)).unwrap();
        assert_eq!(disk.length().unwrap(), length);
    };
    truncate(8 * MIB - 4096);
    truncate(12 * MIB);
    let mut read = vec![0xee; 8192];
    disk.preadv(&bench.ctx, 8 * MIB - 8192, &mut IoVectorMut::from(&mut read)).unwrap();
    assert!(read[..4096] == data[..4096] && read[4096..].iter().all(|byte| *byte == 0));

    // Others do it, and this node is told.
    let end = Instant::now() + Duration::from_secs(30);
    rbd(&["resize", "--no-progress", "--size", "20M", &image.spec()]);
    bench.ctx.run_until(|| told.get() == 20 * MIB || Instant::now() > end);
    assert_eq!((told.get(), disk.length().unwrap()), (20 * MIB, 20 * MIB));
    rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "4M", &image.spec()]);
    bench.ctx.run_until(|| told.get() == 4 * MIB || Instant::now() > end);
    assert_eq!(disk.length().unwrap(), 4 * MIB);
    bench.close(disk);
    assert!(rbd(&["info", &image.spec()]).contains("size 4 MiB"));
}

#[test]
fn ceph_a_snapshot_stays_as_it_was() {
    let (bench, image) = (Bench::new(), Image::new("rbd", 4 * MIB, &[]));
    let disk = bench.disk(&image.options());
    let write = |byte| {
        let data = vec![byte; 65536];
        disk.pwritev(&bench.ctx, 0, &IoVector::from(&data), WriteFlags::empty()).unwrap();
        disk.flush(&bench.ctx).unwrap();
    };
    write(1);
    rbd(&["snap", "create", "--no-progress", &format!("{}@s", image.spec())]);
    write(2);
    let snapshot = format!("{},snapshot=s", image.options());
    let refused = bench.try_open(&snapshot).err().expect("a snapshot that is not written");
    assert!(refused.contains("read-only"), "{refused}");
    for modes in ["read-only=on", "auto-read-only=on"] {
        let node = bench.open(&format!("{snapshot},{modes},node-name=s"));
        assert!(node.is_read_only(), "{modes}");
        let options = coblk::BackendOptions::new("s").read_only(true);
        let backend = options.open(&bench.ctx, node).unwrap();
        let mut read = [0; 16];
        backend.preadv(&bench.ctx, 100, &mut IoVectorMut::from(&mut read)).unwrap();
        assert_eq!(read, [1; 16]);
        drop(backend);
        bench.blockdevs.close(&bench.ctx, "s").unwrap();
    }
    bench.close(disk);
}

#[test]
fn ceph_namespaces_keep_images_apart() {
    let (bench, space) = (Bench::new(), format!("space{}", std::process::id()));
    rbd(&["namespace", "create", &format!("rbd/{space}")]);
    {
        let inside = Image::new(&format!("rbd/{space}"), MIB, &[]);
        let disk = bench.disk(&inside.options());
        disk.pwritev(&bench.ctx, 0, &IoVector::from(&[5; 512]), WriteFlags::empty()).unwrap();
        bench.close(disk);
        let outside = format!(
            "{},node-name=disk",
            inside.options().replace(&format!(",namespace={space}"), "")
        );
        let refused = bench.try_open(&outside).err().expect("no such image");
        assert!(refused.contains("there is no image"), "{refused}");
    }
    rbd(&["namespace", "rm", &format!("rbd/{space}")]);
}

/// Two clients of an image with an exclusive lock: it goes to the one that writes, and a reader takes none.
#[test]
fn ceph_an_exclusive_lock_is_handed_over_and_readers_take_none() {
    let bench = Bench::new();
    let image = Image::new("rbd", 4 * MIB, &["--image-feature", "exclusive-lock"]);
    let owners = || rbd(&["lock", "ls", &image.spec()]);
    let reader = bench.open(&format!("{},read-only=on,node-name=reader", image.options()));
    let first = bench.disk(&image.options());
    assert_eq!(owners(), "");
    let second = bench.open(&format!("{},node-name=second", image.options()));
    let second = BlockBackend::new(&bench.ctx, "second", second);
    let mut last = String::new();
    for byte in 1..=4u8 {
        let writer = if byte % 2 == 1 { &first } else { &second };
        let data = [byte; 4096];
        writer.pwritev(&bench.ctx, 0, &IoVector::from(&data), WriteFlags::empty()).unwrap();
        let now = owners();
        assert!(now.contains("client.") && now != last, "{now}");
        last = now;
        // The other one has nothing old in its cache.
        let other = if byte % 2 == 1 { &second } else { &first };
        let mut read = [0; 4096];
        other.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut read)).unwrap();
        assert_eq!(read, data);
    }
    let options = coblk::BackendOptions::new("reader").read_only(true);
    let backend = options.open(&bench.ctx, reader).unwrap();
    let mut read = [0; 4096];
    backend.preadv(&bench.ctx, 0, &mut IoVectorMut::from(&mut read)).unwrap();
    assert_eq!((read, owners()), ([4; 4096], last));
    drop(backend);
    bench.blockdevs.close(&bench.ctx, "reader").unwrap();
    bench.close(second);
    bench.close(first);
}

/// The buffer of a read, which counts itself when it goes, if it has been filled by then.
struct Buffer {
    read: Vec<u8>,
    wanted: Rc<Vec<u8>>,
    filled: Rc<Cell<u32>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.filled.set(self.filled.get() + u32::from(self.read == *self.wanted));
    }
}

/// librbd holds the buffers of a request whose coroutine ends: that waits for it.
#[test]
fn ceph_a_context_that_ends_waits_for_its_requests() {
    let (bench, image) = (Bench::new(), Image::new("rbd", 8 * MIB, &[]));
    let disk = bench.disk(&image.options());
    let wanted = Rc::new(pattern(3, 4 * MIB as usize));
    disk.pwritev(&bench.ctx, 0, &IoVector::from(&*wanted), WriteFlags::empty()).unwrap();
    let filled = Rc::new(Cell::new(0));
    for _ in 0..8 {
        let ctx = AioContext::for_test().unwrap();
        let other = BlockBackend::new(&ctx, "other", disk.node().unwrap());
        for _ in 0..4 {
            let read = vec![0; wanted.len()];
            let (wanted, filled) = (Rc::clone(&wanted), Rc::clone(&filled));
            let mut buffer = Buffer { read, wanted, filled };
            let other = other.clone();
            ctx.spawn("read", move |co| {
                // Is unwound, or has ended before that.
                let _ = other.co_preadv(co, 0, &mut IoVectorMut::from(&mut buffer.read));
            });
        }
        drop(other);
        drop(ctx);
    }
    assert_eq!(filled.get(), 32);
    bench.close(disk);
}
