//! What the request path makes of a request so that it fits the driver, which the caller must not
//! notice: cut, copied, zeroes written.

use std::io;

use coblk::{
    AioContext, AlignedBuffer, BlockBackend, BlockLimits, BlockNode, IoVector, IoVectorMut,
    WriteFlags, ZeroFlags,
};
use coblk_tests::errno;
use coblk_tests::events::Recording;
use coblk_tests::probe::{Call, Probe};
use coblk_tests::random::Random;

const SIZE: usize = 4 << 20;

struct Scene {
    ctx: AioContext,
    backend: BlockBackend,
    probe: Probe,
}

fn scene(limits: BlockLimits) -> Scene {
    let ctx = AioContext::for_test().expect("a context");
    let probe = Probe::with_limits(SIZE, limits);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("node", probe.clone()));
    Scene { ctx, backend, probe }
}

fn limits(request_alignment: u32, memory_alignment: u32) -> BlockLimits {
    BlockLimits { request_alignment, memory_alignment, ..BlockLimits::default() }
}

impl Scene {
    fn write(&self, offset: u64, source: &IoVector<'_>) -> io::Result<()> {
        self.backend.pwritev(&self.ctx, offset, source, WriteFlags::empty())
    }

    fn read(&self, offset: u64, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        self.backend.preadv(&self.ctx, offset, target)
    }

    /// Writes vectors cut at `cuts` from random bytes, reads them back into vectors cut the other
    /// way round, and compares with the driver's memory. Returns what the driver was asked.
    fn there_and_back(&self, offset: u64, cuts: &[usize], seed: u64) -> Vec<Call> {
        let bytes: usize = cuts.iter().sum();
        let memory_alignment = 4096;
        let mut data = AlignedBuffer::new(bytes, memory_alignment).expect("memory");
        Random::new(seed).fill(&mut data);
        let mut source = IoVector::new();
        let mut rest = &data[..];
        for cut in cuts {
            let (range, after) = rest.split_at(*cut);
            source.push(range);
            rest = after;
        }
        self.write(offset, &source).expect("a write within the device");
        let from = offset as usize;
        assert!(self.probe.memory()[from..from + bytes] == data[..], "what was written");

        let mut back = AlignedBuffer::new(bytes, memory_alignment).expect("memory");
        let mut target = IoVectorMut::new();
        let mut rest = &mut back[..];
        for cut in cuts.iter().rev() {
            let (range, after) = rest.split_at_mut(*cut);
            target.push(range);
            rest = after;
        }
        self.read(offset, &mut target).expect("a read within the device");
        assert!(back[..] == data[..], "what was read");
        self.probe.take_calls()
    }
}

#[test]
fn a_long_request_is_cut_at_the_longest_transfer() {
    let scene = scene(BlockLimits { max_transfer: 1000, ..limits(512, 1) });
    let calls = scene.there_and_back(512, &[2048], 1);
    let expected = [
        Call::Write(512, vec![512], false),
        Call::Write(1024, vec![512], false),
        Call::Write(1536, vec![512], false),
        Call::Write(2048, vec![512], false),
        Call::Read(512, vec![512]),
        Call::Read(1024, vec![512]),
        Call::Read(1536, vec![512]),
        Call::Read(2048, vec![512]),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn a_vector_of_many_ranges_is_cut_at_the_most_ranges() {
    let scene = scene(BlockLimits { max_iov: 2, ..BlockLimits::default() });
    let calls = scene.there_and_back(7, &[10, 20, 30, 40, 50], 2);
    let expected = [
        Call::Write(7, vec![10, 20], false),
        Call::Write(37, vec![30, 40], false),
        Call::Write(107, vec![50], false),
        Call::Read(7, vec![50, 40]),
        Call::Read(97, vec![30, 20]),
        Call::Read(147, vec![10]),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn a_request_that_fits_reaches_the_driver_as_it_is() {
    let scene = scene(BlockLimits { max_transfer: 4096, max_iov: 3, ..limits(512, 512) });
    let calls = scene.there_and_back(1024, &[512, 3072, 512], 3);
    let lengths = vec![512, 3072, 512];
    assert_eq!(calls, [Call::Write(1024, lengths.clone(), false), Call::Read(1024, lengths)]);
}

#[test]
fn memory_at_the_wrong_address_is_copied() {
    // The probe asserts that what reaches it is aligned.
    let scene = scene(limits(512, 4096));
    let calls = scene.there_and_back(0, &[512, 512], 4);
    assert_eq!(calls, [Call::Write(0, vec![1024], false), Call::Read(0, vec![1024])]);
}

#[test]
fn ranges_of_the_wrong_length_are_copied() {
    // What happened: only the memory alignment was asked of the lengths. Where that is 4 and the
    // block size 512, as on many disks, O_DIRECT was given ranges of 100 bytes and refused them.
    let scene = scene(limits(512, 4));
    let calls = scene.there_and_back(0, &[100, 412], 5);
    assert_eq!(calls, [Call::Write(0, vec![512], false), Call::Read(0, vec![512])]);
}

#[test]
fn many_tiny_ranges_make_blocks() {
    let scene = scene(BlockLimits { max_iov: 4, max_transfer: 2048, ..limits(512, 512) });
    let calls = scene.there_and_back(512, &[16; 96], 6);
    let expected: Vec<Call> = (1..4)
        .map(|block| Call::Write(block * 512, vec![512], false))
        .chain((1..4).map(|block| Call::Read(block * 512, vec![512])))
        .collect();
    assert_eq!(calls, expected);
}

#[test]
fn a_long_copy_goes_in_parts() {
    let scene = scene(limits(512, 512));
    let mut cuts = vec![100, 412];
    cuts.push((5 << 19) - 512);
    let calls = scene.there_and_back(0, &cuts, 7);
    let parts = [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 1 << 19)];
    let writes = parts.map(|(offset, len)| Call::Write(offset, vec![len], false));
    let reads = parts.map(|(offset, len)| Call::Read(offset, vec![len]));
    assert_eq!(calls, [writes, reads].concat());
}

#[test]
fn random_vectors_through_random_limits() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let request_alignment = 1 << random.below(10);
        let limits = BlockLimits {
            request_alignment,
            memory_alignment: 1 << random.below(13),
            max_transfer: u64::from(request_alignment) + random.below(5000),
            max_iov: 1 + random.below(5) as usize,
            ..BlockLimits::default()
        };
        let block = limits.request_alignment as usize;
        let mut cuts: Vec<usize> =
            (0..=random.below(12)).map(|_| 1 + random.below(3000) as usize).collect();
        let bytes: usize = cuts.iter().sum();
        cuts.push(bytes.next_multiple_of(block) - bytes);
        let offset = random.below(1000) * block as u64;
        let calls = scene(limits).there_and_back(offset, &cuts, seed);
        let longest = limits.max_transfer.max(block as u64) as usize;
        for call in calls {
            let (Call::Write(at, lengths, _) | Call::Read(at, lengths)) = call else {
                panic!("seed {seed}: {call:?}")
            };
            let bytes: usize = lengths.iter().sum();
            let fits = lengths.len() <= limits.max_iov
                && bytes <= longest
                && at.is_multiple_of(block as u64)
                && lengths.iter().all(|len| len.is_multiple_of(block));
            assert!(fits, "seed {seed}, {limits:?}: {at} {lengths:?}");
        }
    }
}

#[test]
fn an_error_ends_a_request_that_was_cut() {
    let scene = scene(BlockLimits { max_transfer: 512, ..BlockLimits::default() });
    scene.probe.next_results(&[0, libc::ENOSPC]);
    let data = vec![1; 2048];
    assert_eq!(errno(scene.write(0, &IoVector::from(&data[..]))), libc::ENOSPC);
    assert_eq!(scene.probe.take_calls().len(), 2, "it went on after an error");
    scene.probe.next_results(&[0, 0, libc::EIO]);
    let mut back = vec![0; 2048];
    assert_eq!(errno(scene.read(0, &mut IoVectorMut::from(&mut back[..]))), libc::EIO);
    assert_eq!(scene.probe.take_calls().len(), 3);
}

#[test]
fn every_part_of_a_durable_write_is_durable() {
    let limits =
        BlockLimits { max_transfer: 512, write_flags: WriteFlags::FUA, ..BlockLimits::default() };
    let scene = scene(limits);
    let data = vec![1; 1024];
    let source = IoVector::from(&data[..]);
    let written = scene.backend.pwritev(&scene.ctx, 0, &source, WriteFlags::FUA);
    written.expect("a write within the device");
    let expected = [Call::Write(0, vec![512], true), Call::Write(512, vec![512], true)];
    assert_eq!(scene.probe.take_calls(), expected);
}

#[test]
fn c81_write_zeroes_falls_back_to_writing_from_a_buffer() {
    let limits =
        BlockLimits { max_transfer: 1 << 19, write_flags: WriteFlags::FUA, ..limits(512, 4096) };
    let scene = scene(limits);
    scene.probe.memory().fill(0xff);
    let zeroed = |flags| scene.backend.pwrite_zeroes(&scene.ctx, 512, 3 << 19, flags);
    zeroed(ZeroFlags::empty()).expect("zeroes within the device");
    let part = |number: u64| Call::Write(512 + (number << 19), vec![1 << 19], false);
    let expected = [Call::Zeroes(512, 3 << 19), part(0), part(1), part(2)];
    assert_eq!(scene.probe.take_calls(), expected);
    {
        let memory = scene.probe.memory();
        let (zeroes, rest) = (512..512 + (3 << 19), [0..512, 512 + (3 << 19)..SIZE]);
        assert!(memory[zeroes].iter().all(|byte| *byte == 0));
        assert!(rest.into_iter().all(|range| memory[range].iter().all(|byte| *byte == 0xff)));
    }

    // Durable zeroes are written durably.
    zeroed(ZeroFlags::FUA).expect("zeroes within the device");
    let durable = |call: &Call| matches!(call, Call::Write(_, _, true) | Call::Zeroes(..));
    assert!(scene.probe.take_calls().iter().all(durable));
}

#[test]
fn c81_write_zeroes_without_a_fallback_is_enotsup() {
    let scene = scene(BlockLimits::default());
    let zero = |flags| scene.backend.pwrite_zeroes(&scene.ctx, 0, 4096, flags);
    assert_eq!(errno(zero(ZeroFlags::NO_FALLBACK)), libc::ENOTSUP);
    assert_eq!(scene.probe.take_calls(), [Call::Zeroes(0, 4096)]);
    // Other errors are no reason to fall back.
    scene.probe.next_results(&[libc::ENOSPC]);
    assert_eq!(errno(zero(ZeroFlags::empty())), libc::ENOSPC);
    assert_eq!(scene.probe.take_calls(), [Call::Zeroes(0, 4096)]);
    // And a driver that can is not asked twice.
    scene.probe.set_can_zero(true);
    zero(ZeroFlags::NO_FALLBACK | ZeroFlags::MAY_UNMAP).expect("zeroes within the device");
    assert_eq!(scene.probe.take_calls(), [Call::Zeroes(0, 4096)]);
}

#[test]
fn a_panic_in_a_driver_fails_its_request_and_the_loop_goes_on() {
    let recording = Recording::begin();
    let scene = scene(BlockLimits::default());
    scene.probe.set_panics(true);
    let result = std::rc::Rc::new(std::cell::Cell::new(None));
    let seen = std::rc::Rc::clone(&result);
    scene.backend.aio_preadv(&scene.ctx, 0, vec![0; 512], move |_, result, buffer| {
        seen.set(Some((errno(result), buffer.len())));
    });
    assert_eq!(result.get(), None, "completed inside submit");
    scene.ctx.run_until(|| result.get().is_some());
    assert_eq!(result.get(), Some((libc::EIO, 512)), "the buffer comes back with the error");
    assert_eq!(scene.backend.in_flight(), 0);
    let events = recording.take();
    let error = events.iter().find(|event| event.level == tracing::Level::ERROR);
    let error = error.expect("an event tells of the panic");
    assert_eq!(error.field("coroutine"), "blk_aio_preadv");

    scene.probe.set_panics(false);
    drop(scene.backend.drain(&scene.ctx));
    scene.there_and_back(0, &[512], 8);
}
