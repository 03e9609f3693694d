//! Shares of the worker pool: calls that hang leave threads for others.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use coblk_aio::{AioContext, PoolShare, ThreadPool};

use crate::util::watchdog;

/// What calls hang on until it is opened.
#[derive(Default)]
struct Dam {
    is_open: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    most: AtomicUsize,
}

impl Dam {
    fn wait(&self) {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(waiting, Ordering::SeqCst);
        let mut is_open = self.is_open.lock().unwrap();
        while !*is_open {
            is_open = self.opened.wait(is_open).unwrap();
        }
        drop(is_open);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

fn context(max: usize) -> AioContext {
    AioContext::builder().thread_pool(ThreadPool::new(0, max).unwrap()).build().unwrap()
}

/// Polls until workers have come so far.
fn until(ctx: &AioContext, is_so: impl Fn() -> bool) {
    while !is_so() {
        ctx.try_poll();
        std::thread::yield_now();
    }
}

/// Submits so many calls that hang.
fn hang(ctx: &AioContext, share: &Rc<PoolShare>, dam: &Arc<Dam>, calls: usize) -> Rc<Cell<usize>> {
    let done = Rc::new(Cell::new(0));
    for _ in 0..calls {
        let (share, dam, done) = (Rc::clone(share), Arc::clone(dam), Rc::clone(&done));
        ctx.spawn("hangs", move |co| {
            share.submit_co(co, || dam.wait());
            done.set(done.get() + 1);
        });
    }
    done
}

#[test]
fn a_share_whose_calls_hang_leaves_threads_for_others() {
    let _watchdog = watchdog();
    let ctx = context(8);
    let (dead, dam) = (Rc::new(PoolShare::new()), Arc::new(Dam::default()));
    let done = hang(&ctx, &dead, &dam, 100);
    until(&ctx, || dam.waiting() == 6);
    // Another one, and one more that hangs as well, have the rest between them.
    let other = PoolShare::new();
    assert_eq!(ctx.run(|co| other.submit_co(co, || 7)), 7);
    let (second, third) = (Rc::new(PoolShare::new()), Rc::new(PoolShare::new()));
    let more = [&second, &third].map(|share| hang(&ctx, share, &dam, 100));
    until(&ctx, || dam.waiting() == 6 + 2 + 1);
    // All threads hang, and each share still has one.
    assert_eq!(ctx.run(|co| other.submit_co(co, || 8)), 8);
    assert_eq!(ctx.run(|co| PoolShare::once(co, || 9)), 9);
    assert_eq!((dam.waiting(), dam.most.load(Ordering::SeqCst)), (9, 9));
    dam.open();
    ctx.run_until(|| [&done, &more[0], &more[1]].iter().all(|done| done.get() == 100));
}

#[test]
fn calls_of_one_share_begin_in_their_order() {
    // One at a time, or they could end in another order than they begin.
    let ctx = context(1);
    let (share, dam) = (Rc::new(PoolShare::new()), Arc::new(Dam::default()));
    let blocked = hang(&ctx, &share, &dam, 1);
    let order = Rc::new(RefCell::new(Vec::new()));
    for number in 0..50 {
        let (share, order) = (Rc::clone(&share), Rc::clone(&order));
        ctx.spawn("ordered", move |co| {
            share.submit_co(co, || ());
            order.borrow_mut().push(number);
        });
    }
    dam.open();
    ctx.run_until(|| blocked.get() == 1 && order.borrow().len() == 50);
    assert!(order.borrow().is_sorted(), "{:?}", order.borrow());
}

#[test]
fn a_share_that_waits_for_threads_of_another_context_gets_them() {
    let _watchdog = watchdog();
    let pool = ThreadPool::new(0, 2).unwrap();
    let ctx = AioContext::builder().thread_pool(pool.clone()).build().unwrap();
    let (dam, own_dam) = (Arc::new(Dam::default()), Arc::new(Dam::default()));
    let theirs = Arc::clone(&dam);
    let (full, is_full) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        let ctx = AioContext::builder().thread_pool(pool).build().unwrap();
        let done = hang(&ctx, &Rc::new(PoolShare::new()), &theirs, 2);
        until(&ctx, || theirs.waiting() == 2);
        full.send(()).unwrap();
        ctx.run_until(|| done.get() == 2);
    });
    is_full.recv().unwrap();
    // The first call has a thread of its own, and hangs; the second waits for one of the pool's.
    let done = hang(&ctx, &Rc::new(PoolShare::new()), &own_dam, 2);
    until(&ctx, || own_dam.waiting() == 1);
    dam.open();
    other.join().unwrap();
    // No job of this context has ended.
    until(&ctx, || own_dam.waiting() == 2);
    own_dam.open();
    ctx.run_until(|| done.get() == 2);
}

#[test]
fn what_waits_for_its_share_is_unwound_with_its_context() {
    let ctx = context(1);
    let (share, dam) = (Rc::new(PoolShare::new()), Arc::new(Dam::default()));
    let done = hang(&ctx, &share, &dam, 5);
    until(&ctx, || dam.waiting() == 1);
    dam.open();
    drop(ctx);
    assert!(done.get() < 5);
}
