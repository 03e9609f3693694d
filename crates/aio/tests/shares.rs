//! Contract line 72: shares of an amount; and pools of tasks.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_aio::sync::{SharedResource, TaskPool};

use crate::util::{Log, contend, panic_message, settle, watchdog};

const LONG: Duration = Duration::from_secs(100_000);

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

#[test]
fn a_task_pool_runs_up_to_its_maximum_at_once() {
    let ctx = AioContext::for_test().unwrap();
    let (most, ended) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (highest, count) = (Rc::clone(&most), Rc::clone(&ended));
    ctx.run(move |co| {
        let pool = Rc::new(TaskPool::<()>::new(3));
        for index in 0..20 {
            let (highest, count) = (Rc::clone(&highest), Rc::clone(&count));
            let own = Rc::downgrade(&pool);
            pool.start(co, "task", move |co| {
                highest.set(highest.get().max(own.upgrade().unwrap().busy()));
                (0..index % 4).for_each(|_| co.yield_now());
                count.set(count.get() + 1);
                Ok(())
            });
            assert!(pool.busy() <= 3);
        }
        pool.wait_slot(co);
        assert!(pool.busy() < 3);
        pool.wait_all(co).unwrap();
        assert_eq!(pool.busy(), 0);
    });
    assert_eq!((most.get(), ended.get()), (3, 20));
}

#[test]
fn a_task_pool_keeps_the_first_error() {
    let ctx = AioContext::for_test().unwrap();
    ctx.run(|co| {
        let pool = TaskPool::new(8);
        for index in 0..6 {
            pool.start(co, "task", move |co| {
                (0..6 - index).for_each(|_| co.yield_now());
                if index % 2 == 0 { Err(index) } else { Ok(()) }
            });
        }
        pool.wait_one(co);
        assert!(!pool.has_failed() && pool.busy() == 5, "number 5 ends first, and well");
        pool.wait_one(co);
        assert!(pool.has_failed());
        assert_eq!(pool.wait_all(co), Err(4), "number 4 failed first");
        assert_eq!(pool.wait_all(co), Ok(()), "told once");
        pool.wait_one(co);
    });
}

#[test]
fn a_task_that_panics_frees_its_slot() {
    let ctx = AioContext::for_test().unwrap();
    let pool = Rc::new(TaskPool::<()>::new(1));
    let own = Rc::clone(&pool);
    ctx.spawn("starts", move |co| {
        own.start(co, "fails", |co| {
            co.yield_now();
            panic!("a task fails");
        });
        own.start(co, "works", |_| Ok(()));
    });
    assert_eq!(panic_message(|| settle(&ctx)), "a task fails");
    settle(&ctx);
    assert_eq!(pool.busy(), 0);
}

#[test]
fn a_context_may_end_with_tasks_and_those_who_wait_for_them() {
    let ctx = AioContext::for_test().unwrap();
    let frames = Rc::new(());
    let own = Rc::clone(&frames);
    ctx.spawn("waits", move |co| {
        let pool = TaskPool::<()>::new(2);
        for _ in 0..5 {
            let frame = Rc::clone(&own);
            pool.start(co, "task", move |co| {
                let _frame = frame;
                co.sleep(LONG);
                Ok(())
            });
        }
    });
    drop(ctx);
    assert_eq!(Rc::strong_count(&frames), 1);
}
