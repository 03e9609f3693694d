//! Contract line 44: descriptor handlers.

mod util;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::thread;

use coblk_aio::{AioContext, EventNotifier, FdInterest};
use util::{Log, OnDrop, watchdog};

fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    (a, b)
}

#[test]
fn c44_unsetting_an_unknown_descriptor_is_a_no_op() {
    let ctx = AioContext::new().unwrap();
    let (a, b) = pair();
    ctx.unset_fd_handler(&a);
    ctx.set_fd_handler(&a, FdInterest::Read, |_, _| ()).unwrap();
    ctx.unset_fd_handler(&b);
    ctx.unset_fd_handler(&a);
    ctx.unset_fd_handler(&a);
}

#[test]
fn c44_a_handler_may_remove_itself() {
    let ctx = AioContext::new().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    let own = a.try_clone().unwrap();
    let freed = OnDrop({
        let log = log.clone();
        move || log.add("freed")
    });
    let a = Rc::new(a);
    ctx.set_fd_handler(&*a, FdInterest::Read, {
        let (log, a) = (log.clone(), Rc::downgrade(&a));
        move |ctx, _| {
            let _freed = &freed;
            ctx.unset_fd_handler(&*a.upgrade().unwrap());
            log.add("ran");
        }
    })
    .unwrap();
    b.write_all(b"x").unwrap();
    assert!(ctx.poll(true));
    b.write_all(b"y").unwrap();
    assert!(!ctx.poll(false));
    assert_eq!(log.take(), ["ran", "freed"]);
    drop(own);
}

#[test]
fn c44_a_handler_may_remove_others_also_under_a_nested_poll() {
    for nested in [false, true] {
        let ctx = AioContext::new().unwrap();
        let log = Log::new();
        let notifiers: Rc<Vec<_>> =
            Rc::new((0..8).map(|_| EventNotifier::new().unwrap()).collect());
        for (index, notifier) in notifiers.iter().enumerate() {
            let (log, all) = (log.clone(), Rc::downgrade(&notifiers));
            ctx.set_event_notifier(notifier, move |ctx| {
                log.add(format!("{index}"));
                for other in all.upgrade().unwrap().iter() {
                    ctx.unset_fd_handler(other);
                }
                if nested {
                    assert!(!ctx.poll(false), "all are removed");
                }
            })
            .unwrap();
            notifier.set().unwrap();
        }
        assert!(ctx.poll(true));
        assert_eq!(log.take().len(), 1, "the first removed all others");
        assert!(!ctx.poll(false));
    }
}

#[test]
fn c44_a_handler_may_be_replaced_from_inside_itself() {
    let ctx = AioContext::new().unwrap();
    let log = Log::new();
    let notifier = Rc::new(EventNotifier::new().unwrap());
    ctx.set_event_notifier(&notifier, {
        let (log, notifier) = (log.clone(), Rc::downgrade(&notifier));
        move |ctx| {
            log.add("old");
            let log = log.clone();
            let notifier = notifier.upgrade().unwrap();
            ctx.set_event_notifier(&notifier, move |_| log.add("new")).unwrap();
        }
    })
    .unwrap();
    for expected in ["old", "new", "new"] {
        notifier.set().unwrap();
        assert!(ctx.poll(true));
        assert_eq!(log.take(), [expected]);
    }
}

#[test]
fn a_destructor_of_a_handler_may_come_back_to_the_context() {
    // Rc: the closure keeps the context, which is legal as long as it is not the last owner.
    let ctx = Rc::new(AioContext::new().unwrap());
    let (a, _b) = pair();
    let file = tempfile_in_memory();
    let visits = Rc::new(Cell::new(0));
    let visitor = || {
        let (ctx, visits) = (Rc::clone(&ctx), Rc::clone(&visits));
        let (fd, _peer) = pair();
        OnDrop(move || {
            ctx.unset_fd_handler(&fd);
            ctx.set_fd_handler(&fd, FdInterest::Read, |_, _| ()).unwrap();
            ctx.unset_fd_handler(&fd);
            visits.set(visits.get() + 1);
        })
    };
    let on_drop = visitor();
    ctx.set_fd_handler(&a, FdInterest::Read, move |_, _| {
        let _ = &on_drop;
    })
    .unwrap();
    ctx.unset_fd_handler(&a);
    let on_drop = visitor();
    // A regular file cannot be waited for, so this closure is dropped by the failure.
    ctx.set_fd_handler(&file, FdInterest::Read, move |_, _| {
        let _ = &on_drop;
    })
    .unwrap_err();
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
    let ctx = AioContext::new().unwrap();
    let log = Log::new();
    let (a, mut b) = pair();
    ctx.set_fd_handler(&a, FdInterest::Write, {
        let log = log.clone();
        move |_, ready| log.add(format!("read {} write {}", ready.readable, ready.writable))
    })
    .unwrap();
    assert!(ctx.poll(true));
    assert_eq!(log.take(), ["read false write true"]);
    ctx.set_fd_handler(&a, FdInterest::Read, {
        let log = log.clone();
        move |_, ready| log.add(format!("read {} write {}", ready.readable, ready.writable))
    })
    .unwrap();
    assert!(!ctx.poll(false));
    b.write_all(b"x").unwrap();
    assert!(ctx.poll(true));
    assert_eq!(log.take(), ["read true write false"]);
    drop(b);
    assert!(ctx.poll(true));
    assert!(log.take()[0].starts_with("read true"), "the end of the stream is something to read");
}

#[test]
fn more_descriptors_than_one_wait_collects() {
    let _watchdog = watchdog();
    let ctx = AioContext::new().unwrap();
    let seen = Rc::new(Cell::new(0));
    let notifiers: Vec<_> = (0..400).map(|_| EventNotifier::new().unwrap()).collect();
    for notifier in &notifiers {
        let seen = Rc::clone(&seen);
        ctx.set_event_notifier(notifier, move |_| seen.set(seen.get() + 1)).unwrap();
        notifier.set().unwrap();
    }
    ctx.run_until(|| seen.get() == notifiers.len());
}

#[test]
fn an_echo_served_by_the_loop() {
    let _watchdog = watchdog();
    let ctx = AioContext::new().unwrap();
    let (server, mut client) = pair();
    let done = Rc::new(Cell::new(false));
    let server = Rc::new(RefCell::new(server));
    let borrowed = server.borrow();
    ctx.set_fd_handler(borrowed.as_fd(), FdInterest::Read, {
        let (server, done) = (Rc::clone(&server), Rc::clone(&done));
        move |_, _| {
            let mut buffer = [0; 16];
            loop {
                match (&*server.borrow()).read(&mut buffer) {
                    Ok(0) => return done.set(true),
                    Ok(len) => (&*server.borrow()).write_all(&buffer[..len]).unwrap(),
                    Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
    })
    .unwrap();
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
    let ctx = AioContext::new().unwrap();
    let notifier = EventNotifier::new().unwrap();
    let runs = Rc::new(Cell::new(0));
    ctx.set_event_notifier(&notifier, {
        let runs = Rc::clone(&runs);
        move |_| runs.set(runs.get() + 1)
    })
    .unwrap();
    for expected in 1..=3 {
        let other = notifier.try_clone().unwrap();
        thread::spawn(move || (0..10).for_each(|_| other.set().unwrap())).join().unwrap();
        assert!(ctx.poll(true));
        assert!(!ctx.poll(false));
        assert_eq!(runs.get(), expected);
    }
    ctx.unset_fd_handler(&notifier);
    notifier.set().unwrap();
    assert!(!ctx.poll(false));
    assert!(notifier.test_and_clear().unwrap() && !notifier.test_and_clear().unwrap());
}
