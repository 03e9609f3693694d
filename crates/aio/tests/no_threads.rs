//! A process that cannot start threads. Alone in its binary, because it limits the whole process.

use std::cell::Cell;
use std::rc::Rc;
use std::thread;

use coblk_aio::{AioContext, ThreadPool};

/// Sets the limit of the process's address space.
fn limit_address_space(bytes: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a plain value of ours, read and written by the calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &mut limit), 0);
        let before = limit.rlim_cur;
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &limit), 0);
        before
    }
}

fn address_space() -> libc::rlim_t {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').next().unwrap().parse::<libc::rlim_t>().unwrap() * 4096
}

#[test]
fn without_threads_jobs_run_on_the_loop_and_complete_from_bottom_halves() {
    let ctx =
        AioContext::test_builder().thread_pool(ThreadPool::new(0, 4).unwrap()).build().unwrap();
    let home = thread::current().id();
    let completed = Rc::new(Cell::new(0));
    // Something has used a coroutine's stack and some heap before.
    ctx.run(|co| co.yield_now());

    // Not enough for the stack of a thread.
    let before = limit_address_space(address_space() + (512 << 10));
    let ran_on = ctx.run(|co| {
        let ran_on = ctx.thread_pool().submit_co(co, || thread::current().id());
        assert!(co.has_suspended());
        ran_on
    });
    for _ in 0..10 {
        let count = Rc::clone(&completed);
        let done = move |_: &AioContext, result: std::io::Result<_>| {
            assert_eq!(result.unwrap(), home);
            count.set(count.get() + 1);
        };
        ctx.thread_pool().submit_aio(&ctx, || thread::current().id(), done);
    }
    let at_submit = completed.get();
    ctx.run_until(|| completed.get() == 10);
    let threads = ctx.thread_pool().threads();
    limit_address_space(before);

    assert_eq!((ran_on, at_submit, threads), (home, 0, 0));
    // And when there are threads again, they are used.
    let ran_on = ctx.run(|co| ctx.thread_pool().submit_co(co, || thread::current().id()));
    assert_ne!(ran_on, home);
}
