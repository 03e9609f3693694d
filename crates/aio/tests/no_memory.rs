//! A process without memory for another stack. One test: the limit is the whole program's.

use std::cell::Cell;
use std::rc::Rc;

use coblk_aio::{AioContext, Co, JoinError};

/// Allows this process so many KiB of address space more than it has.
fn limit_growth(kib: u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    let size_kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let limit = libc::rlimit { rlim_cur: (size_kib + kib) * 1024, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: of this process, which is for this test only.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

#[test]
fn a_coroutine_without_a_stack_is_an_error_of_its_request() {
    let ctx = AioContext::for_test().unwrap();
    let end = Rc::new(Cell::new(false));
    let waits = |end: &Rc<Cell<bool>>| {
        let end = Rc::clone(end);
        move |co: &Co<'_>| {
            while !end.get() {
                co.yield_now();
            }
        }
    };
    limit_growth(20 << 10);
    let mut spawned = 0;
    let error = loop {
        match ctx.try_spawn("waits", waits(&end)) {
            Ok(()) => spawned += 1,
            Err(error) => break error,
        }
    };
    // Less than a stack, for everything else.
    limit_growth(512);
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    assert!(spawned > 5, "{spawned}");
    assert_eq!(ctx.ensure_stack().unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    let from_afar = ctx.handle().spawn("from afar", |_| ());
    ctx.try_poll();
    assert_eq!(from_afar.wait(), Err(JoinError::NoMemory));
    assert_eq!(ctx.coroutines().len(), spawned, "nothing is left of those that were refused");
    end.set(true);
    ctx.run_until(|| ctx.coroutines().is_empty());
    ctx.try_spawn("finds an idle stack", |_| ()).unwrap();
}
