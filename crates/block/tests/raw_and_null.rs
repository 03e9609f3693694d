//! The drivers `raw`, `null-co` and `null-aio`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::drivers::{File, Null, Raw, RawError};
use coblk_block::{
    BlockBackend, BlockDriver, BlockLimits, BlockNode, Extent, ReadFlags, WriteFlags, ZeroFlags,
};

use crate::util::disk::{Disk, OnDisk, Op};
use crate::util::model::{self, Model};
use crate::util::{Seed, errno, simulated};

const PLAIN: WriteFlags = WriteFlags::empty();

fn blocks_of(request_alignment: u32) -> BlockLimits {
    BlockLimits { request_alignment, ..BlockLimits::default() }
}

/// A part of a disk of 64 blocks of 512 bytes.
fn part(offset: u64, size: Option<u64>) -> (AioContext, Arc<Disk>, BlockBackend) {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(64 * 512, blocks_of(512));
    let child = BlockNode::new("disk", OnDisk(disk.clone()));
    let raw = Raw::part(child, offset, size).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("raw", raw));
    (ctx, disk, backend)
}

#[test]
fn requests_are_passed_on_at_their_place() {
    let (ctx, disk, backend) = part(1024, Some(4096));
    backend.pwritev(&ctx, 512, &IoVector::from(&[7; 512][..]), PLAIN).unwrap();
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut [0; 1024][..])).unwrap();
    backend.pwrite_zeroes(&ctx, 1024, 512, ZeroFlags::MAY_UNMAP).unwrap();
    backend.pdiscard(&ctx, 3584, 512).unwrap();
    let expected = [
        Op::Write(1536, 512, PLAIN),
        Op::Read(1024, 1024),
        Op::Zeroes(2048, 512, ZeroFlags::MAY_UNMAP),
        Op::Discard(4608, 512),
    ];
    assert_eq!(disk.take_ops(), expected);
    // It ends where its size says, not where the disk does.
    assert_eq!(backend.length().unwrap(), 4096);
    let beyond = backend.pwritev(&ctx, 4095, &IoVector::from(&[7; 2][..]), PLAIN);
    assert_eq!(errno(beyond), libc::EIO);
    assert_eq!(disk.take_ops(), []);
}

#[test]
fn memory_is_passed_on_without_a_copy() {
    struct Addresses(std::sync::Mutex<Vec<usize>>);
    impl BlockDriver for &'static Addresses {
        fn format_name(&self) -> &'static str {
            "addresses"
        }
        fn length(&self) -> u64 {
            1 << 20
        }
        fn co_preadv(
            &self,
            _co: &coblk_aio::Co<'_>,
            _offset: u64,
            target: &mut IoVectorMut<'_>,
            _flags: ReadFlags,
        ) -> std::io::Result<()> {
            self.0.lock().unwrap().extend(target.as_iovecs().iter().map(|it| it.iov_base as usize));
            Ok(())
        }
        fn co_pwritev(
            &self,
            _co: &coblk_aio::Co<'_>,
            _offset: u64,
            source: &IoVector<'_>,
            _flags: WriteFlags,
        ) -> std::io::Result<()> {
            self.0.lock().unwrap().extend(source.as_iovecs().iter().map(|it| it.iov_base as usize));
            Ok(())
        }
        fn co_flush(&self, _co: &coblk_aio::Co<'_>) -> std::io::Result<()> {
            Ok(())
        }
    }
    let seen: &'static Addresses = Box::leak(Box::new(Addresses(Default::default())));
    let ctx = AioContext::for_test().unwrap();
    let raw = Raw::part(BlockNode::new("below", seen), 77, None).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("raw", raw));
    let mut memory = [0u8; 100];
    backend.preadv(&ctx, 3, &mut IoVectorMut::from(&mut memory[..])).unwrap();
    backend.pwritev(&ctx, 3, &IoVector::from(&memory[1..]), PLAIN).unwrap();
    let at = memory.as_ptr() as usize;
    assert_eq!(*seen.0.lock().unwrap(), [at, at + 1]);
}

#[test]
fn any_offset_is_right_whatever_the_blocks_below() {
    for seed in 0..30 {
        let _seed = Seed(seed);
        let ctx = simulated(seed);
        let offset = [0, 1, 100, 511, 512, 700][seed as usize % 6];
        let length = 16 << 10;
        let disk = Disk::new(length + offset + 300, blocks_of(512));
        let child = BlockNode::new("disk", OnDisk(disk.clone()));
        let raw = Raw::part(child, offset, Some(length)).unwrap();
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("raw", raw));
        let model = Model {
            seed,
            length,
            longest_stripe: 1500,
            authors: 8,
            requests_each: 30,
            may_fail: false,
            disk: None,
        };
        model::run(&ctx, &backend, &model, 0..8);
        let data = disk.data();
        let end = (offset + length) as usize;
        assert!(data[..offset as usize].iter().chain(&data[end..]).all(|byte| *byte == 0));
    }
}

#[test]
fn a_part_must_lie_within_the_node() {
    let disk = || BlockNode::new("disk", Null::new(10_240));
    let fails = |offset, size| Raw::part(disk(), offset, size).err().map(|it| it.to_string());
    assert_eq!(fails(10_240, None), None);
    assert_eq!(fails(100, Some(512)), None);
    assert_eq!(fails(0, Some(0)), None);
    let expected = "offset 10241 is beyond the end of node 'disk', which has 10240 bytes";
    assert_eq!(fails(10_241, None).unwrap(), expected);
    assert!(matches!(
        Raw::part(disk(), u64::MAX, Some(512)),
        Err(RawError::OffsetBeyondEnd { offset: u64::MAX, length: 10_240, .. })
    ));
    assert_eq!(fails(0, Some(1000)).unwrap(), "size 1000 is not a multiple of 512");
    let expected =
        "offset 512 and size 10240 reach beyond the end of node 'disk', which has 10240 bytes";
    assert_eq!(fails(512, Some(10_240)).unwrap(), expected);
    assert!(fails(512, Some(u64::MAX - 511)).is_some());
}

#[test]
fn the_length_follows_the_node_below_unless_it_is_fixed() {
    let (ctx, disk, backend) = part(1000, None);
    assert_eq!(backend.length().unwrap(), 64 * 512 - 1000);
    backend.truncate(&ctx, 5000).unwrap();
    assert_eq!(disk.take_ops(), [Op::Truncate(6000)]);
    assert_eq!(backend.length().unwrap(), 5000);
    assert_eq!(errno(backend.truncate(&ctx, i64::MAX as u64)), libc::EFBIG);
    let (ctx, disk, backend) = part(1000, Some(512));
    assert_eq!(errno(backend.truncate(&ctx, 1024)), libc::ENOTSUP);
    assert_eq!(disk.take_ops(), []);
    assert_eq!(backend.length().unwrap(), 512);
}

#[test]
fn a_file_that_grows_or_shrinks_is_seen_through() {
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    image.as_file().set_len(8192).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let file = BlockNode::new("file", File::options().open(image.path()).unwrap());
    let raw = BlockNode::new("raw", Raw::part(Arc::clone(&file), 4096, None).unwrap());
    let part = BlockNode::new("part", Raw::part(file, 4096, Some(4096)).unwrap());
    let look = |node: &BlockNode| ctx.run(|co| node.co_refresh_length(co)).unwrap();
    image.as_file().set_len(16384).unwrap();
    assert_eq!(look(&raw), 12288);
    assert_eq!(raw.length(), 12288);
    assert_eq!(look(&part), 4096);
    image.as_file().set_len(1024).unwrap();
    assert_eq!((look(&raw), look(&part)), (0, 0));
    // What the part promised is gone.
    let part = BlockBackend::new(&ctx, "part", part);
    let read = part.preadv(&ctx, 0, &mut IoVectorMut::from(&mut [0; 512][..]));
    assert_eq!(errno(read), libc::EIO);
}

#[test]
fn block_status_is_that_of_the_place_below() {
    let image = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(image.path(), vec![7; 65536]).unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let ctx = AioContext::for_test().unwrap();
    let file = BlockNode::new("file", File::options().open(image.path()).unwrap());
    let raw = Raw::part(file, 61440, None).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("raw", raw));
    let status = |offset, bytes| backend.block_status(&ctx, offset, bytes).unwrap();
    let data = Extent::data(4096).stored_at(Some("file"), 61440);
    assert_eq!(status(0, 8192), data);
    let hole = Extent::hole(4096).stored_at(Some("file"), 65536);
    assert_eq!(status(4096, 4096), hole);
}

#[test]
fn null_requests_last_as_long_as_they_are_told() {
    let latency = Duration::from_millis(5);
    for null in [Null::new(1 << 20), Null::new(1 << 20).deferred(true)] {
        let ctx = simulated(1);
        let null = null.latency_ns(latency.as_nanos() as u64);
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("null", null));
        let ended = Rc::new(RefCell::new(Vec::new()));
        for number in 0..3u64 {
            let ended = Rc::clone(&ended);
            let done = move |ctx: &AioContext, result: std::io::Result<()>, _| {
                result.unwrap();
                ended.borrow_mut().push((number, ctx.now_ns()));
            };
            backend.aio_preadv(&ctx, number * 512, vec![0; 512], done);
        }
        let begin = ctx.now_ns();
        ctx.run_until(|| backend.in_flight() == 0);
        let ended = ended.borrow();
        // All at the same time, and none early.
        assert_eq!(ended.len(), 3);
        for (_, at) in &*ended {
            let took = at - begin;
            assert!((5_000_000..10_000_000).contains(&took), "{took} ns");
        }
    }
}

#[test]
fn the_longest_latency_is_no_overflow() {
    let ctx = AioContext::for_test().unwrap();
    let null = BlockNode::new("null", Null::new(4096).latency_ns(u64::MAX));
    let backend = BlockBackend::new(&ctx, "drive", null);
    backend.aio_preadv(&ctx, 0, vec![0; 512], |_, _, _| {});
    while ctx.try_poll() {}
    assert_eq!(backend.in_flight(), 1);
}

#[test]
fn null_that_reads_zeroes_says_so() {
    for null in [Null::new(1 << 20), Null::new(1 << 20).deferred(true)] {
        let ctx = AioContext::for_test().unwrap();
        let name = if null.format_name() == "null-co" { "co" } else { "aio" };
        let zeroes = BlockNode::new(name, null.clone().read_zeroes(true));
        let zeroes = BlockBackend::new(&ctx, "zeroes", zeroes);
        let mut data = [0xEE; 512];
        zeroes.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
        assert_eq!(data, [0; 512]);
        let status = zeroes.block_status(&ctx, 0, 4096).unwrap();
        assert_eq!(status, Extent::hole(4096));
        let plain = BlockBackend::new(&ctx, "plain", BlockNode::new("plain", null));
        data.fill(0xEE);
        plain.preadv(&ctx, 0, &mut IoVectorMut::from(&mut data[..])).unwrap();
        assert_eq!(data, [0xEE; 512]);
        let status = plain.block_status(&ctx, 0, 4096).unwrap();
        assert_eq!(status, Extent::data(4096));
    }
}
