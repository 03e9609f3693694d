//! [`Signal`]: what a job's main coroutine waits for. All that may let it go on raises the signal, and the
//! coroutine looks at everything again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coblk_aio::{AioContext, BottomHalf, Co, CoWaker, RemoteBottomHalf, Timer};

/// Wakes one coroutine, from a bottom half. Home thread, but for [`remote`](Self::remote).
pub(super) struct Signal {
    state: Rc<State>,
    raise: BottomHalf,
    timer: Timer,
}

#[derive(Default)]
struct State {
    is_raised: Cell<bool>,
    waiter: RefCell<Option<CoWaker>>,
}

impl Signal {
    pub(super) fn new(ctx: &AioContext) -> Signal {
        let state = Rc::<State>::default();
        let (by_bottom_half, by_timer) = (Rc::clone(&state), Rc::clone(&state));
        Signal {
            raise: ctx.bottom_half("job", move |_| by_bottom_half.wake()),
            timer: ctx.timer(move |_| by_timer.wake()),
            state,
        }
    }

    /// Has the coroutine go on.
    pub(super) fn raise(&self) {
        self.raise.schedule();
    }

    /// Raises the signal from any thread.
    pub(super) fn remote(&self) -> RemoteBottomHalf {
        self.raise.remote()
    }

    /// Waits until the signal is raised, or until a time of the context's clock. Returns at once if it was
    /// raised since the last wait.
    pub(super) fn co_wait(&self, co: &Co<'_>, until_ns: Option<i64>) {
        if self.state.is_raised.take() {
            return;
        }
        if let Some(until_ns) = until_ns {
            self.timer.arm_at_ns(until_ns);
        }
        co.suspend_for("a job's next step", |waker| {
            let stale = self.state.waiter.replace(Some(waker));
            drop(stale);
        });
        self.timer.cancel();
        self.state.is_raised.set(false);
    }
}

impl State {
    fn wake(&self) {
        self.is_raised.set(true);
        let waiter = self.waiter.take();
        waiter.into_iter().for_each(CoWaker::wake);
    }
}
