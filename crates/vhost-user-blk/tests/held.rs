//! Requests that an export holds because of an error hold up no front end that stops a queue or changes the
//! memory. Each is answered once: when the export goes on, or with an error if nothing else could tell
//! the next one to serve it. The available ring, which is the driver's, is not written.

#[path = "held/packed.rs"]
mod packed;
mod util;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockNode, ErrorPolicies, ErrorPolicy, drivers};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use rustix::fs::{MemfdFlags, memfd_create};
use util::Server;
use util::guest::{
    BLOCK, Guest, INFLIGHT_BIT, MEMORY_BYTES, READ, SIZE, SKIP_DRAIN_BIT, UNTOUCHED, WRITE,
    negotiate, negotiate_more, stop_without_drain, taken,
};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// The block that cannot be written. It takes longer to fail than others to succeed.
const BAD: u64 = 5;

fn start() -> (Server, Rules) {
    let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
    let device = VirtioBlkConfig::default().error_policies(Some(policies));
    let options = VhostUserBlkOptions::new(device);
    let (rules, bad) = (Rules::new(1), BAD * BLOCK as u64);
    let rule = Rule::fail(libc::ENOSPC).within(bad..bad + 1).after(Duration::from_millis(30));
    rules.add(rule);
    let debug = rules.clone();
    let server = Server::start_on(options, 0, |image| {
        BlockNode::new("debug", BlkDebug::new(image, debug)) //
    });
    (server, rules)
}

fn wait_until_held(server: &Server, count: u64) {
    let held = || -> u64 {
        server.node.backends().iter().map(|backend| backend.statistics.held_requests()).sum()
    };
    let begin = Instant::now();
    while held() != count {
        assert!(begin.elapsed() < Duration::from_secs(20), "{} are held", held());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One write is held, one after it was answered, and two more are held because the export stands.
fn hold_three(server: &Server, guest: &mut Guest) {
    guest.submit(0, WRITE, BAD, 0xaa);
    guest.submit(1, WRITE, 9, 0xbb);
    guest.kick.write(1).unwrap();
    assert_eq!(guest.wait_for(1), [(1, 0)]);
    wait_until_held(server, 1);
    hold_two_more(server, guest);
}

/// The same, but the answered one came first.
fn hold_three_in_order(server: &Server, guest: &mut Guest) {
    assert_eq!(guest.one_in(1, WRITE, 9, 0xbb), 0);
    guest.submit(0, WRITE, BAD, 0xaa);
    guest.kick.write(1).unwrap();
    wait_until_held(server, 1);
    hold_two_more(server, guest);
}

fn hold_two_more(server: &Server, guest: &mut Guest) {
    guest.submit(2, WRITE, BAD + 1, 0xcc);
    guest.submit(3, READ, 9, 0);
    guest.kick.write(1).unwrap();
    wait_until_held(server, 3);
    assert!(guest.reap().is_empty());
}

fn resume(server: &Server, rules: &Rules) {
    rules.clear();
    server.call(|_, export| export.resume());
}

/// So many of the requests that were held are answered, all well.
fn expect(guest: &mut Guest, slots: &[usize]) {
    let mut answers = guest.wait_for(slots.len());
    answers.sort_unstable();
    assert_eq!(answers, slots.iter().map(|slot| (*slot, 0)).collect::<Vec<_>>());
    assert_eq!(guest.data(3), 0xbb);
}

fn attach(server: &Server) -> (Frontend, Guest) {
    let mut front = negotiate(&server.socket, 0);
    let guest = Guest::new();
    guest.start(&mut front);
    (front, guest)
}

/// [`attach`], with a log.
fn attach_logged(server: &Server) -> (Frontend, Guest, (VhostUserInflight, File)) {
    let mut front = negotiate(&server.socket, 0);
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    let guest = Guest::new();
    guest.start(&mut front);
    (front, guest, (layout, log))
}

/// How many requests a log marks as in flight.
fn marks(log: &File) -> usize {
    taken(log).len()
}

fn stop(front: &Frontend) -> u16 {
    let before = Instant::now();
    let base = front.get_vring_base(0).unwrap() as u16;
    assert!(before.elapsed() < Duration::from_secs(10), "it does not wait for a resume");
    base
}

fn go_on(front: &mut Frontend, guest: &Guest, base: u16) {
    front.set_vring_base(0, base).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
}

fn expect_both_blocks(server: &Server) {
    let image = std::fs::read(&server.image).unwrap();
    assert_eq!(image[BAD as usize * BLOCK], 0xaa);
    assert_eq!(image[(BAD as usize + 1) * BLOCK], 0xcc);
}

#[test]
fn held_requests_go_back_into_a_queue_that_stops() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three_in_order(&server, &mut guest);
    let ring = guest.available_ring();
    let base = stop(&front);
    assert_eq!(base, 1, "one was answered");
    for slot in [0, 2, 3] {
        assert_eq!(guest.status(slot), UNTOUCHED);
    }
    go_on(&mut front, &guest, base);
    // Taken again, and held again: two neighbours that are taken together are one request.
    wait_until_held(&server, 2);
    assert!(guest.reap().is_empty());
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    assert_eq!(guest.available_ring(), ring, "the ring is the driver's");
    expect_both_blocks(&server);
    front.set_vring_enable(0, false).unwrap();
}

/// The next one takes all from an index on. No index says "the first, but not the second".
#[test]
fn without_a_log_held_requests_fail_if_later_ones_were_answered() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let ring = guest.available_ring();
    let base = stop(&front);
    assert_eq!(base, 2, "one was answered well, and one fails now");
    assert_eq!(guest.reap(), [(0, 1)]);
    assert!(guest.call.read().is_ok(), "the driver is told");
    go_on(&mut front, &guest, base);
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[2, 3]);
    assert_eq!(guest.available_ring(), ring, "the ring is the driver's");
    assert_eq!(std::fs::read(&server.image).unwrap()[BAD as usize * BLOCK], 0);
}

#[test]
fn with_a_log_held_requests_stay_in_it() {
    let (server, rules) = start();
    let (mut front, mut guest, (_, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    let ring = guest.available_ring();
    let base = stop(&front);
    assert_eq!(base, 4, "four were taken");
    assert_eq!(marks(&log), 3);
    assert!(guest.reap().is_empty());
    go_on(&mut front, &guest, base);
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    assert_eq!(guest.available_ring(), ring, "the ring is the driver's");
    expect_both_blocks(&server);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    front.get_vring_base(0).unwrap();
    assert_eq!(marks(&log), 0);
}

#[test]
fn held_requests_leave_memory_that_is_taken_away() {
    let (server, rules) = start();
    let (front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let ring = guest.available_ring();
    // While the queue runs, the memory is shown again, and waits for no request.
    front.set_mem_table(&[guest.region()]).unwrap();
    // Taken together, two neighbours are one request.
    wait_until_held(&server, 2);
    assert!(guest.reap().is_empty());
    // The guest moves: the same contents in another file.
    let moved = Guest::new();
    let mut contents = vec![0; MEMORY_BYTES];
    let old = guest.file.try_clone().unwrap();
    old.read_exact_at(&mut contents, 0).unwrap();
    moved.store(0, &contents);
    front.set_mem_table(&[moved.region()]).unwrap();
    (guest.file, guest.memory) = (moved.file, moved.memory);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    assert_eq!(guest.available_ring(), ring, "the ring is the driver's");
    expect_both_blocks(&server);
    let mut left = vec![0; MEMORY_BYTES];
    old.read_exact_at(&mut left, 0).unwrap();
    assert!(left == contents, "nothing was written there any more");
}

#[test]
fn a_log_that_comes_late_knows_what_is_held() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    wait_until_held(&server, 2);
    assert_eq!(marks(&log), 3);
    let base = stop(&front);
    assert_eq!(base, 4);
    go_on(&mut front, &guest, base);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    expect_both_blocks(&server);
}

#[test]
fn held_requests_outlive_the_connection_in_the_log() {
    let (server, rules) = start();
    let (front, mut guest, (layout, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    drop(front);
    let mut front = negotiate(&server.socket, 0);
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    guest.start(&mut front);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    assert_eq!(guest.data(0), 0xaa);
}

/// The guest moves: its memory and its log are copied, and another daemon serves the same image.
#[test]
fn held_requests_move_to_another_daemon_with_the_log() {
    for bits in [INFLIGHT_BIT, INFLIGHT_BIT | SKIP_DRAIN_BIT] {
        let (from, rules) = start();
        let image = from.image.clone();
        let to = Server::start_on(VhostUserBlkOptions::default(), 1, |_| {
            BlockNode::new("disk", drivers::File::options().open(image).unwrap())
        });
        let stream = UnixStream::connect(&from.socket).unwrap();
        let mut front = negotiate_more(stream.try_clone().unwrap(), bits, false);
        let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
        let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        let mut guest = Guest::new();
        guest.start(&mut front);
        hold_three(&from, &mut guest);
        let base = match bits & SKIP_DRAIN_BIT {
            0 => u32::from(stop(&front)),
            _ => stop_without_drain(&stream, 0).unwrap(),
        };
        assert_eq!(base, 4, "four were taken");
        assert!(guest.reap().is_empty());

        let moved = Guest::new();
        let mut contents = vec![0; MEMORY_BYTES];
        guest.load_bytes(0, &mut contents);
        moved.store(0, &contents);
        (guest.file, guest.memory) = (moved.file, moved.memory);
        let mut contents = vec![0; log.metadata().unwrap().len() as usize];
        log.read_exact_at(&mut contents, 0).unwrap();
        let log = File::from(memfd_create("moved", MemfdFlags::CLOEXEC).unwrap());
        log.write_all_at(&contents, 0).unwrap();
        assert_eq!(marks(&log), 3);

        // The first daemon has nothing left to do.
        drop((front, stream));
        util::wait_until("the session ends", || !from.call(|_, export| export.is_in_use()));
        resume(&from, &rules);
        assert_eq!(std::fs::read(&from.image).unwrap()[BAD as usize * BLOCK], 0);
        let mut front = negotiate(&to.socket, 0);
        front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
        guest.start_at(&mut front, base as u16);
        expect(&mut guest, &[0, 2, 3]);
        expect_both_blocks(&from);
        front.get_vring_base(0).unwrap();
        assert_eq!(marks(&log), 0);
    }
}

/// Also when the front end loses its connection because of what it said.
#[test]
fn without_a_log_held_requests_fail_or_go_back_when_the_connection_ends() {
    for wrong_region in [false, true] {
        let (server, rules) = start();
        let (mut front, mut guest) = attach(&server);
        hold_three(&server, &mut guest);
        if wrong_region {
            // Overlaps the one that there is.
            assert!(front.add_mem_region(&guest.region()).is_err());
        }
        drop(front);
        assert_eq!(guest.wait_for(1), [(0, 1)]);
        let mut front = negotiate(&server.socket, 0);
        // At the index where a driver that knows nothing else goes on: that of the used ring.
        guest.start(&mut front);
        wait_until_held(&server, 2);
        resume(&server, &rules);
        expect(&mut guest, &[2, 3]);
    }
}

#[test]
fn a_driver_that_resets_is_answered_nothing() {
    let (server, rules) = start();
    let (mut front, mut guest, (_, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    front.reset_device().unwrap();
    assert!(guest.reap().is_empty(), "a driver that resets forgets what it has asked for");
    assert_eq!(marks(&log), 0);
    // A new driver, with the log that the old one had.
    guest.empty_rings(0);
    guest.lay_out(&front, 0);
    front.set_vring_kick(0, &guest.kick).unwrap();
    front.set_vring_enable(0, true).unwrap();
    guest.submit(5, READ, 9, 0);
    guest.kick.write(1).unwrap();
    wait_until_held(&server, 1);
    resume(&server, &rules);
    assert_eq!(guest.wait_for(1), [(5, 0)]);
    assert_eq!(guest.one(WRITE, BAD, 1), 0);
    assert_eq!(marks(&log), 0);
    drop(front);
    // Nothing is left that could be answered to another one.
    let (_front, mut guest) = attach(&server);
    assert_eq!(guest.one(WRITE, BAD, 1), 0);
}

/// Of a ring that was begun anew the request 5 alone is served, and no write of the old one.
fn expect_only_the_new_one(guest: &mut Guest) {
    assert_eq!(guest.wait_for(1), [(5, 0)]);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    assert_eq!(guest.data(0), 0, "the write that was held is forgotten");
}

/// One that stops the queues, resets, and starts them without telling us more.
#[test]
fn a_new_ring_does_not_serve_what_is_held_of_the_old_one() {
    let (server, rules) = start();
    let (mut front, mut guest, (_, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    stop(&front);
    assert_eq!(marks(&log), 3);
    guest.empty_rings(0);
    guest.submit(5, READ, 9, 0);
    go_on(&mut front, &guest, 0);
    wait_until_held(&server, 1);
    assert_eq!(marks(&log), 1);
    resume(&server, &rules);
    expect_only_the_new_one(&mut guest);
}
