//! What a context does about a panic of what it runs.
//!
//! Code that the loop calls is not caught one by one, which would cost every request a frame, but a
//! phase at a time: [`Inner::shield`] calls the phase again after a panic, to go on behind what
//! panicked. What that was is left in [`Panics`] on the way out, by a guard that does nothing else.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coblk_coroutine::Coroutine;

/// What a panic carries.
pub(crate) type Payload = Box<dyn Any + Send>;

/// What a context does when a callback, a coroutine or anything else that its loop runs panics; see
/// [`AioContextBuilder::on_panic`](crate::AioContextBuilder::on_panic).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanicPolicy {
    /// Reports it, in an error event that says what panicked, and goes on with what comes next.
    #[default]
    Report,
    /// Lets it go on out of [`poll`](crate::AioContext::poll), so that the loop ends. What was to
    /// run behind it is not lost: if there is another poll, that runs it.
    Stop,
}

/// What has panicked.
#[derive(Clone, Copy)]
pub(crate) enum Culprit {
    BottomHalf(&'static str),
    Coroutine(&'static str),
    FdHandler(RawFd),
    /// A callback without a name.
    Other(&'static str),
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Culprit::BottomHalf(name) => write!(f, "bottom half '{name}'"),
            Culprit::Coroutine(name) => write!(f, "coroutine '{name}'"),
            Culprit::FdHandler(fd) => write!(f, "the handler of descriptor {fd}"),
            Culprit::Other(what) => f.write_str(what),
        }
    }
}

/// The policy of a context, and what is on its way out by a panic. Home thread only.
pub(crate) struct Panics {
    pub(crate) policy: PanicPolicy,
    culprit: Cell<Option<Culprit>>,
}

impl Panics {
    pub(crate) fn new(policy: PanicPolicy) -> Panics {
        Panics { policy, culprit: Cell::new(None) }
    }

    /// Calls `code`, which is called that in a report if it panics.
    #[inline]
    pub(crate) fn blaming<R>(&self, culprit: Culprit, code: impl FnOnce() -> R) -> R {
        struct Blame<'a>(&'a Panics, Culprit);
        impl Drop for Blame<'_> {
            #[cold]
            fn drop(&mut self) {
                self.0.culprit.set(self.0.culprit.get().or(Some(self.1)));
            }
        }
        let blame = Blame(self, culprit);
        let result = code();
        std::mem::forget(blame);
        result
    }

    /// What the panic that was caught last came from.
    #[cold]
    pub(crate) fn take_culprit(&self) -> Culprit {
        self.culprit.take().unwrap_or(Culprit::Other("the loop"))
    }
}

/// Resumes a coroutine of a context with that policy. Its context may be gone afterwards: another
/// coroutine that was woken may have ended it.
#[inline(always)]
pub(crate) fn resume(coroutine: &Coroutine, policy: PanicPolicy) {
    coroutine.resume_catching(|name, payload| keep_or_report(name, payload, policy));
}

/// A coroutine has panicked. Returns the panic if it stops the loop, once those that were woken have
/// run.
#[cold]
pub(crate) fn keep_or_report(
    name: &'static str,
    payload: Payload,
    policy: PanicPolicy,
) -> Option<Payload> {
    match policy {
        PanicPolicy::Report => {
            let thread = std::thread::current();
            report(thread.name().unwrap_or(""), Culprit::Coroutine(name), &*payload);
            None
        }
        PanicPolicy::Stop => Some(payload),
    }
}

/// Drops something at the end of a context. A panic of its destructor goes no further, or what comes
/// after it would never be dropped.
pub(crate) fn drop_reporting<T>(context: &str, what: T) {
    call_reporting(context, Culprit::Other("a destructor, at the end of the context"), || {
        drop(what)
    });
}

/// Calls something at the end of a context. A panic is reported, whatever the policy, and goes no
/// further.
pub(crate) fn call_reporting(context: &str, culprit: Culprit, code: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        report(context, culprit, &*payload);
    }
}

#[cold]
pub(crate) fn report(context: &str, culprit: Culprit, payload: &(dyn Any + Send)) {
    let message = message(payload);
    tracing::error!(context, %culprit, message, "a panic: the loop goes on");
}

/// What a panic says.
pub(crate) fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("")
}
