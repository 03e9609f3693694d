//! Panics, and coroutines that end before their closure returns.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use coblk_coroutine::*;

mod util;

use util::{Dropped, panic_message, succeeds_in_child};

/// Suspends when it is dropped.
struct SuspendOnDrop<'a>(&'a Suspender);

impl Drop for SuspendOnDrop<'_> {
    fn drop(&mut self) {
        self.0.suspend();
    }
}

#[test]
fn a_panic_goes_on_in_the_resumer_and_the_stack_is_used_again() {
    succeeds_in_child("a_panic_goes_on_in_the_resumer_and_the_stack_is_used_again", || {
        let dropped = Dropped::default();
        for round in 1..=1000 {
            let token = dropped.token();
            let coroutine = Coroutine::new("panics", move |suspender| {
                let _token = token;
                suspender.suspend();
                panic!("round {round}");
            });
            coroutine.resume();
            assert_eq!(panic_message(|| coroutine.resume()), format!("round {round}"));
            assert_eq!(coroutine.state(), CoroutineState::Terminated);
            assert_eq!(dropped.times(), round);
            assert!(!in_coroutine());
        }
        assert_eq!(pool_stats().allocated, 1);
    });
}

#[test]
fn a_panic_goes_on_in_a_coroutine_that_is_the_resumer() {
    let outer = Coroutine::new("outer", |_| {
        let inner = Coroutine::new("inner", |_| panic!("of the inner one"));
        assert_eq!(panic_message(|| inner.resume()), "of the inner one");
        assert_eq!(current().unwrap().name(), "outer");
        panic!("of the outer one");
    });
    assert_eq!(panic_message(|| outer.resume()), "of the outer one");
}

#[test]
fn wakeups_pending_behind_a_panic_are_run() {
    let ran = Rc::new(RefCell::new(Vec::new()));
    let targets = ["first", "panics", "last"].map(|name| {
        let ran = ran.clone();
        Coroutine::new(name, move |_| {
            ran.borrow_mut().push(name);
            assert_ne!(name, "panics", "a second panic");
        })
    });
    let waker = Coroutine::new("waker", {
        let targets = targets.clone();
        move |_| {
            targets.iter().for_each(|target| target.queue_wake("waker"));
            panic!("the first panic");
        }
    });
    assert_eq!(panic_message(|| waker.resume()), "the first panic");
    assert_eq!(*ran.borrow(), ["first", "panics", "last"]);
    assert!(targets.iter().all(|target| target.state() == CoroutineState::Terminated));
}

#[test]
fn a_panic_of_a_woken_coroutine_goes_on_in_the_resumer() {
    let target = Coroutine::new("target", |_| panic!("woken"));
    let waker = Coroutine::new("waker", move |suspender| {
        target.queue_wake("waker");
        suspender.suspend();
    });
    assert_eq!(panic_message(|| waker.resume()), "woken");
    assert_eq!(waker.state(), CoroutineState::Suspended);
    assert_eq!(waker.resume(), CoroutineState::Terminated);
}

#[test]
fn dropping_the_last_handle_runs_the_destructors() {
    fn suspends_with(tokens: [util::Token; 2], suspender: &Suspender) {
        let _tokens = tokens;
        suspender.suspend();
        unreachable!("it is not resumed");
    }
    let dropped = Dropped::default();
    let tokens = [dropped.token(), dropped.token()];
    let coroutine = Coroutine::new("c", move |suspender| suspends_with(tokens, suspender));
    coroutine.resume();
    let other = coroutine.clone();
    drop(coroutine);
    assert_eq!(dropped.times(), 0);
    drop(other);
    assert_eq!(dropped.times(), 2);
}

#[test]
fn unwind_ends_it_for_all_handles() {
    let dropped = Dropped::default();
    let token = dropped.token();
    let coroutine = Coroutine::new("c", move |suspender| {
        let _token = token;
        suspender.suspend();
    });
    coroutine.resume();
    coroutine.unwind();
    assert_eq!((coroutine.state(), dropped.times()), (CoroutineState::Terminated, 1));
    coroutine.unwind();
    assert!(panic_message(|| coroutine.resume()).contains("already terminated"));
}

#[test]
fn a_coroutine_that_was_never_resumed_drops_its_closure() {
    let dropped = Dropped::default();
    let large = [0_u8; 1000];
    for unwind in [false, true] {
        let (token, large_token) = (dropped.token(), dropped.token());
        let small = Coroutine::new("small", move |_| drop(token));
        let large = Coroutine::new("large", move |_| drop((large_token, large)));
        if unwind {
            small.unwind();
            large.unwind();
        }
    }
    assert_eq!(dropped.times(), 4);
}

#[test]
fn destructors_may_wake_others() {
    let ran = Rc::new(Cell::new(false));
    let target = Coroutine::new("target", {
        let ran = ran.clone();
        move |_| ran.set(true)
    });
    struct WakeOnDrop(Coroutine);
    impl Drop for WakeOnDrop {
        fn drop(&mut self) {
            self.0.queue_wake("a destructor");
        }
    }
    let coroutine = Coroutine::new("c", move |suspender| {
        let _wake = WakeOnDrop(target);
        suspender.suspend();
    });
    coroutine.resume();
    drop(coroutine);
    assert!(ran.get());
}

#[test]
fn a_queued_coroutine_cannot_be_unwound() {
    let target = Coroutine::new("target", |_| ());
    let waker = Coroutine::new("waker", {
        let target = target.clone();
        move |_| {
            target.queue_wake("waker");
            let expected = "coroutine 'target' was already scheduled in waker";
            assert_eq!(panic_message(|| target.unwind()), expected);
        }
    });
    assert_eq!(waker.resume(), CoroutineState::Terminated);
    assert_eq!(target.state(), CoroutineState::Terminated);
}

#[test]
fn a_panic_while_a_woken_coroutine_is_dropped_loses_no_wakeup() {
    struct PanicOnDrop;
    impl Drop for PanicOnDrop {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }
    let ran = Rc::new(Cell::new(false));
    let waker = Coroutine::new("waker", {
        let ran = ran.clone();
        move |_| {
            // The wake queue has the only handles. The first one suspends, so it is unwound.
            let first = Coroutine::new("first", |suspender| {
                let caught = catch_unwind(AssertUnwindSafe(|| suspender.suspend()));
                assert!(caught.is_err());
                drop(PanicOnDrop);
            });
            first.queue_wake("waker");
            Coroutine::new("second", move |_| ran.set(true)).queue_wake("waker");
        }
    });
    assert_eq!(panic_message(|| waker.resume()), "in a destructor");
    assert!(ran.get());
}

#[test]
fn a_handle_made_by_a_destructor_stays_valid() {
    struct KeepHandle<'a>(&'a Suspender, Rc<RefCell<Option<Coroutine>>>);
    impl Drop for KeepHandle<'_> {
        fn drop(&mut self) {
            self.1.replace(Some(self.0.coroutine()));
        }
    }
    let kept = Rc::new(RefCell::new(None));
    let coroutine = Coroutine::new("kept", {
        let kept = kept.clone();
        move |suspender| {
            let _keep = KeepHandle(suspender, kept);
            suspender.suspend();
        }
    });
    coroutine.resume();
    drop(coroutine);
    let others = [(); 10].map(|()| Coroutine::new("other", |_| ()));
    let kept = kept.take().unwrap();
    assert_eq!((kept.name(), kept.state()), ("kept", CoroutineState::Terminated));
    drop(others);
}

#[test]
fn unwinding_oneself_fails() {
    let coroutine = Coroutine::new("c", |suspender| suspender.coroutine().unwind());
    assert!(panic_message(|| coroutine.resume()).contains("re-entered recursively"));
}

#[test]
fn a_panic_in_a_destructor_of_what_never_ran_reaches_who_drops_it() {
    struct PanicOnDrop;
    impl Drop for PanicOnDrop {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }
    let bomb = PanicOnDrop;
    let coroutine = Coroutine::new("c", move |_| drop(bomb));
    assert_eq!(panic_message(|| drop(coroutine)), "in a destructor");
}

#[test]
fn coroutines_are_unwound_by_a_thread_that_is_panicking() {
    let dropped = Dropped::default();
    let token = dropped.token();
    let message = panic_message(|| {
        let coroutine = Coroutine::new("c", move |suspender| {
            let _token = token;
            suspender.suspend();
        });
        coroutine.resume();
        panic!("of the thread");
    });
    assert_eq!((message.as_str(), dropped.times()), ("of the thread", 1));
}

/// A daemon may catch panics for each request in a loop. That must not keep a coroutine from
/// ending.
#[test]
fn catching_what_unwinds_it_does_not_keep_a_coroutine() {
    let caught = Rc::new(Cell::new(0));
    let coroutine = Coroutine::new("c", {
        let caught = caught.clone();
        move |suspender| {
            while caught.get() < 3 {
                let result = catch_unwind(AssertUnwindSafe(|| suspender.suspend()));
                caught.set(caught.get() + usize::from(result.is_err()));
            }
        }
    });
    coroutine.resume();
    coroutine.unwind();
    assert_eq!((coroutine.state(), caught.get()), (CoroutineState::Terminated, 3));
}

#[test]
fn a_coroutine_that_always_catches_what_unwinds_it_is_abandoned() {
    succeeds_in_child("a_coroutine_that_always_catches_what_unwinds_it_is_abandoned", || {
        let coroutine = Coroutine::new("stubborn", |suspender| {
            loop {
                let _ = catch_unwind(AssertUnwindSafe(|| suspender.suspend()));
            }
        });
        coroutine.resume();
        coroutine.unwind();
        assert_eq!(coroutine.state(), CoroutineState::Suspended);
        assert_eq!(coroutine.resume(), CoroutineState::Suspended);
        drop(coroutine);
        let stats = pool_stats();
        assert_eq!((stats.abandoned, stats.idle_in_thread, stats.allocated), (1, 0, 1));
    });
}

#[test]
fn a_destructor_may_wait_while_its_coroutine_is_unwound() {
    let dropped = Dropped::default();
    let token = dropped.token();
    let coroutine = Coroutine::new("c", move |suspender| {
        let _token = token;
        let _guard = SuspendOnDrop(suspender);
        suspender.suspend();
    });
    coroutine.resume();
    coroutine.unwind();
    // It waits, and is not told anything before its time.
    assert_eq!((coroutine.state(), dropped.times()), (CoroutineState::Suspended, 0));
    coroutine.unwind();
    assert_eq!((coroutine.state(), dropped.times()), (CoroutineState::Suspended, 0));
    // What it waited for wakes it, and it ends.
    assert_eq!(coroutine.resume(), CoroutineState::Terminated);
    assert_eq!(dropped.times(), 1);
    assert!(!std::thread::panicking());
}

#[test]
fn a_destructor_may_wait_while_its_coroutine_panics() {
    let coroutine = Coroutine::new("c", |suspender| {
        let _guard = SuspendOnDrop(suspender);
        panic!("with a guard");
    });
    assert_eq!(coroutine.resume(), CoroutineState::Suspended);
    assert_eq!(panic_message(|| coroutine.resume()), "with a guard");
    assert!(!std::thread::panicking());
}

#[test]
fn coroutines_of_a_thread_are_ended_with_it() {
    thread_local! {
        static LATE: RefCell<Option<Coroutine>> = const { RefCell::new(None) };
    }
    succeeds_in_child("coroutines_of_a_thread_are_ended_with_it", || {
        let dropped = std::sync::Arc::new(());
        let token = dropped.clone();
        std::thread::spawn(move || {
            // Registered before the pool of this thread is, so dropped after it.
            LATE.with(|late| late.replace(None));
            let coroutine = Coroutine::new("late", move |suspender| {
                suspender.suspend();
                drop(token);
            });
            coroutine.resume();
            LATE.with(|late| late.replace(Some(coroutine)));
        })
        .join()
        .unwrap();
        assert_eq!(std::sync::Arc::strong_count(&dropped), 1);
    });
}

/// Unwinds a coroutine while the thread panics.
struct UnwindOnDrop(Coroutine);

impl Drop for UnwindOnDrop {
    fn drop(&mut self) {
        self.0.unwind();
    }
}

#[test]
fn a_caught_unwinding_ends_the_same_while_the_thread_panics() {
    for keeps in [false, true] {
        for panics in [false, true] {
            let catches = Coroutine::new("catches", move |suspender| {
                let mut kept = Vec::new();
                for _ in 0..3 {
                    let caught = catch_unwind(AssertUnwindSafe(|| suspender.suspend()));
                    kept.extend(caught.err().filter(|_| keeps && !panics));
                }
            });
            catches.resume();
            let unwinds = UnwindOnDrop(catches.clone());
            let message = panic_message(move || {
                let unwinds = unwinds;
                if !panics {
                    drop(unwinds);
                }
                panic!("of the thread");
            });
            assert_eq!(message, "of the thread");
            assert_eq!(catches.state(), CoroutineState::Terminated);
        }
    }
}

#[test]
fn a_destructor_that_suspends_while_the_thread_panics_is_waited_for() {
    let coroutine = Coroutine::new("waits in a destructor", |suspender| {
        let _late = SuspendOnDrop(suspender);
        suspender.suspend();
    });
    coroutine.resume();
    let unwinds = UnwindOnDrop(coroutine.clone());
    panic_message(move || {
        let _unwinds = unwinds;
        panic!("of the thread");
    });
    assert_eq!(coroutine.state(), CoroutineState::Suspended);
    assert_eq!(coroutine.resume(), CoroutineState::Terminated);
}

#[test]
fn a_coroutine_whose_wake_is_taken_back_can_be_unwound() {
    let dropped = Dropped::default();
    let token = dropped.token();
    let woken = Coroutine::new("woken", move |suspender| {
        let _token = token;
        suspender.suspend();
        unreachable!("it was unwound");
    });
    woken.resume();
    let target = woken.clone();
    let waker = Coroutine::new("waker", move |suspender| {
        target.take_back_wake();
        target.queue_wake("test");
        target.take_back_wake();
        target.queue_wake("test again");
        target.take_back_wake();
        target.unwind();
        assert_eq!(target.state(), CoroutineState::Terminated);
        suspender.suspend();
    });
    assert_eq!(waker.resume(), CoroutineState::Suspended);
    assert_eq!(dropped.times(), 1);
    waker.resume();
}
