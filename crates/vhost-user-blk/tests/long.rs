//! A request that takes long: what becomes of it when its front end goes.

mod util;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, BlockLimits, BlockNode, ReadFlags, WriteFlags, ZeroFlags};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use util::Server;
use util::guest::{Guest, SIZE, UNTOUCHED, negotiate};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

const PIECE: u64 = 1 << 20;
/// A thousand of them, which take longer than this test waits.
const SECTORS: u32 = 1 << 21;
const PATIENCE: Duration = Duration::from_secs(30);

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

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
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
