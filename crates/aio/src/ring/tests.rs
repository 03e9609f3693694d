//! Requests that find no room in the queue.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::{AioContext, IoVectorMut, WaitMode};

fn context() -> AioContext {
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().unwrap();
    assert!(ctx.has_ring(), "no io_uring on this system");
    ctx
}

/// Ends the process if the test that holds it hangs.
fn watchdog() -> Sender<()> {
    let (alive, ended) = channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(Duration::from_secs(300)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("a test of the ring hangs");
            std::process::abort();
        }
    });
    alive
}

fn jam(ctx: &AioContext, times: u32) {
    ctx.ring().unwrap().jams.set(times);
}

#[test]
fn requests_wait_for_room_and_complete_in_their_order() {
    let _alive = watchdog();
    let ctx = context();
    let file = Rc::new(File::open("/dev/zero").unwrap());
    let done = Rc::new(RefCell::new(Vec::new()));
    jam(&ctx, u32::MAX);
    for number in 0..3 {
        let (file, done) = (Rc::clone(&file), Rc::clone(&done));
        ctx.spawn("waits for room", move |co| {
            let mut buffer = [1; 8];
            let mut target = IoVectorMut::from(&mut buffer[..]);
            assert_eq!(co.ring_preadv(file.as_fd(), &mut target, 0).unwrap(), 8);
            assert_eq!(buffer, [0; 8]);
            done.borrow_mut().push(number);
        });
    }
    let ring = ctx.ring().unwrap();
    let tried = u32::MAX - ring.jams.get();
    for _ in 0..3 {
        ctx.poll();
    }
    assert!(done.borrow().is_empty());
    // The first one tries, for all.
    assert!(u32::MAX - ring.jams.get() - tried <= 3 * 4);
    jam(&ctx, 0);
    ctx.run_until(|| done.borrow().len() == 3);
    assert_eq!(*done.borrow(), [0, 1, 2]);
    assert!(ring.waiting.is_empty() && ring.in_flight.get() == 0);
}

#[test]
fn a_request_that_waits_for_room_is_unwound_without_the_kernel() {
    let _alive = watchdog();
    let ctx = context();
    let file = File::open("/dev/zero").unwrap();
    jam(&ctx, u32::MAX);
    let kept = Rc::new(Cell::new(0));
    let own = Rc::clone(&kept);
    ctx.spawn("waits for room", move |co| {
        let _own = own;
        let mut buffer = [1; 8];
        let mut target = IoVectorMut::from(&mut buffer[..]);
        let _ = co.ring_preadv(file.as_fd(), &mut target, 0);
        unreachable!("there is no room");
    });
    drop(ctx);
    assert_eq!(Rc::strong_count(&kept), 1);
}

#[test]
fn a_cancel_that_finds_no_room_is_tried_again() {
    let _alive = watchdog();
    let ctx = context();
    let (reader, _writer) = std::io::pipe().unwrap();
    ctx.spawn("hanging", move |co| {
        let mut buffer = [0; 8];
        let mut target = IoVectorMut::from(&mut buffer[..]);
        let _ = co.ring_preadv(reader.as_fd(), &mut target, u64::MAX);
        unreachable!("nothing is ever written");
    });
    ctx.try_poll();
    jam(&ctx, 3);
    drop(ctx);
}

#[test]
fn a_cancel_that_comes_late_cancels_no_later_request_in_the_same_place() {
    let ctx = context();
    let ring = ctx.ring().unwrap();
    let place = std::ptr::dangling::<super::Request>();
    let [earlier, later] = [ring.tagged(place), ring.tagged(place)];
    assert_ne!(earlier, later);
    assert_eq!(earlier & super::ADDRESS_BITS, later & super::ADDRESS_BITS);
    assert_eq!(earlier & super::ADDRESS_BITS, place.addr() as u64);
}

#[test]
fn a_wait_mode_is_known_by_its_name() {
    let parsed = ["auto", "epoll", "ring"].map(|name| name.parse::<WaitMode>().unwrap());
    assert_eq!(parsed, [WaitMode::Auto, WaitMode::Epoll, WaitMode::Ring]);
    let error = "uring".parse::<WaitMode>().unwrap_err();
    assert!(error.to_string().contains("'uring'"), "{error}");
}
