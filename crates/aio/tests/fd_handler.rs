//! Contract line 44: descriptor handlers.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use coblk_aio::{
    AioContext, EventHandler, EventNotifier, FdHandler, FdInterest, IoThread, Readiness,
};

use crate::util::{Log, OnDrop, watchdog};

fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    (a, b)
}

/// A handler that something else owns, so that a callback can remove it.
type Owned<F> = Rc<RefCell<Option<FdHandler<F>>>>;

#[test]
fn c44_removing_a_handler_twice_does_nothing() {
    let ctx = AioContext::for_test().unwrap();
    let (a, mut b) = pair();
    let handler = ctx.fd_handler(&a, FdInterest::Read, |_, _| ()).unwrap();
    assert!(std::ptr::eq(handler.into_descriptor(), &a));
    // Its number is free for the next, and only the next is called.
    let seen = Rc::new(Cell::new(0));
    let count = Rc::clone(&seen);
    let again =
        ctx.fd_handler(&a, FdInterest::Read, move |_, _| count.set(count.get() + 1)).unwrap();
    b.write_all(b"x").unwrap();
    assert!(ctx.poll());
    assert_eq!(seen.get(), 1);
    drop(ctx);
    drop(again);
}

#[test]
fn c44_a_handler_may_remove_itself() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    let slot: Owned<UnixStream> = Rc::default();
    let handler = ctx.fd_handler(a.try_clone().unwrap(), FdInterest::Read, {
        let (log, slot) = (log.clone(), Rc::clone(&slot));
        move |_, _| {
            let _freed = &freed;
            drop(slot.take());
            log.add("ran");
        }
    });
    slot.replace(Some(handler.unwrap()));
    b.write_all(b"x").unwrap();
    assert!(ctx.poll());
    b.write_all(b"y").unwrap();
    assert!(!ctx.try_poll());
    assert_eq!(log.take(), ["ran", "freed"]);
}

#[test]
fn c44_a_handler_may_remove_others_also_under_a_nested_poll() {
    for nested in [false, true] {
        let ctx = AioContext::for_test().unwrap();
        let log = Log::new();
        let notifiers: Vec<_> = (0..8).map(|_| EventNotifier::new().unwrap()).collect();
        let handlers = Rc::new(RefCell::new(Vec::new()));
        for (index, notifier) in notifiers.iter().enumerate() {
            let (log, all) = (log.clone(), Rc::downgrade(&handlers));
            let handler = ctx.event_handler(notifier, move |ctx| {
                log.add(format!("{index}"));
                all.upgrade().unwrap().take();
                if nested {
                    assert!(!ctx.try_poll(), "all are removed");
                }
            });
            handlers.borrow_mut().push(handler.unwrap());
            notifier.set().unwrap();
        }
        assert!(ctx.poll());
        assert_eq!(log.take().len(), 1, "the first removed all others");
        assert!(!ctx.try_poll());
    }
}

#[test]
fn c44_a_handler_may_be_replaced_from_inside_itself() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let notifier = Rc::new(EventNotifier::new().unwrap());
    let slot: Rc<RefCell<Option<EventHandler>>> = Rc::default();
    let handler = ctx.event_handler(&notifier, {
        let (log, notifier, slot) = (log.clone(), Rc::clone(&notifier), Rc::clone(&slot));
        move |ctx| {
            log.add("old");
            let log = log.clone();
            slot.replace(Some(ctx.event_handler(&notifier, move |_| log.add("new")).unwrap()));
        }
    });
    slot.replace(Some(handler.unwrap()));
    for expected in ["old", "new", "new"] {
        notifier.set().unwrap();
        assert!(ctx.poll());
        assert_eq!(log.take(), [expected]);
    }
    slot.take();
}

#[test]
fn a_handler_keeps_the_descriptor_that_it_was_given() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    let number = a.as_raw_fd();
    let seen = log.clone();
    let handler = ctx.fd_handler(a, FdInterest::Read, move |_, _| seen.add("ready")).unwrap();
    b.write_all(b"x").unwrap();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["ready"]);
    assert_eq!(handler.descriptor().as_raw_fd(), number);
    drop(handler);
    b.write_all(b"y").unwrap_err();
}

#[test]
fn a_registration_that_fails_leaves_the_former_one() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    let seen = log.clone();
    let _former = ctx.fd_handler(&a, FdInterest::Read, move |_, _| seen.add("former")).unwrap();
    let refused = ctx.fd_handler(&a, FdInterest::Read, |_, _| unreachable!("was refused"));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    b.write_all(b"x").unwrap();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["former"]);
}

#[test]
fn events_of_an_earlier_registration_do_not_reach_a_later_one() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (earlier, mut earlier_peer) = pair();
    let (later, _later_peer) = pair();
    // The number becomes another file's while it is registered, and a copy keeps the first file
    // open. The kernel then cannot find the registration any more, and goes on reporting for it.
    let copy = earlier.try_clone().unwrap();
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(earlier));
    let handler =
        ctx.fd_handler(&file, FdInterest::Read, |_, _| unreachable!("removed before")).unwrap();
    coblk_aio::sys::redirect(&file, &tempfile_in_memory()).unwrap();
    drop(handler);
    let seen = log.clone();
    let _later = ctx.fd_handler(&later, FdInterest::Read, move |_, _| seen.add("later")).unwrap();
    earlier_peer.write_all(b"x").unwrap();
    assert!(!ctx.try_poll());
    assert!(log.take().is_empty());
    drop(copy);
}

#[test]
fn a_handler_may_outlive_its_context() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    let (a, _b) = pair();
    let handler = ctx
        .fd_handler(a, FdInterest::Read, move |_, _| {
            let _ = &freed;
        })
        .unwrap();
    drop(ctx);
    assert_eq!(log.take(), ["freed"], "a context keeps no callback when it ends");
    handler.set_interest(FdInterest::Write).unwrap_err();
    drop(handler);
}

#[test]
fn the_interest_of_a_handler_changes() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (a, _b) = pair();
    let seen = log.clone();
    let handler = ctx
        .fd_handler(&a, FdInterest::Read, move |_, ready| seen.add(format!("{}", ready.writable)))
        .unwrap();
    assert!(!ctx.try_poll());
    handler.set_interest(FdInterest::ReadWrite).unwrap();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["true"]);
}

#[test]
fn a_destructor_of_a_handler_may_come_back_to_the_context() {
    // Rc: the closure keeps the context, which is legal as long as it is not the last owner.
    let ctx = Rc::new(AioContext::for_test().unwrap());
    let (a, _b) = pair();
    let file = tempfile_in_memory();
    let visits = Rc::new(Cell::new(0));
    let visitor = || {
        let (ctx, visits) = (Rc::clone(&ctx), Rc::clone(&visits));
        let (fd, _peer) = pair();
        OnDrop(move || {
            drop(ctx.fd_handler(&fd, FdInterest::Read, |_, _| ()).unwrap());
            visits.set(visits.get() + 1);
        })
    };
    let on_drop = visitor();
    let handler = ctx.fd_handler(&a, FdInterest::Read, move |_, _| {
        let _ = &on_drop;
    });
    drop(handler.unwrap());
    let on_drop = visitor();
    // A regular file cannot be waited for, so this closure is dropped by the failure.
    let refused = ctx.fd_handler(&file, FdInterest::Read, move |_, _| {
        let _ = &on_drop;
    });
    refused.unwrap_err();
    assert_eq!(visits.get(), 2);
}

/// A regular file without a name.
fn tempfile_in_memory() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("coblk-aio-fd-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[test]
fn readable_and_writable_are_told_apart() {
    let ctx = AioContext::for_test().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    let told = || {
        let log = log.clone();
        move |_: &AioContext, ready: Readiness| {
            log.add(format!("read {} write {}", ready.readable, ready.writable));
        }
    };
    let writable = ctx.fd_handler(&a, FdInterest::Write, told()).unwrap();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["read false write true"]);
    drop(writable);
    let _readable = ctx.fd_handler(&a, FdInterest::Read, told()).unwrap();
    assert!(!ctx.try_poll());
    b.write_all(b"x").unwrap();
    assert!(ctx.poll());
    assert_eq!(log.take(), ["read true write false"]);
    drop(b);
    assert!(ctx.poll());
    assert!(log.take()[0].starts_with("read true"), "the end of the stream is something to read");
}

#[test]
fn more_descriptors_than_one_wait_collects() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let seen = Rc::new(Cell::new(0));
    let notifiers: Vec<_> = (0..400).map(|_| EventNotifier::new().unwrap()).collect();
    let watch = |notifier: &EventNotifier| {
        let seen = Rc::clone(&seen);
        notifier.set().unwrap();
        ctx.event_handler(notifier, move |_| seen.set(seen.get() + 1)).unwrap()
    };
    let _handlers: Vec<_> = notifiers.iter().map(watch).collect();
    ctx.run_until(|| seen.get() == notifiers.len());
}

#[test]
fn an_echo_served_by_the_loop() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let (server, mut client) = pair();
    let done = Rc::new(Cell::new(false));
    let server = Rc::new(server);
    let handler = ctx.fd_handler(Rc::clone(&server), FdInterest::Read, {
        let done = Rc::clone(&done);
        move |_, _| {
            let mut buffer = [0; 16];
            loop {
                match (&*server).read(&mut buffer) {
                    Ok(0) => return done.set(true),
                    Ok(len) => (&*server).write_all(&buffer[..len]).unwrap(),
                    Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
    });
    let _echo = handler.unwrap();
    let thread = thread::spawn(move || {
        for round in 0..100u8 {
            client.write_all(&[round; 7]).unwrap();
            let mut back = [0; 7];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back, [round; 7]);
        }
    });
    ctx.run_until(|| done.get());
    thread.join().unwrap();
}

#[test]
fn kicks_of_a_notifier_are_merged() {
    let ctx = AioContext::for_test().unwrap();
    let notifier = EventNotifier::new().unwrap();
    let runs = Rc::new(Cell::new(0));
    let count = Rc::clone(&runs);
    let handler = ctx.event_handler(&notifier, move |_| count.set(count.get() + 1)).unwrap();
    for expected in 1..=3 {
        let other = notifier.try_clone().unwrap();
        thread::spawn(move || (0..10).for_each(|_| other.set().unwrap())).join().unwrap();
        assert!(ctx.poll());
        assert!(!ctx.try_poll());
        assert_eq!(runs.get(), expected);
    }
    drop(handler);
    notifier.set().unwrap();
    assert!(!ctx.try_poll());
    assert!(notifier.test_and_clear().unwrap() && !notifier.test_and_clear().unwrap());
}

/// Has a context go through its loop.
fn pass(thread: &IoThread) {
    for _ in 0..2 {
        let (tell, told) = channel();
        thread.handle().schedule(move |_| tell.send(()).unwrap());
        told.recv().unwrap();
    }
}

/// If all were called, each byte would be two calls, for the kernel queues them as it comes. A loop that does not sleep
/// is called as well, so it may take some bytes until one finds both asleep.
#[test]
fn of_loops_that_sleep_on_a_shared_descriptor_one_is_called() {
    let _watchdog = watchdog();
    let (a, mut b) = pair();
    let a = Arc::new(a);
    let calls = Arc::new(AtomicUsize::new(0));
    let threads = ["one", "two"].map(|name| {
        let (a, calls, thread) = (Arc::clone(&a), Arc::clone(&calls), IoThread::new(name).unwrap());
        thread.handle().schedule(move |ctx| {
            // It keeps itself, until its context ends.
            let slot: Owned<UnixStream> = Rc::default();
            let (socket, kept) = (a.try_clone().unwrap(), Rc::clone(&slot));
            let handler = ctx.fd_handler(socket, FdInterest::ReadShared, move |_, _| {
                calls.fetch_add(1, Ordering::SeqCst);
                while (&*a).read(&mut [0]).is_ok() {}
                assert!(kept.borrow().is_some());
            });
            let handler = handler.unwrap();
            assert!(handler.set_interest(FdInterest::Read).is_err());
            slot.replace(Some(handler));
        });
        pass(&thread);
        thread
    });
    let mut is_shared = false;
    for _ in 0..2000 {
        let before = calls.load(Ordering::SeqCst);
        b.write_all(b"x").unwrap();
        while calls.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        threads.iter().for_each(pass);
        is_shared |= calls.load(Ordering::SeqCst) == before + 1;
        if is_shared {
            break;
        }
    }
    assert!(is_shared, "all are called each time");
}
