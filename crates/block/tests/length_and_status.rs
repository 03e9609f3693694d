//! Block status, and changes of length.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use Kind::{Data, Hole};
use coblk_aio::sys::{self, Fallocate};
use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::drivers::{Engine, File, Null, Raw};
use coblk_block::{
    BlockBackend, BlockLimits, BlockNode, Child, ChildRole, Extent, Truncate, WriteFlags, ZeroFlags,
};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::errno;

const PLAIN: WriteFlags = WriteFlags::empty();

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Hole,
}

fn kind(extent: &Extent) -> Kind {
    assert_eq!(extent.data, !extent.zero);
    if extent.data { Data } else { Hole }
}

/// All of a device, neighbours of one kind joined.
fn map(ctx: &AioContext, backend: &BlockBackend) -> Vec<(Kind, u64)> {
    let (mut map, mut at) = (Vec::<(Kind, u64)>::new(), 0);
    let length = backend.length().unwrap();
    while at < length {
        let status = backend.block_status(ctx, at, length - at).unwrap();
        assert!((1..=length - at).contains(&status.bytes));
        at += status.bytes;
        match map.last_mut() {
            Some((last, bytes)) if *last == kind(&status) => *bytes += status.bytes,
            _ => map.push((kind(&status), status.bytes)),
        }
    }
    map
}

fn set_up(length: u64, direct: bool) -> (AioContext, tempfile::NamedTempFile, BlockBackend) {
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(length).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let engine = if direct { Engine::IoUring } else { Engine::Threads };
    let driver = File::options().direct(direct).engine(engine).open(image.path()).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("image", driver));
    (ctx, image, backend)
}

#[test]
fn a_file_tells_its_holes_and_what_is_behind_its_end() {
    const MIB: u64 = 1 << 20;
    for direct in [false, true] {
        let (ctx, image, backend) = set_up(4 * MIB, direct);
        assert_eq!(map(&ctx, &backend), [(Hole, 4 * MIB)]);
        let data = vec![7u8; MIB as usize];
        backend.pwritev(&ctx, MIB, &IoVector::from(&data[..]), PLAIN).unwrap();
        assert_eq!(map(&ctx, &backend), [(Hole, MIB), (Data, MIB), (Hole, 2 * MIB)]);
        let status = backend.block_status(&ctx, MIB + 1, 100).unwrap();
        assert_eq!((kind(&status), status.bytes), (Data, 100));
        backend.pwrite_zeroes(&ctx, MIB, MIB / 2, ZeroFlags::MAY_UNMAP).unwrap();
        assert_eq!(map(&ctx, &backend)[0], (Hole, MIB + MIB / 2));
        // An end within a sector.
        image.as_file().set_len(0).unwrap();
        image.as_file().write_all_at(&[1; 1000], 0).unwrap();
        let refreshed = ctx.run(|co| backend.node().unwrap().co_refresh_length(co)).unwrap();
        assert_eq!((refreshed, backend.length().unwrap()), (1024, 1024));
        // With O_DIRECT in whole blocks of the node.
        let expected: &[_] = if direct { &[(Data, 1024)] } else { &[(Data, 1000), (Hole, 24)] };
        assert_eq!(map(&ctx, &backend), expected);
    }
}

/// A reader of a whole image asks piece by piece, and the next hole may be far to look for.
#[test]
fn data_is_looked_up_once_until_the_node_makes_a_hole() {
    const MIB: u64 = 1 << 20;
    for direct in [false, true] {
        let (ctx, image, backend) = set_up(4 * MIB, direct);
        let status = |offset| backend.block_status(&ctx, offset, MIB).map(|it| kind(&it)).unwrap();
        let write = |offset| {
            let data = vec![7u8; MIB as usize];
            backend.pwritev(&ctx, offset, &IoVector::from(&data[..]), PLAIN).unwrap();
        };
        (0..4).for_each(|at| write(at * MIB));
        assert_eq!(status(0), Data);
        // Not seen, as it was not asked for again: another process made the hole.
        sys::fallocate(image.as_file().as_fd(), Fallocate::PunchHole, MIB, MIB).unwrap();
        assert_eq!(status(MIB), Data);
        backend.pdiscard(&ctx, 2 * MIB, MIB).unwrap();
        assert_eq!([0, 1, 2, 3].map(|at| status(at * MIB)), [Data, Hole, Hole, Data]);
        // Data that is known on both sides of what is zeroed.
        write(MIB);
        write(2 * MIB);
        assert_eq!(status(0), Data);
        backend.pwrite_zeroes(&ctx, MIB, MIB, ZeroFlags::MAY_UNMAP).unwrap();
        assert_eq!([0, 1, 2].map(|at| status(at * MIB)), [Data, Hole, Data]);
        backend.truncate(&ctx, 2 * MIB + 4096).unwrap();
        backend.truncate(&ctx, 4 * MIB).unwrap();
        assert_eq!([2, 3].map(|at| status(at * MIB)), [Data, Hole]);
    }
}

#[test]
fn status_of_what_is_not_there_and_of_nothing() {
    let (ctx, _image, backend) = set_up(4096, false);
    assert_eq!(errno(backend.block_status(&ctx, 4096, 1)), libc::EIO);
    assert_eq!(backend.block_status(&ctx, 4096, 0).unwrap().bytes, 0);
    let empty = BlockBackend::empty(&ctx, "empty");
    assert_eq!(errno(empty.block_status(&ctx, 0, 1)), libc::ENOMEDIUM);
}

#[test]
fn null_is_zero_if_it_reads_as_zero() {
    let ctx = AioContext::for_test().unwrap();
    for (read_zeroes, kind) in [(true, Hole), (false, Data)] {
        let node = BlockNode::new("null", Null::new(4096).read_zeroes(read_zeroes));
        let backend = BlockBackend::new(&ctx, "drive", node);
        assert_eq!(map(&ctx, &backend), [(kind, 4096)]);
        assert_eq!(errno(backend.truncate(&ctx, 8192)), libc::ENOTSUP);
    }
}

#[test]
fn a_file_grows_by_zeroes_and_is_cut() {
    for direct in [false, true] {
        let (ctx, image, backend) = set_up(8192, direct);
        let ones = [1u8; 8192];
        backend.pwritev(&ctx, 0, &IoVector::from(&ones[..]), PLAIN).unwrap();
        backend.truncate(&ctx, 16384).unwrap();
        assert_eq!(backend.length().unwrap(), 16384);
        let mut data = [0xEE; 16384];
        backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
        assert_eq!((&data[..8192], &data[8192..]), (&ones[..], &[0; 8192][..]));
        backend.truncate(&ctx, 4096).unwrap();
        assert_eq!(
            (backend.length().unwrap(), image.as_file().metadata().unwrap().len()),
            (4096, 4096)
        );
        let beyond = backend.pwritev(&ctx, 4096, &IoVector::from(&ones[..1]), PLAIN);
        assert_eq!(errno(beyond), libc::EIO);
        // What was cut off is gone for good.
        backend.truncate(&ctx, 8192).unwrap();
        backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..8192])).unwrap();
        assert_eq!((&data[..4096], &data[4096..8192]), (&ones[..4096], &[0; 4096][..]));
        assert_eq!(errno(backend.truncate(&ctx, u64::MAX)), libc::EFBIG);
        assert_eq!(backend.length().unwrap(), 8192);
    }
}

#[test]
fn a_length_is_not_changed_through_a_backend_that_only_reads() {
    let (ctx, _image, backend) = set_up(8192, false);
    let reader = BlockBackend::read_only(&ctx, "reader", backend.node().unwrap());
    assert_eq!(errno(reader.truncate(&ctx, 0)), libc::EPERM);
}

#[test]
fn a_device_is_cut_when_the_writes_in_flight_are_done() {
    for request_alignment in [1, 512] {
        let ctx = AioContext::for_test().unwrap();
        let limits = BlockLimits { request_alignment, ..BlockLimits::default() };
        let disk = Disk::new(8192, limits);
        let node = BlockNode::new("disk", OnDisk(disk.clone()));
        let backend = BlockBackend::new(&ctx, "drive", node);
        disk.judge(|op| match op {
            Op::Write(..) => Verdict::Hold,
            _ => Verdict::Go,
        });
        let answers = Rc::new(Cell::new((0, 0)));
        let seen = Rc::clone(&answers);
        backend.aio_pwritev(&ctx, 4096, vec![7; 512], PLAIN, move |_, result, _| {
            result.unwrap();
            seen.set((1, seen.get().1));
        });
        let cut = Rc::new(Cell::new(false));
        let (seen, truncating) = (Rc::clone(&cut), backend.clone());
        ctx.spawn("truncate", move |co| {
            truncating.co_truncate(co, 4096).unwrap();
            seen.set(true);
        });
        // Comes when the cut has begun, and finds its range gone.
        let seen = Rc::clone(&answers);
        backend.aio_pwritev(&ctx, 4096, vec![8; 512], PLAIN, move |_, result, _| {
            seen.set((seen.get().0, errno(result)));
        });
        while ctx.try_poll() {}
        assert_eq!((disk.take_ops(), cut.get()), (vec![Op::Write(4096, 512, PLAIN)], false));
        assert!(disk.release());
        ctx.run_until(|| cut.get() && answers.get().1 != 0);
        assert_eq!(disk.take_ops(), [Op::Truncate(4096)]);
        assert_eq!(answers.get(), (1, libc::EIO));
    }
}

#[test]
fn a_tracked_write_that_waited_for_a_cut_finds_its_range_gone() {
    let ctx = AioContext::for_test().unwrap();
    let limits = BlockLimits { request_alignment: 512, ..BlockLimits::default() };
    let disk = Disk::new(8192, limits);
    let node = BlockNode::new("disk", OnDisk(disk.clone()));
    let node = Arc::new(Child::new("file", ChildRole::FILTER, node));
    disk.judge(|op| if matches!(op, Op::Truncate(_)) { Verdict::Hold } else { Verdict::Go });
    // At the node nothing drains: as a driver above would do it.
    let below = node.clone();
    ctx.spawn("truncate", move |co| below.co_truncate(co, 4096, Truncate::default()).unwrap());
    let results = Rc::new(Cell::new((0, 0)));
    for (offset, slot) in [(4096, true), (100, false)] {
        let (below, results) = (node.clone(), Rc::clone(&results));
        ctx.spawn("write", move |co| {
            let data = [7u8; 512];
            let result = below.co_pwritev(co, offset, &IoVector::from(&data[..]), PLAIN);
            let (mut beyond, mut before) = results.get();
            match slot {
                true => beyond = errno(result),
                false => before = result.map_or(-1, |()| 1),
            }
            results.set((beyond, before));
        });
    }
    while ctx.try_poll() {}
    assert_eq!(results.get(), (0, 1), "one waits, the other has no reason to");
    assert!(disk.release());
    while ctx.try_poll() {}
    assert_eq!(results.get(), (libc::EIO, 1));
}

/// A backend on a disk that holds its changes of length, and what the disk was asked.
fn held_truncates(length: u64) -> (AioContext, Arc<Disk>, BlockBackend) {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(length, BlockLimits::default());
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    disk.judge(|op| match op {
        Op::Truncate(_) | Op::Write(..) => Verdict::Hold,
        _ => Verdict::Go,
    });
    (ctx, disk, backend)
}

fn start_truncate(ctx: &AioContext, backend: &BlockBackend, length: u64) -> Rc<Cell<bool>> {
    let (done, backend) = (Rc::new(Cell::new(false)), backend.clone());
    let seen = Rc::clone(&done);
    ctx.spawn("truncate", move |co| {
        backend.co_truncate(co, length).unwrap();
        seen.set(true);
    });
    done
}

/// Two grow a disk at once, and the one that comes later asks for less: that cuts off what the first
/// has brought, and a write may be there by then.
#[test]
fn a_grow_that_has_become_a_shrink_waits_for_the_writes_in_flight() {
    let (ctx, disk, backend) = held_truncates(4096);
    let first = start_truncate(&ctx, &backend, 16384);
    let second = start_truncate(&ctx, &backend, 8192);
    assert_eq!(disk.take_ops(), [Op::Truncate(16384)]);
    // A write that the shrink has to wait for.
    backend.aio_pwritev(&ctx, 0, vec![7; 512], PLAIN, |_, result, _| result.unwrap());
    assert!(disk.release());
    while ctx.try_poll() {}
    assert!(first.get() && !second.get());
    assert_eq!(disk.take_ops(), [Op::Write(0, 512, PLAIN)], "a shrink while a write is in flight");
    while !second.get() {
        disk.release();
        ctx.try_poll();
    }
    assert_eq!(backend.length().unwrap(), 8192);
}

/// Two users grow a disk for their writes at once: what the first has brought stays.
#[test]
fn a_grow_for_a_write_never_cuts_off_what_another_has_brought() {
    let (ctx, disk, backend) = held_truncates(4096);
    let first = start_truncate(&ctx, &backend, 16384);
    let (done, grower) = (Rc::new(Cell::new(false)), backend.clone());
    let seen = Rc::clone(&done);
    ctx.spawn("grow", move |co| {
        let how = Truncate { zero: true, ..Truncate::default() };
        grower.co_grow_with(co, 8192, how).unwrap();
        seen.set(true);
    });
    assert!(disk.release());
    while ctx.try_poll() {}
    assert_eq!((first.get(), done.get(), backend.length().unwrap()), (true, true, 16384));
    assert_eq!(disk.take_ops(), [Op::Truncate(16384)]);
}

/// It waits in a drain, and the disk is longer when that ends.
#[test]
fn a_grow_that_waits_in_a_drain_is_looked_at_again() {
    let (ctx, disk, backend) = held_truncates(4096);
    let node = backend.node().unwrap();
    let section = node.drain(&ctx);
    // In this order they go on.
    backend.aio_pwritev(&ctx, 12288, vec![7; 512], PLAIN, |_, result, _| result.unwrap());
    let second = start_truncate(&ctx, &backend, 8192);
    let below = Rc::new(Child::new("file", ChildRole::FILTER, Arc::clone(&node)));
    ctx.spawn("another driver", move |co| {
        below.co_truncate(co, 16384, Truncate::default()).unwrap()
    });
    assert!(disk.release());
    while ctx.try_poll() {}
    assert_eq!((node.length(), second.get()), (16384, false));
    disk.take_ops();
    drop(section);
    while ctx.try_poll() {}
    assert_eq!(
        disk.take_ops(),
        [Op::Write(12288, 512, PLAIN)],
        "a shrink while a write is in flight"
    );
    while !second.get() {
        disk.release();
        ctx.try_poll();
    }
    assert_eq!(node.length(), 8192);
}

/// Another user of what is below a filter writes there.
#[test]
fn a_shrink_through_a_filter_waits_for_others_below_it() {
    let (ctx, disk, backend) = held_truncates(8192);
    let raw = BlockNode::new("raw", Raw::new(backend.node().unwrap()));
    let above = BlockBackend::new(&ctx, "above", raw);
    backend.aio_pwritev(&ctx, 4096, vec![7; 512], PLAIN, |_, result, _| result.unwrap());
    let done = start_truncate(&ctx, &above, 4096);
    while ctx.try_poll() {}
    assert_eq!(disk.take_ops(), [Op::Write(4096, 512, PLAIN)]);
    while !done.get() {
        disk.release();
        ctx.try_poll();
    }
    assert_eq!(disk.take_ops(), [Op::Truncate(4096)]);
}
