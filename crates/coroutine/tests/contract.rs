//! One test for each line of the coroutine contract, named after it.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::rc::Rc;

use coblk_coroutine::*;

mod util;

use util::{dies_in_child, panic_message, succeeds_in_child};

/// What happened, in order.
type Log = Rc<RefCell<Vec<String>>>;

/// A coroutine that logs its name each time it runs, and suspends `times`.
fn logging(log: &Log, name: &'static str, times: usize) -> Coroutine {
    let log = log.clone();
    Coroutine::new(name, move |suspender| {
        for _ in 0..times {
            log.borrow_mut().push(name.to_string());
            suspender.suspend();
        }
        log.borrow_mut().push(format!("{name} ends"));
    })
}

#[test]
fn c01_create_does_not_run_the_entry() {
    let ran = Rc::new(Cell::new(false));
    let coroutine = {
        let ran = ran.clone();
        Coroutine::new("c01", move |_| ran.set(true))
    };
    assert!(!ran.get());
    assert_eq!(coroutine.state(), CoroutineState::Created);
    coroutine.resume();
    assert!(ran.get());
}

#[test]
fn c02_control_alternates_strictly_with_the_caller() {
    let log = Log::default();
    let coroutine = logging(&log, "coroutine", 2);
    for expected in
        [CoroutineState::Suspended, CoroutineState::Suspended, CoroutineState::Terminated]
    {
        log.borrow_mut().push("caller".to_string());
        assert_eq!(coroutine.resume(), expected);
    }
    let expected = ["caller", "coroutine", "caller", "coroutine", "caller", "coroutine ends"];
    assert_eq!(*log.borrow(), expected);
}

#[test]
fn c03_five_suspends_take_six_resumes() {
    let coroutine = Coroutine::new("c03", |suspender| (0..5).for_each(|_| suspender.suspend()));
    let mut resumes = 1;
    while coroutine.resume() == CoroutineState::Suspended {
        resumes += 1;
    }
    assert_eq!(resumes, 6);
}

#[test]
fn c04_coroutines_nest_128_deep() {
    fn nest(depth: usize, entered: &Rc<Cell<usize>>, returned: &Rc<Cell<usize>>) {
        if depth == 128 {
            return;
        }
        entered.set(entered.get() + 1);
        let inner = {
            let (entered, returned) = (entered.clone(), returned.clone());
            Coroutine::new("c04", move |_| nest(depth + 1, &entered, &returned))
        };
        assert_eq!(inner.resume(), CoroutineState::Terminated);
        returned.set(returned.get() + 1);
    }
    let (entered, returned) = (Rc::default(), Rc::default());
    nest(0, &entered, &returned);
    assert_eq!((entered.get(), returned.get()), (128, 128));
}

#[test]
fn c05_in_coroutine_and_current_tell_who_runs() {
    assert!(!in_coroutine() && current().is_none());
    let coroutine = Coroutine::new("outer", |suspender| {
        let outer = suspender.coroutine().id();
        assert!(in_coroutine());
        assert_eq!(current().unwrap().id(), outer);
        Coroutine::new("inner", move |_| assert_ne!(current().unwrap().id(), outer)).resume();
        assert_eq!(current().unwrap().id(), outer);
        suspender.suspend();
        assert_eq!(current().unwrap().id(), outer);
    });
    coroutine.resume();
    assert!(!in_coroutine() && current().is_none());
    coroutine.resume();
    assert!(!in_coroutine() && current().is_none());
}

#[test]
fn c06_entered_is_true_for_every_caller_on_the_chain() {
    let outer = Coroutine::new("outer", |suspender| {
        let outer = suspender.coroutine();
        assert_eq!(outer.state(), CoroutineState::Entered);
        let inner = Coroutine::new("inner", {
            let outer = outer.clone();
            move |suspender| {
                assert_eq!(outer.state(), CoroutineState::Entered);
                assert_eq!(suspender.coroutine().state(), CoroutineState::Entered);
            }
        });
        assert_eq!(inner.state(), CoroutineState::Created);
        inner.resume();
        suspender.suspend();
    });
    assert_eq!(outer.state(), CoroutineState::Created);
    outer.resume();
    assert_eq!(outer.state(), CoroutineState::Suspended);
    outer.resume();
    assert_eq!(outer.state(), CoroutineState::Terminated);
}

#[test]
fn c07_a_terminated_coroutine_is_never_touched_again() {
    let coroutine = Coroutine::new("c07", |_| ());
    let id = coroutine.id();
    coroutine.resume();
    // Its stack is not given to another one while a handle to it exists.
    let others: Vec<_> = (0..300).map(|_| Coroutine::new("other", |_| ())).collect();
    for other in &others {
        other.resume();
    }
    assert_eq!((coroutine.state(), coroutine.id()), (CoroutineState::Terminated, id));
    coroutine.unwind();
    let message = panic_message(|| coroutine.resume());
    assert_eq!(message, "coroutine 'c07' has already terminated");
}

#[test]
fn c08_a_queued_coroutine_names_who_queued_it() {
    let target = Coroutine::new("target", |_| ());
    let waker = Coroutine::new("waker", {
        let target = target.clone();
        move |_| {
            target.queue_wake("a lock");
            let expected = "coroutine 'target' was already scheduled in a lock";
            assert_eq!(panic_message(|| target.resume()), expected);
        }
    });
    waker.resume();
    assert_eq!(target.state(), CoroutineState::Terminated);
}

#[test]
fn c09_resuming_a_running_coroutine_fails() {
    let expected = "re-entered recursively";
    let coroutine = Coroutine::new("outer", move |suspender| {
        let outer = suspender.coroutine();
        assert!(panic_message(|| outer.resume()).contains(expected));
        let inner = Coroutine::new("inner", move |_| {
            assert!(panic_message(|| outer.resume()).contains(expected));
            assert!(panic_message(|| outer.queue_wake("inner")).contains(expected));
        });
        inner.resume();
    });
    assert_eq!(coroutine.resume(), CoroutineState::Terminated);
}

#[test]
fn c10_suspending_with_no_caller_fails() {
    // A suspender that got out of its coroutine: only unsafe code can write this.
    let escaped: Cell<Option<&Suspender>> = Cell::new(None);
    let place = &escaped;
    // SAFETY: what the closure borrows outlives the coroutine, and the coroutine outlives the uses
    // of its suspender.
    let coroutine = unsafe {
        Coroutine::new_unchecked("c10", |suspender| {
            place.set(Some(&*std::ptr::from_ref(suspender)));
            suspender.suspend();
        })
    };
    coroutine.resume();
    let suspender = escaped.get().unwrap();
    assert!(panic_message(|| suspender.suspend()).contains("yielding to no one"));
    coroutine.resume();
}

#[test]
fn c13_queued_wakeups_run_depth_first() {
    let log = Log::default();
    let leaves = [logging(&log, "a1", 1), logging(&log, "a2", 1)];
    let branch = Coroutine::new("a", {
        let (log, leaves) = (log.clone(), leaves.clone());
        move |suspender| {
            log.borrow_mut().push("a".to_string());
            leaves.iter().for_each(|leaf| leaf.queue_wake("a"));
            suspender.suspend();
        }
    });
    let older = logging(&log, "b", 1);
    let root = Coroutine::new("root", {
        let (log, branch, older) = (log.clone(), branch.clone(), older.clone());
        move |_| {
            branch.queue_wake("root");
            older.queue_wake("root");
            log.borrow_mut().push("root ends".to_string());
        }
    });
    assert_eq!(root.resume(), CoroutineState::Terminated);
    // What `a` woke runs before `b`, which was pending already.
    assert_eq!(*log.borrow(), ["root ends", "a", "a1", "a2", "b"]);
}

#[test]
fn c13_wakeups_run_when_the_waker_suspends_in_a_nested_resume() {
    let log = Log::default();
    let target = logging(&log, "target", 1);
    let outer = Coroutine::new("outer", {
        let log = log.clone();
        move |_| {
            let inner = Coroutine::new("inner", move |suspender| {
                target.queue_wake("inner");
                suspender.suspend();
            });
            inner.resume();
            log.borrow_mut().push("outer goes on".to_string());
        }
    });
    outer.resume();
    assert_eq!(*log.borrow(), ["target", "outer goes on"]);
}

#[test]
fn c14_one_wake_queue_is_fifo() {
    let log = Log::default();
    let names = ["1", "2", "3", "4", "5"];
    let targets = names.map(|name| logging(&log, name, 1));
    let waker = Coroutine::new("waker", move |_| {
        targets.iter().for_each(|target| target.queue_wake("waker"));
    });
    waker.resume();
    assert_eq!(*log.borrow(), names);
}

#[test]
fn c15_25000_mutual_wakes_do_not_deepen_the_stack() {
    let lowest = Rc::new(Cell::new(usize::MAX));
    let highest = Rc::new(Cell::new(0));
    let left = Rc::new(Cell::new(25_000));
    let pair: Rc<RefCell<Vec<Coroutine>>> = Rc::default();
    for me in 0..2 {
        let (lowest, highest, left) = (lowest.clone(), highest.clone(), left.clone());
        let others = pair.clone();
        let coroutine = Coroutine::new("c15", move |suspender| {
            let other = others.borrow()[1 - me].clone();
            while left.get() > 0 {
                left.set(left.get() - 1);
                other.queue_wake("c15");
                // Where this frame lies tells how deep its own stack is. That the resumer does not
                // recurse either shows in its not overflowing.
                let here = std::ptr::from_ref(&other).addr();
                if me == 0 {
                    lowest.set(lowest.get().min(here));
                    highest.set(highest.get().max(here));
                }
                suspender.suspend();
            }
        });
        pair.borrow_mut().push(coroutine);
    }
    // A stack on which 25,000 nested resumes would not fit.
    let first = pair.borrow()[0].clone();
    let runner = Coroutine::new("runner", move |_| {
        first.resume();
    });
    runner.resume();
    assert_eq!(left.get(), 0);
    assert_eq!(lowest.get(), highest.get());
    pair.borrow_mut().clear();
}

/// Uses up any stack.
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + frame[0] }
}

/// Guards stacks in the way that kernels before 6.13 leave.
fn use_fallback_guard(size_bytes: usize) {
    configure_stacks(StackConfig::new(size_bytes).guard(GuardKind::Mapping)).unwrap();
}

#[test]
fn c16_a_stack_overflow_is_reported_with_the_name() {
    let death = dies_in_child("c16_a_stack_overflow_is_reported_with_the_name", || {
        let outer = Coroutine::new("outer", |_| {
            let inner = Coroutine::new("recurses too deep", |suspender| {
                suspender.suspend();
                black_box(recurse(0));
            });
            inner.resume();
            inner.resume();
        });
        outer.resume();
    });
    let Some((status, stderr)) = death else { return };
    let expected = "coroutine 'recurses too deep' overflowed its stack of 1024 KiB\n";
    assert!(stderr.contains(expected), "{status}: {stderr}");
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn c16_an_overflow_is_reported_on_a_thread_that_std_did_not_make() {
    extern "C" fn thread(_: *mut libc::c_void) -> *mut libc::c_void {
        let coroutine = Coroutine::new("on a foreign thread", |_| {
            black_box(recurse(0));
        });
        coroutine.resume();
        std::ptr::null_mut()
    }
    let name = "c16_an_overflow_is_reported_on_a_thread_that_std_did_not_make";
    // SAFETY: a thread that takes nothing and returns nothing, and is waited for.
    let death = dies_in_child(name, || unsafe {
        let mut id = 0;
        let null = std::ptr::null_mut::<libc::c_void>();
        assert_eq!(libc::pthread_create(&mut id, null.cast(), thread, null), 0);
        libc::pthread_join(id, null.cast());
    });
    let Some((status, stderr)) = death else { return };
    assert!(stderr.contains("'on a foreign thread' overflowed"), "{status}: {stderr}");
}

#[test]
fn c16_an_overflow_is_reported_with_the_fallback_guard() {
    let death = dies_in_child("c16_an_overflow_is_reported_with_the_fallback_guard", || {
        use_fallback_guard(128 << 10);
        let coroutine = Coroutine::new("small", |_| {
            black_box(recurse(0));
        });
        coroutine.resume();
    });
    let Some((status, stderr)) = death else { return };
    let expected = "coroutine 'small' overflowed its stack of 128 KiB";
    assert!(stderr.contains(expected), "{status}: {stderr}");
}

#[test]
fn c16_a_fault_elsewhere_goes_to_the_handler_before() {
    let death = dies_in_child("c16_a_fault_elsewhere_goes_to_the_handler_before", || {
        Coroutine::new("innocent", |_| ()).resume();
        // The thread's own stack: std has a message for that.
        black_box(recurse(0));
    });
    let Some((status, stderr)) = death else { return };
    assert!(stderr.contains("has overflowed its stack"), "{status}: {stderr}");
    assert!(!stderr.contains("innocent"), "{stderr}");
}

/// Creates that many coroutines that all exist at once, and ends them.
fn churn(count: usize) {
    let coroutines: Vec<_> = (0..count).map(|_| Coroutine::new("churn", |_| ())).collect();
    for coroutine in coroutines {
        coroutine.resume();
    }
}

#[test]
fn c17_a_thread_keeps_at_most_two_batches() {
    succeeds_in_child("c17_a_thread_keeps_at_most_two_batches", || {
        churn(256);
        let stats = pool_stats();
        assert_eq!((stats.allocated, stats.idle_in_thread, stats.idle_shared), (256, 256, 0));

        churn(1000);
        let stats = pool_stats();
        assert!(stats.idle_in_thread <= 256);
        assert_eq!(stats.allocated, 1000);
        assert_eq!(stats.idle_in_thread + stats.idle_shared, 1000);

        // What is idle is used again.
        churn(1000);
        assert_eq!(pool_stats().allocated, 1000);
    });
}

#[test]
fn c18_the_shared_pool_is_exchanged_by_the_batch_and_bounded() {
    succeeds_in_child("c18_the_shared_pool_is_exchanged_by_the_batch_and_bounded", || {
        set_pool_limit(300);
        churn(2000);
        let stats = pool_stats();
        // Two batches fit; what did not fit was freed.
        assert_eq!((stats.idle_shared, stats.shared_limit), (256, 300));
        assert_eq!(stats.allocated, stats.idle_shared + stats.idle_in_thread);

        let taker = std::thread::spawn(|| {
            let coroutine = Coroutine::new("taker", |_| ());
            assert_eq!((pool_stats().idle_in_thread, pool_stats().idle_shared), (127, 128));
            coroutine.resume();
        });
        taker.join().unwrap();

        assert_eq!(trim_pool(), stats.allocated);
        let stats = pool_stats();
        assert_eq!((stats.allocated, stats.idle_in_thread, stats.idle_shared), (0, 0, 0));
        churn(10);
        assert_eq!(pool_stats().allocated, 10);
    });
}

#[test]
fn c19_the_limit_respects_the_mappings_that_the_kernel_allows() {
    succeeds_in_child("c19_the_limit_respects_the_mappings_that_the_kernel_allows", || {
        use_fallback_guard(1 << 20);
        set_pool_limit(usize::MAX);
        churn(1);
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let mappings: usize = text.trim().parse().unwrap();
        let limit = pool_stats().shared_limit;
        assert!(limit < mappings / 2 && limit > 0, "{limit} of {mappings}");
    });
}

#[test]
fn c19_running_out_of_mappings_is_an_error() {
    succeeds_in_child("c19_running_out_of_mappings_is_an_error", || {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let mappings: usize = text.trim().parse().unwrap();
        if mappings > 100_000 {
            return; // would take long
        }
        use_fallback_guard(64 << 10);
        // The vector must not need a mapping when there is none left.
        let mut coroutines = Vec::with_capacity(mappings);
        let error = loop {
            match Coroutine::try_new("c19", |_| ()) {
                Ok(coroutine) => coroutines.push(coroutine),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        assert!(coroutines.len() > mappings / 2 - 1000, "{}", coroutines.len());
        drop(coroutines);
        churn(1000);
    });
}

#[test]
fn c20_a_thread_gives_its_pool_back_when_it_ends() {
    succeeds_in_child("c20_a_thread_gives_its_pool_back_when_it_ends", || {
        std::thread::spawn(|| churn(200)).join().unwrap();
        let stats = pool_stats();
        assert_eq!((stats.allocated, stats.idle_in_thread, stats.idle_shared), (200, 0, 200));
        // They run on the next thread as well as on the first.
        std::thread::spawn(|| churn(200)).join().unwrap();
        assert_eq!(pool_stats().allocated, 200);
    });
}
