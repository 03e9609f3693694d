//! Requests that an export holds because of an error hold up nobody who stops a queue or changes the
//! memory: they go back into the queue, and are served when the export goes on.

mod util;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockNode, ErrorPolicies, ErrorPolicy};
use coblk_vhost_user_blk::VhostUserBlkOptions;
use coblk_virtio_blk::VirtioBlkConfig;
use util::Server;
use util::guest::{BLOCK, Guest, MEMORY_BYTES, READ, SIZE, UNTOUCHED, WRITE, negotiate};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// The block that cannot be written. It takes longer to fail than others to succeed.
const BAD: u64 = 5;

fn start() -> (Server, Rules) {
    let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
    let device = VirtioBlkConfig { error_policies: Some(policies), ..Default::default() };
    let options = VhostUserBlkOptions { device, ..Default::default() };
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

fn expect_three(guest: &mut Guest) {
    let mut answers = guest.wait_for(3);
    answers.sort_unstable();
    assert_eq!(answers, [(0, 0), (2, 0), (3, 0)]);
    assert_eq!(guest.data(3), 0xbb);
}

fn attach(server: &Server) -> (Frontend, Guest) {
    let mut front = negotiate(&server.socket, 0);
    let guest = Guest::new();
    guest.start(&mut front);
    (front, guest)
}

#[test]
fn held_requests_go_back_into_a_queue_that_stops() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let before = Instant::now();
    let base = front.get_vring_base(0).unwrap();
    assert!(before.elapsed() < Duration::from_secs(10), "it waits for nobody");
    assert_eq!(base, 1, "one was answered");
    for slot in [0, 2, 3] {
        assert_eq!(guest.status(slot), UNTOUCHED);
    }
    front.set_vring_base(0, base as u16).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
    // Taken again, and held again.
    guest.kick.write(1).unwrap();
    // Taken together, two neighbours are one request.
    wait_until_held(&server, 2);
    assert!(guest.reap().is_empty());
    resume(&server, &rules);
    expect_three(&mut guest);
    let image = std::fs::read(&server.image).unwrap();
    assert_eq!(image[BAD as usize * BLOCK], 0xaa);
    assert_eq!(image[(BAD as usize + 1) * BLOCK], 0xcc);
    front.set_vring_enable(0, false).unwrap();
}

#[test]
fn held_requests_leave_memory_that_is_taken_away() {
    let (server, rules) = start();
    let (front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    // While the queue runs, the memory is shown again, and waits for nobody.
    front.set_mem_table(&[guest.region()]).unwrap();
    // Taken together, two neighbours are one request.
    wait_until_held(&server, 2);
    assert!(guest.reap().is_empty());
    // The guest moves: the same contents in another file.
    let base = front.get_vring_base(0).unwrap();
    let moved = Guest::new();
    let mut contents = vec![0; MEMORY_BYTES];
    let old = guest.file.try_clone().unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&old, &mut contents, 0).unwrap();
    moved.store(0, &contents);
    front.set_mem_table(&[moved.region()]).unwrap();
    front.set_vring_base(0, base as u16).unwrap();
    front.set_vring_kick(0, &guest.kick).unwrap();
    (guest.file, guest.memory) = (moved.file, moved.memory);
    resume(&server, &rules);
    expect_three(&mut guest);
    let mut left = vec![0; MEMORY_BYTES];
    std::os::unix::fs::FileExt::read_exact_at(&old, &mut left, 0).unwrap();
    assert!(left == contents, "nothing was written there any more");
}

#[test]
fn held_requests_outlive_the_connection_in_the_log() {
    let (server, rules) = start();
    let mut guest = Guest::new();
    let mut front = negotiate(&server.socket, 0);
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    guest.start(&mut front);
    hold_three(&server, &mut guest);
    drop(front);
    let mut front = negotiate(&server.socket, 0);
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    guest.start(&mut front);
    resume(&server, &rules);
    expect_three(&mut guest);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    assert_eq!(guest.data(0), 0xaa);
}

#[test]
fn a_driver_that_resets_is_answered_nothing() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    front.reset_device().unwrap();
    assert!(guest.reap().is_empty(), "a driver that resets forgets what it has asked for");
    drop(front);
    // The export still stands. Nothing is left that could be answered when it goes on.
    let (_front, mut guest) = attach(&server);
    resume(&server, &rules);
    assert_eq!(guest.one(WRITE, BAD, 1), 0);
}
