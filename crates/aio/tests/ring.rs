//! File I/O through a context's io_uring, and waiting in it. On a system without io_uring these
//! tests fail: they are about nothing else.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{AioContext, FdInterest, IoVector, IoVectorMut, WaitMode};

fn contexts() -> [AioContext; 2] {
    [WaitMode::Auto, WaitMode::Ring].map(|mode| {
        let ctx =
            AioContext::test_builder().wait_mode(mode).build().expect("a context with a ring");
        assert!(ctx.has_ring(), "no io_uring on this system");
        ctx
    })
}

#[test]
fn data_goes_through_the_ring_and_back() {
    for ctx in contexts() {
        let file = tempfile::tempfile().unwrap();
        ctx.run(|co| {
            let (head, body) = (*b"head", [7u8; 4096]);
            let mut source = IoVector::from(&head[..]);
            source.push(&body);
            assert_eq!(co.ring_pwritev(file.as_fd(), &source, 100).unwrap(), 4100);
            co.ring_fdatasync(file.as_fd()).unwrap();
            let (mut a, mut b) = ([0u8; 2], [0u8; 5000]);
            let mut target = IoVectorMut::from(&mut a[..]);
            target.push(&mut b);
            assert_eq!(co.ring_preadv(file.as_fd(), &mut target, 102).unwrap(), 4098);
            assert_eq!((&a, &b[..4096], &b[4096..]), (b"ad", &body[..], &[0u8; 904][..]));
        });
    }
}

#[test]
fn errors_carry_the_errno() {
    for ctx in contexts() {
        let read_only = std::fs::File::open("/proc/self/exe").unwrap();
        let error = ctx.run(|co| {
            co.ring_pwritev(read_only.as_fd(), &IoVector::from(&[0u8; 8][..]), 0).unwrap_err()
        });
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Epoll).build().unwrap();
    assert!(!ctx.has_ring());
    let file = tempfile::tempfile().unwrap();
    let error = ctx.run(|co| co.ring_fdatasync(file.as_fd()).unwrap_err());
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
}

#[test]
fn more_requests_than_the_ring_has_entries() {
    for ctx in contexts() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[5u8; 64 << 10], 0).unwrap();
        let file = Rc::new(file);
        let done = Rc::new(Cell::new(0));
        for n in 0..3000u64 {
            let (file, done) = (Rc::clone(&file), Rc::clone(&done));
            ctx.spawn("read", move |co| {
                let mut buffer = [0u8; 64];
                let mut target = IoVectorMut::from(&mut buffer[..]);
                let offset = (n * 64) % (64 << 10);
                assert_eq!(co.ring_preadv(file.as_fd(), &mut target, offset).unwrap(), 64);
                assert_eq!(buffer, [5u8; 64]);
                done.set(done.get() + 1);
            });
        }
        ctx.run_until(|| done.get() == 3000);
    }
}

#[test]
fn descriptors_timers_wakes_and_requests_are_waited_for_together() {
    for ctx in contexts() {
        let (reader, writer) = std::io::pipe().unwrap();
        let hits = Rc::new(Cell::new(0u32));
        let count = |hits: &Rc<Cell<u32>>, bit: u32| hits.set(hits.get() | bit);
        let on_fd = Rc::clone(&hits);
        let handler = ctx.fd_handler(&reader, FdInterest::Read, move |_, _| count(&on_fd, 1));
        let _handler = handler.unwrap();
        let timer = ctx.timer({
            let hits = Rc::clone(&hits);
            move |_| count(&hits, 2)
        });
        timer.arm_after(Duration::from_millis(5));
        // A request that does not complete by itself: a read of an empty pipe.
        let (quiet, quiet_writer) = std::io::pipe().unwrap();
        ctx.spawn("pipe", {
            let hits = Rc::clone(&hits);
            move |co| {
                let mut byte = [0u8; 1];
                let mut target = IoVectorMut::from(&mut byte[..]);
                assert_eq!(co.ring_preadv(quiet.as_fd(), &mut target, u64::MAX).unwrap(), 1);
                count(&hits, 4);
            }
        });
        let handle = ctx.handle();
        let thread = std::thread::spawn(move || {
            std::io::Write::write_all(&mut &writer, b"x").unwrap();
            handle.notify();
            std::io::Write::write_all(&mut &quiet_writer, b"y").unwrap();
        });
        ctx.run_until(|| hits.get() == 7);
        thread.join().unwrap();
    }
}

#[test]
fn a_context_may_end_while_requests_are_with_the_kernel() {
    for ctx in contexts() {
        let (reader, _writer) = std::io::pipe().unwrap();
        for _ in 0..10 {
            let reader = reader.try_clone().unwrap();
            ctx.spawn("hanging", move |co| {
                let mut byte = [0u8; 1];
                let mut target = IoVectorMut::from(&mut byte[..]);
                let _ = co.ring_preadv(reader.as_fd(), &mut target, u64::MAX);
                unreachable!("nothing is ever written");
            });
        }
        ctx.try_poll();
        drop(ctx);
    }
}

#[test]
fn c46_a_loop_with_many_requests_in_its_ring_sleeps_without_a_look() {
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Ring).build().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let read = Rc::new(Cell::new(0));
    for _ in 0..16 {
        let (reader, read) = (reader.try_clone().unwrap(), Rc::clone(&read));
        ctx.spawn("waits for its byte", move |co| {
            let mut byte = [0u8; 1];
            let mut target = IoVectorMut::from(&mut byte[..]);
            assert_eq!(co.ring_preadv(reader.as_fd(), &mut target, u64::MAX).unwrap(), 1);
            read.set(read.get() + 1);
        });
    }
    while ctx.try_poll() {}
    let before = ctx.wait_stats();
    for _ in 0..8 {
        ctx.poll_timeout(Duration::from_micros(100));
    }
    let stats = ctx.wait_stats();
    assert_eq!((stats.active, stats.in_vain), (before.active, before.in_vain));
    assert!(stats.slept > before.slept);
    std::io::Write::write_all(&mut &writer, &[b'x'; 16]).unwrap();
    ctx.run_until(|| read.get() == 16);
}
