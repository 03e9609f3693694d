//! Requests that are not whole blocks of their driver: padding, and the order of those that meet in
//! a block.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::drivers::{Engine, File};
use coblk_block::{BlockBackend, BlockLimits, BlockNode, WriteFlags};

use crate::util::disk::{Disk, OnDisk, Op, Verdict};
use crate::util::model::{self, Model};
use crate::util::{Seed, errno, simulated};

const PLAIN: WriteFlags = WriteFlags::empty();

fn blocks_of(request_alignment: u32) -> BlockLimits {
    BlockLimits { request_alignment, ..BlockLimits::default() }
}

/// A context, a disk of 64 blocks of 512 bytes, all ones, and a backend on it.
fn set_up() -> (AioContext, Arc<Disk>, BlockBackend) {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(64 * 512, blocks_of(512));
    disk.fill(1);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    (ctx, disk, backend)
}

/// Spawns a write of `bytes` times `byte` and notes its name when it has completed.
fn write_later(
    ctx: &AioContext,
    backend: &BlockBackend,
    done: &Rc<RefCell<Vec<u8>>>,
    offset: u64,
    bytes: usize,
    byte: u8,
) {
    let done = Rc::clone(done);
    backend.aio_pwritev(ctx, offset, vec![byte; bytes], PLAIN, move |_, result, _| {
        result.unwrap();
        done.borrow_mut().push(byte);
    });
}

fn poll_until_idle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

#[test]
fn a_read_gets_its_bytes_in_one_request_of_whole_blocks() {
    let (ctx, disk, backend) = set_up();
    let pattern: Vec<u8> = (0..64 * 512u32).map(|n| (n % 251) as u8).collect();
    backend.pwritev(&ctx, 0, &IoVector::from(&pattern[..]), PLAIN).unwrap();
    disk.take_ops();
    let mut data = vec![0u8; 3000];
    backend.preadv(&ctx, 700, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert_eq!(data, pattern[700..3700]);
    assert_eq!(disk.take_ops(), [Op::Read(512, 3584)]);
}

#[test]
fn c80_an_unaligned_write_reads_modifies_and_writes() {
    let (ctx, disk, backend) = set_up();
    // Edges far apart: each is read by itself.
    backend.pwritev(&ctx, 100, &IoVector::from(&[7u8; 2000][..]), PLAIN).unwrap();
    assert_eq!(disk.take_ops(), [Op::Read(0, 512), Op::Read(2048, 512), Op::Write(0, 2560, PLAIN)]);
    let data = disk.data();
    assert!(data[..100].iter().chain(&data[2100..]).all(|byte| *byte == 1));
    assert!(data[100..2100].iter().all(|byte| *byte == 7));
    // Edges that touch: one read.
    backend.pwritev(&ctx, 4600, &IoVector::from(&[8u8; 10][..]), PLAIN).unwrap();
    backend.pwritev(&ctx, 5000, &IoVector::from(&[8u8; 500][..]), PLAIN).unwrap();
    assert_eq!(
        disk.take_ops(),
        [
            Op::Read(4096, 512 * 2),
            Op::Write(4096, 512 * 2, PLAIN),
            Op::Read(4608, 1024),
            Op::Write(4608, 1024, PLAIN)
        ]
    );
    // One edge only.
    backend.pwritev(&ctx, 8192, &IoVector::from(&[9u8; 600][..]), PLAIN).unwrap();
    assert_eq!(disk.take_ops(), [Op::Read(8704, 512), Op::Write(8192, 1024, PLAIN)]);
}

#[test]
fn c80_a_failed_read_fails_the_write() {
    let (ctx, disk, backend) = set_up();
    disk.judge(|op| match op {
        Op::Read(2048, _) => Verdict::Fail(libc::EBADMSG),
        _ => Verdict::Go,
    });
    let result = backend.pwritev(&ctx, 100, &IoVector::from(&[7u8; 2000][..]), PLAIN);
    assert_eq!(errno(result), libc::EBADMSG);
    assert_eq!(disk.take_ops(), [Op::Read(0, 512), Op::Read(2048, 512)], "nothing is written");
    // It has left nothing behind for others to wait for.
    disk.judge(|_| Verdict::Go);
    backend.pwritev(&ctx, 100, &IoVector::from(&[7u8; 2000][..]), PLAIN).unwrap();
}

#[test]
fn c80_overlapping_ranges_are_serialised_first_come_first_served() {
    let (ctx, disk, backend) = set_up();
    let done = Rc::new(RefCell::new(Vec::new()));
    let mut first = true;
    disk.judge(move |_| if std::mem::take(&mut first) { Verdict::Hold } else { Verdict::Go });
    write_later(&ctx, &backend, &done, 10, 100, 2);
    // All of block 0, then another part of it, then block 1: the last has no reason to wait.
    write_later(&ctx, &backend, &done, 0, 512, 3);
    write_later(&ctx, &backend, &done, 200, 100, 4);
    write_later(&ctx, &backend, &done, 512, 512, 5);
    poll_until_idle(&ctx);
    assert_eq!(*done.borrow(), [5]);
    assert_eq!(disk.take_ops(), [Op::Read(0, 512), Op::Write(512, 512, PLAIN)]);
    assert!(disk.release());
    poll_until_idle(&ctx);
    assert_eq!(*done.borrow(), [5, 2, 3, 4]);
    let data = disk.data();
    assert!((0..512).all(|at| data[at] == if (200..300).contains(&at) { 4 } else { 3 }));
}

#[test]
fn c80_whole_blocks_may_overlap_and_wait_for_nobody() {
    let (ctx, disk, backend) = set_up();
    disk.judge(|op| if op == Op::Write(0, 1024, PLAIN) { Verdict::Hold } else { Verdict::Go });
    let done = Rc::new(RefCell::new(Vec::new()));
    write_later(&ctx, &backend, &done, 0, 1024, 2);
    write_later(&ctx, &backend, &done, 512, 1024, 3);
    poll_until_idle(&ctx);
    assert_eq!(*done.borrow(), [3]);
    // Reads do not wait for writes either.
    let mut data = [0u8; 20];
    backend.preadv(&ctx, 500, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert!(disk.release());
    poll_until_idle(&ctx);
    assert_eq!(*done.borrow(), [3, 2]);
}

#[test]
fn c80_a_waiting_request_that_is_unwound_lets_the_others_go() {
    let (ctx, disk, backend) = set_up();
    let node = backend.node().unwrap();
    disk.judge(|op| if op == Op::Read(0, 512) { Verdict::Hold } else { Verdict::Go });
    let done = Rc::new(RefCell::new(Vec::new()));
    write_later(&ctx, &backend, &done, 10, 10, 2);
    poll_until_idle(&ctx);
    // Another context waits behind it, and ends; a third waits behind both.
    let other = AioContext::for_test().unwrap();
    let theirs = BlockBackend::new(&other, "other", Arc::clone(&node));
    theirs.aio_pwritev(&other, 0, vec![3; 512], PLAIN, |_, _, _| panic!("it was unwound"));
    write_later(&ctx, &backend, &done, 20, 10, 4);
    drop(theirs);
    drop(other);
    disk.judge(|_| Verdict::Go);
    assert!(disk.release());
    poll_until_idle(&ctx);
    assert_eq!(*done.borrow(), [2, 4]);
    assert_eq!(disk.data()[..10], [1; 10]);
}

#[test]
fn c80_a_panicking_driver_leaves_nobody_waiting() {
    let (ctx, disk, backend) = set_up();
    disk.judge(|_| panic!("the driver is broken"));
    let failed = Rc::new(Cell::new(0));
    let seen = Rc::clone(&failed);
    backend.aio_pwritev(&ctx, 10, vec![2; 10], PLAIN, move |_, result, _| {
        seen.set(errno(result));
    });
    poll_until_idle(&ctx);
    assert_eq!(failed.get(), libc::EIO);
}

#[test]
fn a_device_may_end_inside_a_block() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(4096 + 512, blocks_of(4096));
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    backend.pwritev(&ctx, 4096, &IoVector::from(&[7u8; 512][..]), PLAIN).unwrap();
    let mut data = [0u8; 1024];
    backend.preadv(&ctx, 4096 - 512, &mut IoVectorMut::from(&mut data[..])).unwrap();
    assert_eq!((&data[..512], &data[512..]), (&[0u8; 512][..], &[7u8; 512][..]));
    assert_eq!(disk.data()[4096 + 512..], [0; 4096 - 512]);
    let beyond = backend.pwritev(&ctx, 4096, &IoVector::from(&[7u8; 513][..]), PLAIN);
    assert_eq!(errno(beyond), libc::EIO);
}

#[test]
fn small_ranges_and_small_drivers() {
    let ctx = AioContext::for_test().unwrap();
    let limits =
        BlockLimits { max_transfer: 1024, max_iov: 2, memory_alignment: 64, ..blocks_of(512) };
    let disk = Disk::new(64 * 512, limits);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    let data: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();
    let mut source = IoVector::new();
    data.chunks(7).for_each(|chunk| source.push(chunk));
    backend.pwritev(&ctx, 333, &source, PLAIN).unwrap();
    assert_eq!(disk.data()[333..5333], data);
    let mut back = vec![0u8; 5000];
    let mut target = IoVectorMut::new();
    back.chunks_mut(11).for_each(|chunk| target.push(chunk));
    backend.preadv(&ctx, 333, &mut target).unwrap();
    drop(target);
    assert_eq!(back, data);
}

#[test]
fn model_in_a_simulated_context() {
    for seed in 0..100 {
        let _seed = Seed(seed);
        let block = if seed % 2 == 0 { 512 } else { 4096 };
        let max_transfer = [1 << 30, u64::from(block), 3 * u64::from(block)][seed as usize % 3];
        let limits =
            BlockLimits { max_transfer, max_iov: 3, memory_alignment: 16, ..blocks_of(block) };
        let length = 16 * u64::from(block);
        let disk = Disk::new(length, limits);
        let ctx = simulated(seed);
        let backend =
            BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
        let may_fail = seed % 5 == 0;
        let mut random = fastrand::Rng::with_seed(seed);
        disk.judge(move |_| match may_fail && random.u8(..20) == 0 {
            true => Verdict::Fail(libc::EIO),
            false => Verdict::Go,
        });
        let longest_stripe = u64::from(block);
        let disk = Some(disk);
        let model =
            Model { seed, length, longest_stripe, authors: 12, requests_each: 40, may_fail, disk };
        model::run(&ctx, &backend, &model, 0..12);
    }
}

#[test]
fn model_from_several_contexts_on_one_node() {
    for seed in 0..8 {
        let _seed = Seed(seed);
        let disk = Disk::new(8 * 512, blocks_of(512));
        let node = BlockNode::new("disk", OnDisk(disk.clone()));
        let model = Model {
            seed,
            length: 8 * 512,
            longest_stripe: 400,
            authors: 12,
            requests_each: 300,
            may_fail: false,
            disk: Some(disk),
        };
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (node, model) = (Arc::clone(&node), &model);
                scope.spawn(move || {
                    let ctx = AioContext::for_test().unwrap();
                    let backend = BlockBackend::new(&ctx, "drive", node);
                    model::run(&ctx, &backend, model, thread * 4..thread * 4 + 4);
                });
            }
        });
    }
}

#[test]
fn model_on_a_real_file_with_o_direct() {
    for engine in [Engine::Threads, Engine::IoUring] {
        let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let length = 64 << 10;
        image.as_file().set_len(length).unwrap();
        let ctx = AioContext::for_test().unwrap();
        let driver = File::options().direct(true).engine(engine).open(image.path()).unwrap();
        let node = BlockNode::new("disk", driver);
        assert!(node.limits().request_alignment >= 512, "{:?}", node.limits());

        let backend = BlockBackend::new(&ctx, "drive", node);
        let model = Model {
            seed: 1,
            length,
            longest_stripe: 6000,
            authors: 16,
            requests_each: 60,
            may_fail: false,
            disk: None,
        };
        model::run(&ctx, &backend, &model, 0..16);
    }
}
