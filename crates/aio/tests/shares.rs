//! Contract line 72: shares of an amount.

mod util;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use coblk_aio::AioContext;
use coblk_aio::sync::SharedResource;
use util::{Log, contend, watchdog};

#[test]
fn c72_asking_more_than_the_total_is_an_error() {
    let ctx = AioContext::for_test().unwrap();
    let resource = SharedResource::new(10);
    let error = ctx.run(|co| resource.take(co, 11).err().unwrap());
    assert_eq!((error.asked, error.total), (11, 10));
    assert_eq!(error.to_string(), "shared resource: 11 asked for, of a total of 10");
    assert!(resource.try_take(11).is_none());
    ctx.run(|co| assert_eq!(resource.take(co, 10).unwrap().amount(), 10));
    assert_eq!((resource.available(), resource.total()), (10, 10));
}

#[test]
fn c72_returning_wakes_those_who_now_fit() {
    let ctx = AioContext::for_test().unwrap();
    let (log, resource) = (Log::new(), Rc::new(SharedResource::new(10)));
    let first = resource.try_take(6).unwrap();
    let second = resource.try_take(4).unwrap();
    for (name, amount) in [("7", 7), ("3", 3), ("1", 1), ("2", 2)] {
        let (said, own) = (log.clone(), Rc::clone(&resource));
        ctx.spawn(name, move |co| {
            let share = own.take(co, amount).unwrap();
            said.add(name);
            std::mem::forget(share);
        });
    }
    drop(second);
    assert_eq!(log.take(), ["3", "1"], "4 are left: not 7, and after 3 and 1 not 2");
    drop(first);
    assert_eq!(log.take(), ["2"], "6 are left: still not 7");
    assert_eq!(resource.available(), 4);
}

#[test]
fn c72_contended_from_5_threads_it_is_never_overdrawn() {
    let resource = Arc::new(SharedResource::new(7));
    let shared = Arc::clone(&resource);
    contend(5, 4, move |co| {
        for round in 0..200u64 {
            let share = shared.take(co, round % 7 + 1).unwrap();
            if round % 3 == 0 {
                co.yield_now();
            }
            assert!(shared.available() <= 7 - share.amount());
        }
    });
    assert_eq!(resource.available(), 7);
}

#[test]
fn a_share_given_to_a_coroutine_that_is_unwound_comes_back() {
    let _watchdog = watchdog();
    let resource = Arc::new(SharedResource::new(2));
    let all = resource.try_take(2).unwrap();
    let (waits, is_waiting) = channel();
    let (go_on, end) = channel::<()>();
    let own = Arc::clone(&resource);
    let thread = thread::spawn(move || {
        let ctx = AioContext::for_test().unwrap();
        ctx.spawn("unwound", move |co| drop(own.take(co, 1)));
        waits.send(()).unwrap();
        end.recv().unwrap();
    });
    is_waiting.recv().unwrap();
    drop(all);
    assert_eq!(resource.available(), 1);
    go_on.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(resource.available(), 2);
}
