//! The file driver when system calls fail or fall short: contract lines 82 and 83. Faults come from
//! `strace`, which makes the calls of a whole process fail, and from simulated contexts.

use std::time::Duration;

use coblk::aio::SimulationOptions;
use coblk::aio::sys::faults::Faults;
use coblk::drivers::{Engine, File};
use coblk::{
    AioContext, BlockBackend, BlockNode, IoVector, IoVectorMut, ThreadPool, WriteFlags, ZeroFlags,
};
use coblk_tests::events::Recording;
use coblk_tests::images::{qemu_img_create, qemu_io, sparse_image};
use coblk_tests::random::Random;
use coblk_tests::sandbox::with_faults;
use coblk_tests::{errno, image_dir};

const MIB: u64 = 1 << 20;
const TARGET: &str = env!("CARGO_TARGET_TMPDIR");

/// A context with one worker: `strace` counts the calls of each thread for itself.
fn context_with_one_worker() -> AioContext {
    let pool = ThreadPool::new(1, 1).expect("limits that make sense");
    AioContext::test_builder().thread_pool(pool).build().expect("a context")
}

#[test]
fn c82_interrupted_calls_are_made_again() {
    let faults = [
        "preadv:error=EINTR:when=1+2",
        "pwritev:error=EAGAIN:when=1+2",
        "fdatasync:error=EINTR:when=1+2",
        "fallocate:error=EINTR:when=1+2",
    ];
    with_faults("c82_interrupted_calls_are_made_again", TARGET.as_ref(), &faults, |dir| {
        let image = sparse_image(dir, "disk.img", MIB);
        let ctx = context_with_one_worker();
        let file = File::options().in_place_reads(false).open(&image).expect("an image");
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
        for round in 1..=5u8 {
            let data = [round; 8192];
            let source = IoVector::from(&data[..]);
            backend.pwritev(&ctx, 4096, &source, WriteFlags::empty()).expect("a write");
            let mut back = [0; 8192];
            backend.preadv(&ctx, 4096, &mut IoVectorMut::from(&mut back[..])).expect("a read");
            assert_eq!(back, data);
            backend.flush(&ctx).expect("a flush");
            let flags = ZeroFlags::MAY_UNMAP | ZeroFlags::NO_FALLBACK;
            backend.pwrite_zeroes(&ctx, 8192, 4096, flags).expect("zeroes");
        }
    });
}

#[test]
fn c83_after_a_failed_sync_no_flush_succeeds() {
    // The kernel reports a lost page once, and has forgotten it when it is asked again.
    let test = "c83_after_a_failed_sync_no_flush_succeeds";
    with_faults(test, TARGET.as_ref(), &["fdatasync:error=EIO:when=2"], |dir| {
        let recording = Recording::begin();
        let image = sparse_image(dir, "disk.img", MIB);
        let ctx = context_with_one_worker();
        let file = File::options().open(&image).expect("an image");
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
        let data = [1; 4096];
        let write = |flags| backend.pwritev(&ctx, 0, &IoVector::from(&data[..]), flags);
        write(WriteFlags::empty()).expect("a write");
        backend.flush(&ctx).expect("the first flush");
        write(WriteFlags::empty()).expect("a write");
        for attempt in 0..3 {
            assert_eq!(errno(backend.flush(&ctx)), libc::EIO, "attempt {attempt}");
            assert_eq!(errno(write(WriteFlags::FUA)), libc::EIO, "attempt {attempt}");
            let zeroed = backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::FUA);
            assert_eq!(errno(zeroed), libc::EIO, "attempt {attempt}");
        }
        let told: Vec<_> = recording.take();
        let told = told.iter().filter(|event| event.field("message") == "fdatasync failed");
        assert_eq!(told.count(), 1, "it is told once");
        // What is not promised to last still works.
        write(WriteFlags::empty()).expect("a write");
        let mut back = [0; 4096];
        backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut back[..])).expect("a read");
    });
}

#[test]
fn c83_a_failed_sync_through_the_ring_counts_too() {
    let dir = image_dir!();
    for engine in [Engine::Threads, Engine::IoUring] {
        let image = sparse_image(dir.path(), "disk.img", MIB);
        let faults = Faults::default().error_per_mille(1000);
        let broken = AioContext::test_builder().simulated(SimulationOptions::new(1).faults(faults));
        let (broken, healthy) = (broken.build().expect("a context"), AioContext::for_test());
        let healthy = healthy.expect("a context");
        let file = File::options().engine(engine).open(&image).expect("an image");
        let node = BlockNode::new("disk", file);
        let before = BlockBackend::new(&healthy, "drive", node.clone());
        before.flush(&healthy).expect("a flush without faults");
        // Without a write there would be nothing to flush (contract: C79).
        let data = IoVector::from(&[7u8; 512][..]);
        before.pwritev(&healthy, 0, &data, WriteFlags::empty()).expect("a write without faults");
        let failing = BlockBackend::new(&broken, "drive", node);
        assert_eq!(errno(failing.flush(&broken)), libc::EIO, "{engine:?}");
        assert_eq!(errno(before.flush(&healthy)), libc::EIO, "{engine:?}: lost data, good flush");
    }
}

#[test]
fn c82_transfers_that_fall_short_go_on() {
    // In every engine, over many seeds: what is written arrives, what is read is right.
    let dir = image_dir!();
    let faults = Faults::default().short_per_mille(600).interrupted_per_mille(300);
    for engine in [Engine::Threads, Engine::IoUring] {
        for seed in 0..40 {
            let image = sparse_image(dir.path(), "disk.img", MIB + 100);
            let max_delay = Duration::from_micros(5);
            let options = SimulationOptions::new(seed).faults(faults).max_delay(max_delay);
            let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
            let file = File::options().engine(engine).open(&image).expect("an image");
            let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
            let mut data = vec![0; 50_000];
            Random::new(seed).fill(&mut data);
            let (first, second) = data.split_at(20_000);
            let mut source = IoVector::from(first);
            source.push(second);
            let offset = Random::new(seed).below(MIB - 50_000);
            backend.pwritev(&ctx, offset, &source, WriteFlags::FUA).expect("a write");
            let mut back = vec![0; 50_000];
            let (first, second) = back.split_at_mut(10_000);
            let mut target = IoVectorMut::from(first);
            target.push(second);
            backend.preadv(&ctx, offset, &mut target).expect("a read");
            assert!(back == data, "{engine:?}, seed {seed}");

            // The end of the file comes in several steps too, and then zeroes.
            let mut tail = vec![0xee; 4096];
            let at = backend.length().expect("a medium") - 4096;
            assert_eq!(at + 4096, MIB + 512);
            backend.preadv(&ctx, at, &mut IoVectorMut::from(&mut tail[..])).expect("a read");
            let zero = tail.iter().all(|byte| *byte == 0);
            assert!(zero || offset + 50_000 > at, "{engine:?}, seed {seed}: the end of the file");
        }
    }
}

#[test]
fn errors_of_the_system_reach_the_request() {
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", MIB);
    qemu_io(&image, &["write -P 7 0 1M"]);
    for engine in [Engine::Threads, Engine::IoUring] {
        for (faults, expected) in [
            (Faults::default().error_per_mille(1000), libc::EIO),
            (Faults::default().no_space_per_mille(1000), libc::ENOSPC),
        ] {
            let options = SimulationOptions::new(1).faults(faults);
            let ctx = AioContext::test_builder().simulated(options).build().expect("a context");
            let file = File::options().engine(engine).open(&image).expect("an image");
            let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
            let data = [1; 4096];
            let source = IoVector::from(&data[..]);
            let written = backend.pwritev(&ctx, 0, &source, WriteFlags::empty());
            assert_eq!(errno(written), expected, "{engine:?}");
            if expected == libc::EIO {
                let mut back = [0; 4096];
                let read = backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut back[..]));
                assert_eq!(errno(read), libc::EIO, "{engine:?}");
                let zeroed = backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::MAY_UNMAP);
                assert_eq!(errno(zeroed), libc::EIO, "{engine:?}");
                assert_eq!(errno(backend.pdiscard(&ctx, 0, 4096)), libc::EIO, "{engine:?}");
            }
            assert_eq!(backend.in_flight(), 0);
        }
    }
    qemu_io(&image, &["read -P 7 0 1M"]);
}
