//! Write-zeroes and discard within a driver's limits.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut, Wanted};
use coblk_block::{
    BlockBackend, BlockDriver, BlockLimits, BlockNode, MAX_LENGTH, ReadFlags, WriteFlags, ZeroFlags,
};

use crate::util::disk::{DISCARDED, Disk, OnDisk, Op, Verdict};
use crate::util::errno;

const PLAIN: WriteFlags = WriteFlags::empty();
const ANY: ZeroFlags = ZeroFlags::empty();

fn set_up(length: u64, limits: BlockLimits) -> (AioContext, Arc<Disk>, BlockBackend) {
    let ctx = AioContext::for_test().unwrap();
    let disk = Disk::new(length, limits);
    disk.fill(1);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    (ctx, disk, backend)
}

fn refuse_zeroes(disk: &Disk) {
    disk.judge(|op| match op {
        Op::Zeroes(..) => Verdict::Fail(libc::ENOTSUP),
        _ => Verdict::Go,
    });
}

#[track_caller]
fn assert_zero_exactly(disk: &Disk, range: std::ops::Range<usize>) {
    let mut expected = vec![1; disk.data().len()];
    expected[range].fill(0);
    assert!(disk.data() == expected);
}

#[test]
fn c81_zeroes_are_written_where_the_driver_has_no_way_at_most_16_mib_at_once() {
    const MIB: u64 = 1 << 20;
    let (ctx, disk, backend) = set_up(48 * MIB, BlockLimits::default());
    refuse_zeroes(&disk);
    backend.pwrite_zeroes(&ctx, MIB + 1, 40 * MIB, ANY).unwrap();
    assert_eq!(
        disk.take_ops(),
        [
            Op::Zeroes(MIB + 1, 40 * MIB, ANY),
            Op::Write(MIB + 1, 16 * MIB, PLAIN),
            Op::Write(17 * MIB + 1, 16 * MIB, PLAIN),
            Op::Write(33 * MIB + 1, 8 * MIB, PLAIN),
        ]
    );
    assert_zero_exactly(&disk, (MIB + 1) as usize..(41 * MIB + 1) as usize);
}

#[test]
fn c81_no_fallback_fails_with_enotsup_and_writes_nothing() {
    let limits = BlockLimits { request_alignment: 512, ..BlockLimits::default() };
    let (ctx, disk, backend) = set_up(64 << 10, limits);
    refuse_zeroes(&disk);
    for (offset, bytes) in [(0, 4096), (100, 4096), (100, 10)] {
        let result = backend.pwrite_zeroes(&ctx, offset, bytes, ZeroFlags::NO_FALLBACK);
        assert_eq!(errno(result), libc::ENOTSUP);
    }
    assert_zero_exactly(&disk, 0..0);
    assert!(disk.take_ops().iter().all(|op| matches!(op, Op::Zeroes(..))));
}

#[test]
fn c81_disabled_discard_succeeds_and_does_nothing() {
    let (ctx, disk, backend) = set_up(64 << 10, BlockLimits::default());
    let node = backend.node().unwrap();
    assert!(node.is_discard_enabled());
    node.set_discard_enabled(false);
    backend.pdiscard(&ctx, 0, 4096).unwrap();
    assert_eq!(disk.take_ops(), []);
    backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::MAY_UNMAP).unwrap();
    node.set_discard_enabled(true);
    backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::MAY_UNMAP).unwrap();
    backend.pdiscard(&ctx, 0, 4096).unwrap();
    assert_eq!(
        disk.take_ops(),
        [Op::Zeroes(0, 4096, ANY), Op::Zeroes(0, 4096, ZeroFlags::MAY_UNMAP), Op::Discard(0, 4096)]
    );
}

#[test]
fn edges_of_zeroes_are_written_and_the_middle_is_cut() {
    let limits = BlockLimits {
        request_alignment: 512,
        pwrite_zeroes_alignment: 4096,
        max_pwrite_zeroes: 8192 + 512,
        ..BlockLimits::default()
    };
    let (ctx, disk, backend) = set_up(64 << 10, limits);
    backend.pwrite_zeroes(&ctx, 3000, 20000, ANY).unwrap();
    assert_eq!(
        disk.take_ops(),
        [
            Op::Zeroes(4096, 8192, ANY),
            Op::Zeroes(12288, 8192, ANY),
            // 3000..4096: its first block has an edge.
            Op::Read(2560, 512),
            Op::Write(2560, 1536, PLAIN),
            // 20480..23000: its last one has.
            Op::Read(22528, 512),
            Op::Write(20480, 2560, PLAIN),
        ]
    );
    assert_zero_exactly(&disk, 3000..23000);
}

#[test]
fn zeroes_wait_for_a_write_that_pads_its_way_through_them() {
    let limits = BlockLimits { request_alignment: 512, ..BlockLimits::default() };
    let (ctx, disk, backend) = set_up(64 << 10, limits);
    disk.judge(|op| if op == Op::Read(0, 512) { Verdict::Hold } else { Verdict::Go });
    backend.aio_pwritev(&ctx, 10, vec![7; 10], PLAIN, |_, result, _| result.unwrap());
    backend.aio_pwrite_zeroes(&ctx, 0, 4096, ANY, |_, result| result.unwrap());
    backend.aio_pdiscard(&ctx, 0, 512, |_, result| result.unwrap());
    while ctx.try_poll() {}
    assert_eq!(disk.take_ops(), [Op::Read(0, 512)]);
    assert!(disk.release());
    while ctx.try_poll() {}
    let rest = [Op::Write(0, 512, PLAIN), Op::Zeroes(0, 4096, ANY), Op::Discard(0, 512)];
    assert_eq!(disk.take_ops(), rest);
}

#[test]
fn a_discard_gives_back_whole_units_and_ignores_its_edges() {
    let limits = BlockLimits {
        request_alignment: 512,
        pdiscard_alignment: 4096,
        max_pdiscard: 10000,
        ..BlockLimits::default()
    };
    let (ctx, disk, backend) = set_up(64 << 10, limits);
    backend.pdiscard(&ctx, 4095, 5 * 4096).unwrap();
    assert_eq!(disk.take_ops(), [Op::Discard(4096, 8192), Op::Discard(12288, 8192)]);
    let data = disk.data();
    assert!(
        (0..data.len())
            .all(|at| { data[at] == if (4096..20480).contains(&at) { DISCARDED } else { 1 } })
    );
    for (offset, bytes) in [(4097, 4096), (0, 0), (1, 5), (8191, 4096)] {
        backend.pdiscard(&ctx, offset, bytes).unwrap();
    }
    assert_eq!(disk.take_ops(), []);
}

#[test]
fn a_discard_that_is_not_supported_is_no_error() {
    let (ctx, disk, backend) = set_up(64 << 10, BlockLimits::default());
    disk.judge(|_| Verdict::Fail(libc::ENOTSUP));
    backend.pdiscard(&ctx, 0, 4096).unwrap();
    disk.judge(|_| Verdict::Fail(libc::EIO));
    assert_eq!(errno(backend.pdiscard(&ctx, 0, 4096)), libc::EIO);
    assert_eq!(errno(backend.pdiscard(&ctx, 64 << 10, 1)), libc::EIO);
    assert_eq!(errno(backend.pwrite_zeroes(&ctx, u64::MAX, 1, ANY)), libc::EIO);
}

#[test]
#[should_panic(expected = "impossible limits")]
fn limits_that_contradict_themselves_are_a_bug_of_the_driver() {
    let limits =
        BlockLimits { request_alignment: 4096, max_transfer: 512, ..BlockLimits::default() };
    let (ctx, _disk, backend) = set_up(64 << 10, limits);
    let _ = backend.pwritev(&ctx, 0, &IoVector::from(&[0u8; 4096][..]), PLAIN);
}

/// What does not fit the driver's units is written, but no more of it than costs nothing.
#[test]
fn fast_zeroes_with_long_edges_are_not_fast() {
    let ctx = AioContext::for_test().unwrap();
    let limits = BlockLimits { pwrite_zeroes_alignment: 65536, ..BlockLimits::default() };
    let disk = Disk::new(1 << 20, limits);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
    let zero = |offset, bytes| backend.pwrite_zeroes(&ctx, offset, bytes, ZeroFlags::NO_FALLBACK);
    assert_eq!(errno(zero(65536 - 8192, 65536 + 8192)), libc::ENOTSUP);
    assert_eq!(errno(zero(65536, 65536 + 8192)), libc::ENOTSUP);
    assert_eq!(disk.take_ops(), [], "nothing has changed");
    zero(65536 - 4096, 65536 + 8192).unwrap();
    assert_eq!(disk.take_ops().len(), 3);
}

#[test]
fn a_long_request_ends_with_its_piece_when_it_is_wanted_no_longer() {
    let ctx = AioContext::for_test().unwrap();
    // A driver with a way of its own for pieces of 4 KiB, and discards of the same.
    let limits =
        BlockLimits { max_pwrite_zeroes: 4096, max_pdiscard: 4096, ..BlockLimits::default() };
    for kind in ["zeroes", "discard"] {
        let disk = Disk::new(1 << 20, limits);
        let backend =
            BlockBackend::new(&ctx, "drive", BlockNode::new("disk", OnDisk(disk.clone())));
        let wanted = Wanted::new();
        let (gone, mut pieces) = (Rc::new(Cell::new(0)), 0);
        disk.judge(move |_| {
            pieces += 1;
            if pieces == 3 { Verdict::Hold } else { Verdict::Go }
        });
        let (own, told) = (wanted.clone(), Rc::clone(&gone));
        let request = backend.clone();
        ctx.spawn("request", move |co| {
            let result = co.while_wanted(&own, || match kind {
                "zeroes" => request.co_pwrite_zeroes(co, 0, 1 << 20, ZeroFlags::empty()),
                _ => request.co_pdiscard(co, 0, 1 << 20),
            });
            told.set(errno(result));
        });
        while ctx.try_poll() {}
        assert_eq!((disk.held(), gone.get()), (1, 0), "{kind}");
        wanted.give_up();
        assert!(disk.release());
        ctx.run_until(|| gone.get() != 0);
        assert_eq!((gone.get(), disk.take_ops().len()), (libc::ECANCELED, 3), "{kind}");
    }
}

/// A disk of no bytes that takes any range, each in its time.
#[derive(Default)]
struct Endless {
    /// How long it takes for a request.
    time: Duration,
    calls: Arc<Mutex<Vec<(u64, u64)>>>,
    /// At so many requests its user goes.
    gives_up: Option<(usize, Gone)>,
}

type Gone = Box<dyn Fn() + Send + Sync>;

thread_local! {
    static WANTED: Wanted = Wanted::new();
}

impl Endless {
    fn request(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        co.sleep(self.time);
        let count = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((offset, bytes));
            calls.len()
        };
        if let Some((at, gone)) = &self.gives_up
            && *at == count
        {
            gone();
        }
        Ok(())
    }
}

impl BlockDriver for Endless {
    fn format_name(&self) -> &'static str {
        "endless"
    }
    fn length(&self) -> u64 {
        MAX_LENGTH
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn co_pwrite_zeroes(&self, co: &Co<'_>, at: u64, bytes: u64, _: ZeroFlags) -> io::Result<()> {
        self.request(co, at, bytes)
    }
    fn co_pdiscard(&self, co: &Co<'_>, at: u64, bytes: u64) -> io::Result<()> {
        self.request(co, at, bytes)
    }
}

/// A request of the whole length, by a backend on `disk`; its driver's calls.
fn whole(disk: Endless, discards: bool) -> (io::Result<()>, Vec<(u64, u64)>) {
    let ctx = AioContext::for_test().unwrap();
    let calls = Arc::clone(&disk.calls);
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", disk));
    let wanted = WANTED.with(Wanted::clone);
    let length = MAX_LENGTH;
    let result = ctx.run(|co| {
        co.while_wanted(&wanted, || match discards {
            true => backend.co_pdiscard(co, 0, length),
            false => backend.co_pwrite_zeroes(co, 0, length, ANY),
        })
    });
    let calls = calls.lock().unwrap().clone();
    (result, calls)
}

#[test]
fn a_request_of_2_to_the_63_ends_behind_the_step_at_hand_when_it_is_not_wanted() {
    for discards in [false, true] {
        let gone: Gone = Box::new(|| WANTED.with(Wanted::give_up));
        // A tenth of a second for each: it would take twenty years.
        let time = Duration::from_millis(100);
        let disk = Endless { time, gives_up: Some((3, gone)), ..Endless::default() };
        let thread = std::thread::spawn(move || whole(disk, discards));
        let (result, calls) = thread.join().unwrap();
        assert_eq!(errno(result), libc::ECANCELED);
        assert_eq!(calls, [(0, 1 << 30), (1 << 30, 1 << 30), (2 << 30, 1 << 30)]);
    }
}

#[test]
fn a_driver_that_is_quick_is_asked_for_more_each_time() {
    for discards in [false, true] {
        let (result, calls) = whole(Endless::default(), discards);
        result.unwrap();
        assert!((30..1000).contains(&calls.len()), "{} calls", calls.len());
        let end = calls.iter().fold(0, |at, (offset, bytes)| {
            assert_eq!(*offset, at);
            at + bytes
        });
        assert_eq!(end, MAX_LENGTH);
    }
}
