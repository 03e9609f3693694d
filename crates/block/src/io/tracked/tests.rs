use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::AioContext;

use super::{Access, TrackedRequests};

/// Random requests, each of which holds its range for a while. None is inside with one that it excludes, or
/// that excludes it, and all get through.
#[test]
fn c80_nobody_waits_for_ever_and_nobody_overlaps() {
    for seed in 0..200 {
        let mut random = numbers(seed);
        let ctx = AioContext::for_test().unwrap();
        let requests = Arc::new(TrackedRequests::default());
        let inside = Rc::new(RefCell::new(Vec::<(u64, u64, Access)>::new()));
        let left = Rc::new(Cell::new(60));
        for _ in 0..60 {
            let (start, len, turns) = (random(40), random(12) + 1, random(5));
            let access = [Access::Read, Access::Write, Access::ExcludeWrites, Access::ExcludeAll]
                [random(4) as usize];
            let (requests, inside) = (Arc::clone(&requests), Rc::clone(&inside));
            let left = Rc::clone(&left);
            ctx.spawn("request", move |co| {
                let tracked = requests.begin(co, start..start + len, access);
                let own = (start, start + len, access);
                for other in inside.borrow().iter() {
                    let exclusive = !may_overlap(access, other.2);
                    let apart = own.1 <= other.0 || other.1 <= own.0;
                    assert!(!exclusive || apart, "seed {seed}: {own:?} {other:?}");
                }
                inside.borrow_mut().push(own);
                (0..turns).for_each(|_| co.yield_now());
                let index = inside.borrow().iter().position(|other| *other == own).unwrap();
                inside.borrow_mut().swap_remove(index);
                drop(tracked);
                left.set(left.get() - 1);
            });
        }
        ctx.run_until(|| left.get() == 0);
        assert_eq!(requests.len(), 0);
    }
}

#[test]
fn a_context_that_ends_takes_its_requests_along() {
    let requests = Arc::new(TrackedRequests::default());
    let ctx = AioContext::for_test().unwrap();
    for _ in 0..5 {
        let requests = Arc::clone(&requests);
        ctx.spawn("request", move |co| {
            let _tracked = requests.begin(co, 0..10, Access::ExcludeWrites);
            co.yield_now();
            unreachable!("never polled");
        });
    }
    assert_eq!((requests.len(), requests.lock().waiting), (5, 4));
    drop(ctx);
    let state = requests.lock();
    assert_eq!((state.requests.len(), state.waiting, state.excluding), (0, 0, 0));
}

fn may_overlap(one: Access, other: Access) -> bool {
    use Access::{ExcludeWrites, Read, Write};
    matches!(
        (one, other),
        (Read | Write, Read | Write) | (Read, ExcludeWrites) | (ExcludeWrites, Read)
    )
}

/// Small random numbers by seed.
fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut random = fastrand::Rng::with_seed(seed);
    move |bound| random.u64(..bound)
}
