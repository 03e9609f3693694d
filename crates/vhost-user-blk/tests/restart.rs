//! A daemon that is killed under load, and its successor: no request is lost, none is answered
//! twice. The daemon is this test program, started again with a variable set.
//!
//! The front end is written here, on the messages of the vhost crate: the driver of libblkio cannot
//! reconnect. `COBLK_RESTART_ROUNDS` sets how often the daemon is killed (default 8).

mod util;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use util::daemon::Daemon;
use util::guest::{BLOCK, DEPTH, SIZE, WRITE, negotiate_rings};
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// VIRTIO_RING_F_EVENT_IDX. Without it the guest is told of each answer.
const EVENT_IDX: u64 = 1 << 29;

#[test]
fn daemon() {
    util::daemon::run_if_asked();
}

/// A guest that knows what it waits for, and keeps the log of it.
struct Guest {
    inner: util::guest::Guest,
    packed: bool,
    inflight: Option<(VhostUserInflight, File)>,
    /// For each slot, the block it writes, if it is in flight.
    pending: [Option<u64>; DEPTH],
    answered: u64,
}

impl Guest {
    fn new(packed: bool) -> Guest {
        let inner = util::guest::Guest::with_ring(packed);
        Guest { inner, packed, inflight: None, pending: [None; DEPTH], answered: 0 }
    }

    fn connect(&mut self, socket: &Path) -> Frontend {
        let mut front = negotiate_rings(socket, EVENT_IDX, self.packed);
        let layout = VhostUserInflight::new(0, 0, 1, SIZE as u16);
        let (layout, log) =
            self.inflight.get_or_insert_with(|| front.get_inflight_fd(&layout).unwrap());
        front.set_inflight_fd(layout, log.as_raw_fd()).unwrap();
        self.inner.start(&mut front);
        front
    }

    /// Writes `value` all over `block`.
    fn submit(&mut self, slot: usize, block: u64, value: u8) {
        assert!(self.pending[slot].replace(block).is_none());
        self.inner.submit(slot, WRITE, block, value);
    }

    /// Takes the answers that are there; the slots are free again.
    fn reap(&mut self) -> usize {
        let answers = self.inner.reap();
        for &(slot, status) in &answers {
            assert!(self.pending[slot].take().is_some(), "slot {slot} is answered twice");
            assert_eq!(status, 0);
        }
        self.answered += answers.len() as u64;
        answers.len()
    }

    fn wait_for_all(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.pending.iter().any(Option::is_some) {
            assert!(Instant::now() < end, "requests are lost: {:?}", self.pending);
            if self.reap() == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

#[test]
fn nothing_is_lost_or_answered_twice_when_the_daemon_is_killed() {
    kill_again_and_again(false);
}

#[test]
fn nothing_of_a_packed_queue_is_lost_or_answered_twice_when_the_daemon_is_killed() {
    kill_again_and_again(true);
}

fn kill_again_and_again(packed: bool) {
    let rounds = std::env::var("COBLK_RESTART_ROUNDS").map_or(8, |it| it.parse().unwrap());
    let directory = util::directory();
    let image = directory.path().join("disk");
    File::create(&image).unwrap().set_len(util::DISK_BYTES).unwrap();
    let blocks = util::DISK_BYTES / BLOCK as u64;
    let mut expected = vec![0u8; blocks as usize];
    let (mut guest, mut next, mut taken_up) = (Guest::new(packed), 0u64, 0);
    let mut round = 0;
    // A daemon that is quick may have answered all when it is killed.
    while round < rounds || taken_up == 0 && round < 20 * rounds {
        let daemon = Daemon::start(directory.path(), &[]);
        let front = guest.connect(&directory.path().join("vhost.sock"));
        // What the one before has left is answered without a kick.
        guest.wait_for_all();
        let end = Instant::now() + Duration::from_millis(20 + round % 7 * 5);
        while Instant::now() < end {
            for slot in 0..DEPTH {
                if guest.pending[slot].is_none() {
                    let (block, value) = (next % blocks, (next / blocks + next) as u8);
                    // In flight at most once: the blocks come in turn, and there are many.
                    guest.submit(slot, block, value);
                    expected[block as usize] = value;
                    next += 1;
                }
            }
            guest.inner.kick.write(1).unwrap();
            guest.reap();
        }
        drop(daemon);
        guest.reap();
        taken_up += guest.pending.iter().flatten().count();
        drop(front);
        round += 1;
    }
    let daemon = Daemon::start(directory.path(), &[]);
    let front = guest.connect(&directory.path().join("vhost.sock"));
    guest.wait_for_all();
    drop((front, daemon));
    assert_eq!(guest.answered, next);
    assert!(taken_up > 0, "it was never killed with a request in flight");
    let image = std::fs::read(&image).unwrap();
    for (block, value) in expected.iter().enumerate() {
        let data = &image[block * BLOCK..][..BLOCK];
        assert!(data.iter().all(|byte| byte == value), "block {block} is wrong");
    }
    println!("{round} rounds, {next} requests, {taken_up} in flight when it was killed");
}
