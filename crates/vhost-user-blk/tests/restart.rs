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
    submitted: u64,
    answered: u64,
}

impl Guest {
    fn new(packed: bool) -> Guest {
        let inner = util::guest::Guest::with_ring(packed);
        let pending = [None; DEPTH];
        Guest { inner, packed, inflight: None, pending, submitted: 0, answered: 0 }
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

    /// Has as many in flight as there can be, and kicks. The blocks come in turn, and there are many: each is
    /// written by one request at a time.
    fn submit_all(&mut self, expected: &mut [u8]) {
        for slot in 0..DEPTH {
            if self.pending[slot].is_none() {
                let blocks = expected.len() as u64;
                let block = self.submitted % blocks;
                let value = (self.submitted / blocks + self.submitted) as u8;
                self.pending[slot] = Some(block);
                self.inner.submit(slot, WRITE, block, value);
                expected[block as usize] = value;
                self.submitted += 1;
            }
        }
        self.inner.kick.write(1).unwrap();
    }

    /// How many requests the daemon has taken, by its log, of those that were not answered.
    fn in_flight(&self) -> usize {
        let (_, log) = self.inflight.as_ref().expect("a daemon has made one");
        let slots = match self.packed {
            false => util::guest::taken(log).into_iter().map(|head| head / 3).collect(),
            true => util::guest::taken_packed(log),
        };
        slots.iter().filter(|slot| self.pending[**slot].is_some()).count()
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
    let mut expected = vec![0u8; util::DISK_BYTES as usize / BLOCK];
    let (mut guest, mut taken_up) = (Guest::new(packed), 0);
    for round in 0..rounds {
        let daemon = Daemon::start(directory.path(), &[]);
        let front = guest.connect(&directory.path().join("vhost.sock"));
        // What the one before has left is answered without a kick.
        guest.wait_for_all();
        let end = guest.answered + 200 + round % 7 * 50;
        let mut is_enough = false;
        util::wait_until("it is stopped with a request in flight", || {
            guest.submit_all(&mut expected);
            is_enough |= guest.answered >= end;
            if !is_enough {
                guest.reap();
                return false;
            }
            daemon.pause();
            guest.reap();
            let in_flight = guest.in_flight();
            if in_flight == 0 {
                daemon.go_on();
            }
            taken_up += in_flight;
            in_flight > 0
        });
        drop(daemon);
        drop(front);
    }
    let daemon = Daemon::start(directory.path(), &[]);
    let front = guest.connect(&directory.path().join("vhost.sock"));
    guest.wait_for_all();
    drop((front, daemon));
    assert_eq!(guest.answered, guest.submitted);
    let image = std::fs::read(&image).unwrap();
    for (block, value) in expected.iter().enumerate() {
        let data = &image[block * BLOCK..][..BLOCK];
        assert!(data.iter().all(|byte| byte == value), "block {block} is wrong");
    }
    println!(
        "{rounds} rounds, {} requests, {taken_up} in flight when it was killed",
        guest.answered
    );
}
