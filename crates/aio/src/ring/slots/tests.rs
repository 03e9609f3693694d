use super::*;
use crate::{AioContext, IoVectorMut, WaitMode};
use std::os::unix::fs::FileExt;

fn context() -> AioContext {
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().unwrap();
    assert!(ctx.has_ring(), "no io_uring on this system");
    ctx
}

/// A file whose bytes are all `byte`.
fn host_file(byte: u8) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[byte; 64], 0).unwrap();
    file
}

fn read(ctx: &AioContext, file: &RingFile) -> u8 {
    let mut buffer = [0; 64];
    let read = |co: &crate::Co<'_>| {
        co.ring_preadv(file, &mut IoVectorMut::from(&mut buffer[..]), 0).unwrap()
    };
    assert_eq!(ctx.run(read), 64);
    assert!(buffer.iter().all(|byte| *byte == buffer[0]));
    buffer[0]
}

fn slot(ctx: &AioContext, file: &RingFile) -> Option<u32> {
    ctx.ring().unwrap().slots.slot(file)
}

fn ticket_at(ctx: &AioContext, number: usize) -> u64 {
    ctx.ring().unwrap().slots.tickets.get().map_or(NOBODY, |tickets| tickets[number].get())
}

/// Requests go by the slot, not by the descriptor: what another file in it says is read.
#[test]
fn requests_go_by_the_slot() {
    let ctx = context();
    let file = RingFile::new(host_file(1));
    assert_eq!((slot(&ctx, &file), read(&ctx, &file)), (None, 1));
    let slot = slot(&ctx, &file).expect("a slot");
    let other = host_file(2);
    {
        let uring = ctx.ring().unwrap().uring.borrow();
        uring.submitter().register_files_update(slot, &[other.as_raw_fd()]).unwrap();
    }
    assert_eq!(read(&ctx, &file), 2);
}

#[test]
fn two_contexts_of_one_thread_have_a_slot_each_and_give_it_back_at_once() {
    let (one, two) = (context(), context());
    let file = RingFile::new(host_file(7));
    assert_eq!((read(&one, &file), read(&two, &file)), (7, 7));
    let number = file.number;
    assert!(slot(&one, &file).is_some() && slot(&one, &file) == slot(&two, &file));
    // Which of them the context that gives its own up was makes no difference to the other.
    drop(one);
    assert_eq!((ticket_at(&two, number), read(&two, &file)), (file.ticket, 7));
    drop(file);
    assert_eq!(ticket_at(&two, number), NOBODY);
}

/// A file goes on another thread, and the next one with its number comes to the ring before the loop
/// has heard of that.
#[test]
fn a_late_return_leaves_the_next_file_alone() {
    const GONE: u64 = u64::MAX;
    let ctx = context();
    let (first, file, old) =
        (RingFile::new(host_file(0)), RingFile::new(host_file(2)), host_file(1));
    assert_eq!(read(&ctx, &first), 0);
    let ring = ctx.ring().unwrap();
    ring.slots.tickets.get().unwrap()[file.number].set(GONE);
    let update = |fd| {
        ring.uring.borrow().submitter().register_files_update(file.number as u32, &[fd]).unwrap()
    };
    update(old.as_raw_fd());
    assert_eq!((read(&ctx, &file), ticket_at(&ctx, file.number)), (2, file.ticket));
    ring.unregister(file.number, GONE);
    assert_eq!((read(&ctx, &file), ticket_at(&ctx, file.number)), (2, file.ticket));
}

#[test]
fn a_file_that_goes_elsewhere_is_given_back_by_the_loop() {
    let ctx = context();
    let file = RingFile::new(host_file(1));
    assert_eq!(read(&ctx, &file), 1);
    let (number, ticket) = (file.number, file.ticket);
    std::thread::spawn(move || drop(file)).join().unwrap();
    assert_eq!(ticket_at(&ctx, number), ticket);
    ctx.try_poll();
    assert_eq!(ticket_at(&ctx, number), NOBODY);
}

/// As on a kernel before 5.19, or with a filter that forbids it.
#[test]
fn what_the_kernel_refuses_is_read_by_its_descriptor() {
    let ctx = context();
    let slots = &ctx.ring().unwrap().slots;
    assert!(slots.tickets.set(Box::new([])).is_ok());
    let file = RingFile::new(host_file(3));
    assert_eq!((read(&ctx, &file), slot(&ctx, &file)), (3, None));

    let ctx = context();
    let first = RingFile::new(host_file(4));
    assert_eq!(read(&ctx, &first), 4);
    ctx.ring().unwrap().slots.refused.set(true);
    let second = RingFile::new(host_file(5));
    assert_eq!((read(&ctx, &second), slot(&ctx, &second)), (5, None));
    assert!(slot(&ctx, &first).is_some() && read(&ctx, &first) == 4);
}

#[test]
fn a_file_keeps_nothing_of_a_context_that_has_ended() {
    let file = RingFile::new(host_file(1));
    for _ in 0..10 {
        let ctx = context();
        assert_eq!(read(&ctx, &file), 1);
        let shared = Arc::downgrade(ctx.inner().shared());
        drop(ctx);
        assert_eq!(shared.strong_count(), 0, "nor its descriptor");
    }
    assert_eq!(lock(&file.homes).len(), 1);
}
