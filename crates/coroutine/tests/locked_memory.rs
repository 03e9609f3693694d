//! A process that locks its memory. In a test program of its own, for it cannot be taken back.

use coblk_coroutine::Coroutine;

/// Memory that the process has locked, in KiB.
fn locked_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_coroutine_locks_its_own_stack_at_most() {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::mlockall(libc::MCL_FUTURE) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let before = locked_kib();
    let deep = Coroutine::new("deep", |suspender| {
        let mut frame = [1_u8; 256 << 10];
        std::hint::black_box(&mut frame);
        suspender.suspend();
    });
    deep.resume();
    let grown_kib = locked_kib() - before;
    assert!(grown_kib <= 2 << 10, "one coroutine locks {grown_kib} KiB");
    deep.resume();
    drop(deep);
    assert_eq!(coblk_coroutine::trim_pool(), 1);
    // The same memory serves again.
    let again = Coroutine::new("again", |suspender| suspender.suspend());
    again.resume();
    again.resume();
}
