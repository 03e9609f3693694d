//! A context whose coroutines make blocking calls on its own thread.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::thread;

use coblk_aio::{AioContext, PoolShare, ThreadPool};

#[test]
fn calls_of_coroutines_run_on_the_thread_of_the_loop() {
    let pool = ThreadPool::new(0, 1).unwrap();
    let builder = AioContext::builder().thread_pool(pool.clone());
    let ctx = builder.calls_in_place(true).build().unwrap();
    let here = thread::current().id();
    let (of_pool, of_share, once) = ctx.run(|co| {
        let share = PoolShare::new();
        (
            pool.submit_co(co, || thread::current().id()),
            share.submit_co(co, || thread::current().id()),
            PoolShare::once(co, || thread::current().id()),
        )
    });
    assert_eq!([of_pool, of_share, once], [here; 3]);
    assert_eq!(pool.threads(), 0);
}

#[test]
fn a_call_with_a_callback_goes_to_a_worker() {
    let ctx = AioContext::builder().calls_in_place(true).build().unwrap();
    let result = Rc::new(Cell::new(None));
    let told = Rc::clone(&result);
    let callback = move |_: &AioContext, id: io::Result<_>| told.set(id.ok());
    ctx.thread_pool().submit_aio(&ctx, || thread::current().id(), callback);
    while result.get().is_none() {
        ctx.poll();
    }
    let ran_on = result.get();
    assert_ne!(ran_on, Some(thread::current().id()));
}

#[test]
fn a_panic_of_a_call_goes_on_in_its_coroutine() {
    let ctx = AioContext::builder().calls_in_place(true).build().unwrap();
    let caught = ctx.run(|co| {
        let call = || co.context().thread_pool().submit_co(co, || panic!("of the call"));
        catch_unwind(AssertUnwindSafe(call)).is_err()
    });
    assert!(caught);
}
