//! A request that takes long: what becomes of it when its front end goes.

mod util;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockLimits, BlockNode, ReadFlags, WriteFlags, ZeroFlags};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use util::guest::{
    Guest, INFLIGHT_BIT, SIZE, SKIP_DRAIN_BIT, UNTOUCHED, negotiate, negotiate_more, set_base,
    stop_without_drain, taken, taken_packed,
};
use util::{Server, wait_until};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

const PIECE: u64 = 1 << 20;
/// A thousand of them, which take longer than this test waits.
const SECTORS: u32 = 1 << 21;

/// Zeroes in pieces, each of which takes its time unless it is quick.
#[derive(Clone, Default)]
struct Slow {
    pieces: Arc<AtomicU64>,
    is_quick: Arc<AtomicBool>,
}

impl BlockDriver for Slow {
    fn format_name(&self) -> &'static str {
        "slow"
    }

    fn length(&self) -> u64 {
        u64::from(SECTORS) * 512
    }

    fn limits(&self) -> BlockLimits {
        BlockLimits { max_pwrite_zeroes: PIECE, ..BlockLimits::default() }
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

    fn co_pwrite_zeroes(&self, co: &Co<'_>, _: u64, _: u64, _: ZeroFlags) -> io::Result<()> {
        self.pieces.fetch_add(1, Ordering::SeqCst);
        if !self.is_quick.load(Ordering::SeqCst) {
            co.sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

#[test]
fn zeroes_of_a_front_end_that_has_gone_stay_in_its_log_and_are_done_for_the_next() {
    for io_threads in [0, 1] {
        let slow = Slow::default();
        let driver = slow.clone();
        let server = Server::start_on(VhostUserBlkOptions::default(), io_threads, |_| {
            BlockNode::new("slow", driver) //
        });
        let mut front = negotiate(&server.socket, 0);
        let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
        let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        let mut guest = Guest::new();
        guest.start(&mut front);
        guest.submit_zeroes(0, SECTORS);
        guest.kick.write(1).unwrap();
        wait_until("zeroes are written", || slow.pieces.load(Ordering::SeqCst) > 1);
        drop(front);
        // Not after all pieces.
        wait_until("the session ends", || !server.call(|_, export| export.is_in_use()));
        let pieces = slow.pieces.load(Ordering::SeqCst);
        assert!(pieces < u64::from(SECTORS) * 512 / PIECE, "all was written");
        assert_eq!(guest.status(0), UNTOUCHED);
        assert!(guest.reap().is_empty(), "a guest that lives would take it for an error");

        slow.is_quick.store(true, Ordering::SeqCst);
        let mut front = negotiate(&server.socket, 0);
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        guest.start(&mut front);
        assert_eq!(guest.wait_for(1), [(0, 0)]);
        let again = slow.pieces.load(Ordering::SeqCst) - pieces;
        assert!(again > 0, "it is done all over");
    }
}

/// The export is removed in mode hard, as at the end of a daemon, while its front end waits.
#[test]
fn zeroes_do_not_hold_up_the_removal_of_an_export() {
    let slow = Slow::default();
    let driver = slow.clone();
    let server = Server::start_on(VhostUserBlkOptions::default(), 1, |_| {
        BlockNode::new("slow", driver) //
    });
    let mut front = negotiate(&server.socket, 0);
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    let mut guest = Guest::new();
    guest.start(&mut front);
    guest.submit_zeroes(0, SECTORS);
    guest.kick.write(1).unwrap();
    wait_until("zeroes are written", || slow.pieces.load(Ordering::SeqCst) > 1);
    drop(server);
    let pieces = slow.pieces.load(Ordering::SeqCst);
    assert!(pieces < u64::from(SECTORS) * 512 / PIECE, "all was written");
    assert_eq!((guest.reap(), taken(&log)), (Vec::new(), vec![0]), "it stays in the log");
}

/// The front end stops the queue at once, and starts it again with the same log.
#[test]
fn zeroes_of_a_queue_that_stops_without_a_drain_stay_in_its_log() {
    let both = INFLIGHT_BIT | SKIP_DRAIN_BIT;
    for (bits, packed) in [(INFLIGHT_BIT, false), (both, false), (INFLIGHT_BIT, true), (both, true)]
    {
        let slow = Slow::default();
        let driver = slow.clone();
        let server = Server::start_on(VhostUserBlkOptions::default(), 0, |_| {
            BlockNode::new("slow", driver) //
        });
        let stream = UnixStream::connect(&server.socket).unwrap();
        let mut front = negotiate_more(stream.try_clone().unwrap(), bits, packed);
        let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
        let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        let mut guest = Guest::with_ring(packed);
        guest.start(&mut front);
        guest.submit_zeroes(0, SECTORS);
        guest.kick.write(1).unwrap();
        wait_until("zeroes are written", || slow.pieces.load(Ordering::SeqCst) > 1);
        let base = match bits & SKIP_DRAIN_BIT {
            0 => front.get_vring_base(0).unwrap(),
            _ => stop_without_drain(&stream, 0).unwrap(),
        };
        let pieces = slow.pieces.load(Ordering::SeqCst);
        assert!(pieces < u64::from(SECTORS) * 512 / PIECE, "all was written");
        assert!(guest.reap().is_empty() && guest.status(0) == UNTOUCHED);
        let in_log = if packed { taken_packed(&log) } else { taken(&log) };
        assert_eq!(in_log, [0]);

        slow.is_quick.store(true, Ordering::SeqCst);
        assert!(set_base(&stream, base));
        front.set_vring_kick(0, &guest.kick).unwrap();
        assert_eq!(guest.wait_for(1), [(0, 0)], "once");
        assert!(guest.reap().is_empty());
    }
}

#[test]
fn a_stop_without_a_drain_is_negotiated() {
    let server = Server::start(VhostUserBlkOptions::default(), 0);
    for bits in [0, INFLIGHT_BIT, SKIP_DRAIN_BIT] {
        let stream = UnixStream::connect(&server.socket).unwrap();
        let _front = negotiate_more(stream.try_clone().unwrap(), bits, false);
        assert!(stop_without_drain(&stream, 0).is_err(), "with {bits:#x}");
    }
}
