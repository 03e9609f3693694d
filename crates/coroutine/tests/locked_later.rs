//! A process that locks its memory after its first coroutine. In a test program of its own, for it
//! cannot be taken back.

use coblk_coroutine::Coroutine;

fn coroutine() -> Coroutine {
    let coroutine = Coroutine::new("waits", |suspender| suspender.suspend());
    coroutine.resume();
    coroutine
}

#[test]
fn stacks_are_made_after_the_process_has_locked_its_memory() {
    let first = coroutine();
    // SAFETY: no memory is involved.
    let result = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let more: Vec<_> = (0..10).map(|_| coroutine()).collect();
    more.iter().chain([&first]).for_each(|coroutine| drop(coroutine.resume()));
}
