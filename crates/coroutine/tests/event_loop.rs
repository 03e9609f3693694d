//! What an event loop above this crate needs: to run inside a coroutine, and to go on after panics.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use coblk_coroutine::*;

#[test]
fn a_loop_inside_a_coroutine_is_outside_of_it() {
    let ran = Rc::new(Cell::new(0));
    let count = Rc::clone(&ran);
    let woken = Coroutine::new("woken", move |suspender| {
        loop {
            count.set(count.get() + 1);
            suspender.suspend();
        }
    });
    let target = woken.clone();
    let host = Coroutine::new("host", move |_| {
        target.queue_wake("test");
        assert_eq!(ran.get(), 0);
        serve_woken(|_, _| unreachable!("it does not panic"));
        assert_eq!(ran.get(), 1);
        outside(|| {
            assert!(!in_coroutine());
            target.resume();
            assert_eq!(ran.get(), 2);
        });
        assert_eq!(current().unwrap().name(), "host");
    });
    assert_eq!(host.resume(), CoroutineState::Terminated);
    serve_woken(|_, _| unreachable!("no coroutine runs"));
    assert_eq!(outside(|| 1), 1);
}

#[test]
fn every_panic_is_told_of_and_none_goes_on_but_the_first_that_is_to() {
    for going_on in [None, Some(0), Some(1), Some(2)] {
        let host = Coroutine::new("host", |_| {
            for name in ["first", "second"] {
                Coroutine::new(name, move |_| panic!("of {name}")).queue_wake("test");
            }
            panic!("of host");
        });
        let mut told = Vec::new();
        let result = catch_unwind(AssertUnwindSafe(|| {
            host.resume_catching(|name, payload| {
                told.push((name, payload.downcast_ref::<String>().cloned()));
                going_on.is_some_and(|from| told.len() > from).then_some(payload)
            })
        }));
        let expected = [("host", None), ("first", Some("of first")), ("second", Some("of second"))];
        assert_eq!(told, expected.map(|(name, message)| (name, message.map(str::to_owned))));
        match (going_on, result) {
            (None, result) => assert_eq!(result.unwrap(), CoroutineState::Terminated),
            (Some(0), Err(payload)) => assert!(payload.is::<&str>()),
            (Some(from), Err(payload)) => {
                assert_eq!(payload.downcast_ref::<String>(), told[from].1.as_ref());
            }
            (Some(_), Ok(_)) => panic!("no panic went on"),
        }
    }
}
