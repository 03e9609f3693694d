//! A loop that polls adaptively looks at the rings by itself (contract: C46).

mod util;

use std::time::Duration;

use coblk_aio::{EventNotifier, PollParams};
use util::RawGuest;

/// A device that has been kicked once, on a loop that looks for work for as long as this may take.
fn polled_device() -> (RawGuest, EventNotifier) {
    let mut guest = RawGuest::new();
    guest.ctx.set_poll_params(PollParams::new(Duration::from_secs(60)).grow(1_000_000).shrink(1));
    let kick = EventNotifier::new().unwrap();
    guest.device.watch_notifier(&guest.ctx, 0, &kick).unwrap();
    guest.honest_request_works();
    // Polling begins with the first readiness, and after a wait that it would have shortened.
    kick.set().unwrap();
    while !guest.ctx.poll_timeout(Duration::from_millis(1)) {}
    assert!(guest.ctx.poll_time() > Duration::ZERO);
    guest.ctx.poll_timeout(Duration::from_millis(1));
    (guest, kick)
}

#[test]
fn c46_a_ring_is_looked_at_without_a_kick() {
    let (mut guest, kick) = polled_device();
    for _ in 0..10 {
        guest.offer_honest_request();
        assert!(guest.ctx.poll(), "seen, though nobody kicked");
        guest.honest_request_was_answered();
        assert!(!guest.wants_kick());
    }
    // A loop that may sleep asks for kicks again, and sees what came just before that.
    guest.offer_honest_request();
    guest.ctx.set_poll_params(PollParams::never());
    assert!(guest.ctx.poll());
    guest.honest_request_was_answered();
    assert!(guest.wants_kick());
    guest.offer_honest_request();
    assert!(!guest.ctx.poll_timeout(Duration::from_millis(1)), "now it takes a kick");
    kick.set().unwrap();
    assert!(guest.ctx.poll());
    guest.honest_request_was_answered();
}

#[test]
fn c46_a_ring_that_is_no_longer_watched_wants_kicks_again() {
    let (mut guest, _kick) = polled_device();
    guest.offer_honest_request();
    assert!(guest.ctx.poll());
    guest.honest_request_was_answered();
    assert!(!guest.wants_kick());
    // Another one takes its place. What was offered without a kick meanwhile is not forgotten.
    guest.offer_honest_request();
    let other = EventNotifier::new().unwrap();
    guest.device.watch_notifier(&guest.ctx, 0, &other).unwrap();
    assert!(guest.ctx.poll_timeout(Duration::from_secs(60)));
    guest.honest_request_was_answered();
    guest.ctx.set_poll_params(PollParams::never());
    guest.ctx.poll_timeout(Duration::from_millis(1));
    assert!(guest.wants_kick());
    guest.offer_honest_request();
    other.set().unwrap();
    assert!(guest.ctx.poll());
    guest.honest_request_was_answered();
}
