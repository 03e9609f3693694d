//! The same of packed queues. There answers are written over descriptors, the early ones of held requests too.

use util::guest::{negotiate_rings, negotiate_rings_on, set_base};
use vhost::vhost_user::message::VhostUserHeaderFlag;

use super::*;

const WRAP: u16 = 1 << 15;

fn attach(server: &Server) -> (Frontend, Guest) {
    let mut front = negotiate_rings(&server.socket, 0, true);
    let guest = Guest::with_ring(true);
    guest.start(&mut front);
    (front, guest)
}

fn give_log(front: &mut Frontend) -> (VhostUserInflight, File) {
    let wanted = VhostUserInflight::new(0, 0, 1, SIZE as u16);
    let (layout, log) = front.get_inflight_fd(&wanted).unwrap();
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    (layout, log)
}

fn attach_logged(server: &Server) -> (Frontend, Guest, (VhostUserInflight, File)) {
    let mut front = negotiate_rings(&server.socket, 0, true);
    let log = give_log(&mut front);
    let guest = Guest::with_ring(true);
    guest.start(&mut front);
    (front, guest, log)
}

/// How many requests a log marks as in flight.
fn marks(log: &File) -> usize {
    let mut bytes = vec![0; 32 + 32 * SIZE];
    log.read_exact_at(&mut bytes, 0).unwrap();
    bytes[32..].chunks(32).filter(|entry| entry[0] != 0).count()
}

/// Both places at which a queue stops: that of the next descriptor, and that of the next answer.
fn stop(front: &Frontend) -> (u16, u16) {
    let before = Instant::now();
    let base = front.get_vring_base(0).unwrap();
    assert!(before.elapsed() < Duration::from_secs(10), "it does not wait for a resume");
    (base as u16, (base >> 16) as u16)
}

/// Requests of three descriptors each were taken; so many places on from the beginning.
fn after(requests: u16) -> u16 {
    WRAP | (3 * requests)
}

#[test]
fn held_requests_go_back_into_a_queue_that_stops() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three_in_order(&server, &mut guest);
    assert_eq!(stop(&front), (after(1), after(1)), "one was answered");
    for slot in [0, 2, 3] {
        assert_eq!(guest.status(slot), UNTOUCHED);
    }
    go_on(&mut front, &guest, after(1));
    // Taken again, and held again: two neighbours that are taken together are one request.
    wait_until_held(&server, 2);
    assert!(guest.reap().is_empty());
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    expect_both_blocks(&server);
}

/// The answer lies where the first one was.
#[test]
fn without_a_log_held_requests_fail_if_later_ones_were_answered() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    assert_eq!(stop(&front), (after(2), after(2)), "one was answered well, and one fails now");
    assert_eq!(guest.reap(), [(0, 1)]);
    go_on(&mut front, &guest, after(2));
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[2, 3]);
    assert_eq!(std::fs::read(&server.image).unwrap()[BAD as usize * BLOCK], 0);
}

#[test]
fn c94_with_a_log_held_requests_stay_in_it() {
    let (server, rules) = start();
    let (mut front, mut guest, (_, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    assert_eq!(stop(&front), (after(4), after(1)), "four were taken, one was answered");
    assert_eq!(marks(&log), 3);
    assert!(guest.reap().is_empty());
    go_on(&mut front, &guest, after(4));
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    expect_both_blocks(&server);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    front.get_vring_base(0).unwrap();
    assert_eq!(marks(&log), 0);
}

/// With the message of that name, and where GET_VRING_BASE does so, for a front end that knows no other.
#[test]
fn c94_a_stop_without_a_drain_leaves_held_requests_in_the_log() {
    for bits in [INFLIGHT_BIT, INFLIGHT_BIT | SKIP_DRAIN_BIT] {
        let (server, rules) = start();
        let stream = UnixStream::connect(&server.socket).unwrap();
        let mut front = negotiate_more(stream.try_clone().unwrap(), bits, true);
        let (_, log) = give_log(&mut front);
        let mut guest = Guest::with_ring(true);
        guest.start(&mut front);
        hold_three(&server, &mut guest);
        let base = match bits & SKIP_DRAIN_BIT {
            0 => front.get_vring_base(0).unwrap(),
            _ => stop_without_drain(&stream, 0).unwrap(),
        };
        assert_eq!(base, u32::from(after(4)) | u32::from(after(1)) << 16);
        assert_eq!(marks(&log), 3);
        assert!(set_base(&stream, base));
        front.set_vring_kick(0, &guest.kick).unwrap();
        wait_until_held(&server, 2);
        resume(&server, &rules);
        expect(&mut guest, &[0, 2, 3]);
        expect_both_blocks(&server);
    }
}

#[test]
fn held_requests_leave_memory_that_is_taken_away() {
    let (server, rules) = start();
    let (front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let moved = Guest::new();
    let mut contents = vec![0; MEMORY_BYTES];
    guest.load_bytes(0, &mut contents);
    moved.store(0, &contents);
    front.set_mem_table(&[moved.region()]).unwrap();
    (guest.file, guest.memory) = (moved.file, moved.memory);
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    expect_both_blocks(&server);
}

#[test]
fn a_log_that_comes_late_knows_what_is_held() {
    let (server, rules) = start();
    let (mut front, mut guest) = attach(&server);
    hold_three(&server, &mut guest);
    let (layout, log) = give_log(&mut front);
    wait_until_held(&server, 2);
    assert_eq!(marks(&log), 3);
    drop(front);
    let mut front = negotiate_rings(&server.socket, 0, true);
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    guest.start(&mut front);
    wait_until_held(&server, 2);
    resume(&server, &rules);
    expect(&mut guest, &[0, 2, 3]);
    expect_both_blocks(&server);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    assert_eq!(guest.data(0), 0xaa);
}

/// A driver that begins a new ring has forgotten what it asked for in the old one: with a reset, and without.
#[test]
fn a_new_ring_does_not_serve_what_is_held_of_the_old_one() {
    for resets in [false, true] {
        let (server, rules) = start();
        let (mut front, mut guest, (_, log)) = attach_logged(&server);
        hold_three(&server, &mut guest);
        if resets {
            let features = front.get_features().unwrap();
            front.reset_device().unwrap();
            assert_eq!(marks_in_use(&log), 0);
            front.set_features(features).unwrap();
        } else {
            stop(&front);
            assert_eq!(marks(&log), 3);
        }
        let new = Guest::with_ring(true);
        guest.store(0, &[0; 16 * SIZE]);
        guest.restart_packed(&new);
        guest.submit(5, READ, 9, 0);
        guest.lay_out(&front, WRAP);
        front.set_vring_kick(0, &guest.kick).unwrap();
        front.set_vring_enable(0, true).unwrap();
        wait_until_held(&server, 1);
        assert_eq!(marks(&log), 1);
        resume(&server, &rules);
        expect_only_the_new_one(&mut guest);
    }
}

/// The device has come round to the first descriptor, where new rings begin, but it owes answers.
#[test]
fn c94_a_new_ring_may_begin_where_the_old_one_has_come_to() {
    let (server, rules) = start();
    let stream = UnixStream::connect(&server.socket).unwrap();
    let mut front = negotiate_rings_on(stream.try_clone().unwrap(), 0, true);
    let (_, log) = give_log(&mut front);
    let mut guest = Guest::with_ring(true);
    guest.start(&mut front);
    // Two rounds, with the four that come, so that the wrap counter is that of the beginning.
    for _ in 0..2 * SIZE - 4 {
        assert_eq!(guest.one(READ, 9, 0), 0);
    }
    hold_three(&server, &mut guest);
    assert_eq!(stop(&front), (WRAP, SIZE as u16 - 9), "three have no answer");
    assert_eq!(marks(&log), 3);
    guest.store(0, &[0; 16 * SIZE]);
    guest.restart_packed(&Guest::with_ring(true));
    guest.submit(5, READ, 9, 0);
    assert!(set_base(&stream, u32::from(WRAP) | u32::from(WRAP) << 16));
    front.set_vring_kick(0, &guest.kick).unwrap();
    wait_until_held(&server, 1);
    assert_eq!(marks(&log), 1);
    resume(&server, &rules);
    expect_only_the_new_one(&mut guest);
}

/// A front end may reset before it has said of which kind the queues are.
#[test]
fn c94_a_reset_before_there_are_features_empties_the_log() {
    let (server, rules) = start();
    let (front, mut guest, (layout, log)) = attach_logged(&server);
    hold_three(&server, &mut guest);
    drop((front, guest));
    let mut front = Frontend::connect(&server.socket, 2).unwrap();
    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front.set_inflight_fd(&layout, log.as_raw_fd()).unwrap();
    assert_eq!(marks(&log), 3);
    front.reset_device().unwrap();
    assert_eq!(marks_in_use(&log), 0);
    resume(&server, &rules);
    front.set_features(features).unwrap();
    let mut guest = Guest::with_ring(true);
    guest.start(&mut front);
    assert_eq!(guest.one(READ, BAD, 0), 0);
    assert_eq!(guest.data(0), 0, "the write that was held is forgotten");
}

/// [`marks`], of a log that is one.
fn marks_in_use(log: &File) -> usize {
    let mut version = [0; 2];
    log.read_exact_at(&mut version, 8).unwrap();
    if version == [0; 2] { 0 } else { marks(log) }
}
