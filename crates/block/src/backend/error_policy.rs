//! Error policies: a failed request is reported, ignored, or held while its backend is stopped.
//!
//! ```text
//!   a request fails --> invalid, or not supported ----------------------> told, whatever the policy
//!                   --> report, ignore ---------------------------------> ends
//!                   --> stop --> the backend stops; the request is held, as are new ones
//!                                   |-- resume --------> all are tried again, in their order
//!                                   |-- ReportErrors --> all end: with their error, or ECANCELED
//!                                   '-- GivingBack ----> all end: with GivenBack, to be sent again
//! ```
//!
//! A held request is not in flight: it has left the gate, so a drain does not wait for it, and a
//! change of the node (more room, another length) takes effect when it is tried again. It comes back
//! through the gate. If its context ends, it is unwound like any other.
//!
//! A request that succeeds pays for this with one load.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use coblk_aio::{AioContext, Co, CoWaker, trace_event};

use crate::accounting::RequestKind;
use crate::backend::BlockBackend;
use crate::backend::root::{Medium, Request};
use crate::graph::gate::wake_all;

/// What a backend does when a request fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorPolicy {
    /// The request fails. The default, because a stopped backend needs a program that resumes it.
    #[default]
    Report,
    /// The request succeeds, and its data are lost: a read fills its buffer with zeroes, a flush makes
    /// nothing durable.
    Ignore,
    /// The backend stops, and the request is held.
    Stop,
    /// [`Stop`](Self::Stop) if there is no space left (ENOSPC), else [`Report`](Self::Report).
    Enospc,
}

/// The policies of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorPolicies {
    /// For reads.
    pub read: ErrorPolicy,
    /// For everything else, flushes included.
    pub write: ErrorPolicy,
}

/// Whether a backend runs, and if not, which kind of error stopped it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// The backend runs.
    #[default]
    Ok,
    /// An error stopped the backend.
    Failed,
    /// The backend stopped because there was no space left.
    NoSpace,
}

/// The action that was taken after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// The request fails.
    Report,
    /// The request succeeds all the same.
    Ignore,
    /// The request is held and the backend stopped.
    Stop,
}

/// A failed request, as a listener is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEvent {
    /// The kind of the request.
    pub kind: RequestKind,
    /// The errno that it failed with.
    pub errno: i32,
    /// The action that was taken.
    pub action: ErrorAction,
}

impl ErrorEvent {
    /// Whether it failed for want of space.
    pub fn is_no_space(&self) -> bool {
        self.errno == libc::ENOSPC
    }
}

type Listener = Rc<dyn Fn(&AioContext, &BlockBackend, ErrorEvent)>;

/// The state behind the policies. Home thread only; no borrow is held across a call that leaves
/// this file.
#[derive(Default)]
pub(crate) struct ErrorState {
    policies: Cell<ErrorPolicies>,
    status: Cell<IoStatus>,
    /// How many [`ReportErrors`] live.
    reporting: Cell<usize>,
    /// How many [`GivingBack`] live.
    giving_back: Cell<usize>,
    /// How often the held requests were made to end.
    purges: Cell<u64>,
    held: RefCell<VecDeque<CoWaker>>,
    listener: RefCell<Option<Listener>>,
}

impl ErrorState {
    #[inline]
    fn is_stopped(&self) -> bool {
        self.status.get() != IoStatus::Ok
    }

    fn decide(&self, kind: RequestKind, errno: i32) -> ErrorAction {
        let policies = self.policies.get();
        let policy = if kind == RequestKind::Read { policies.read } else { policies.write };
        match policy {
            ErrorPolicy::Ignore => ErrorAction::Ignore,
            _ if self.reporting.get() > 0 => ErrorAction::Report,
            ErrorPolicy::Stop => ErrorAction::Stop,
            ErrorPolicy::Enospc if errno == libc::ENOSPC => ErrorAction::Stop,
            ErrorPolicy::Enospc | ErrorPolicy::Report => ErrorAction::Report,
        }
    }

    fn wake_held(&self) {
        let held = self.held.take();
        wake_all(held);
    }
}

/// Error policies. All of it on the backend's home thread.
///
/// A request that is invalid (past the end, a write to a read-only node, no medium; contract: C74),
/// or that the driver does not support, fails in any case, and the listener is not told: it is the
/// caller's mistake, and would fail again.
///
/// While a backend is stopped, new requests are held too. Asking for block status and changing the
/// length are not held, and fail without asking the policies: they come from the program that manages
/// the backend. Accounting counts a request once, when it ends; the time it was held is part of it.
impl BlockBackend {
    /// Sets the policies for requests that fail from now on. A stopped backend stays stopped.
    pub fn set_error_policies(&self, policies: ErrorPolicies) {
        self.errors().policies.set(policies);
    }

    /// The policies of the backend.
    pub fn error_policies(&self) -> ErrorPolicies {
        self.errors().policies.get()
    }

    /// Sets the listener that is told of errors, of all but those that no policy applies to. It runs
    /// in the coroutine of the failed request, after the backend has stopped, if it does, and may
    /// resume it.
    pub fn set_error_listener(
        &self,
        listener: impl Fn(&AioContext, &BlockBackend, ErrorEvent) + 'static,
    ) {
        self.errors().listener.replace(Some(Rc::new(listener)));
    }

    /// Whether the backend runs, and if not, which kind of error stopped it.
    pub fn io_status(&self) -> IoStatus {
        self.errors().status.get()
    }

    /// How many requests wait for [`resume`](Self::resume).
    pub fn held_requests(&self) -> usize {
        self.errors().held.borrow().len()
    }

    /// Resumes a stopped backend: all held requests are tried again, in their order. If one fails
    /// again, the backend stops again. Without effect on a backend that runs.
    pub fn resume(&self) {
        self.errors().status.set(IoStatus::Ok);
        self.errors().wake_held();
    }

    /// Ends all held requests: those that failed with their error, those that were never tried with
    /// ECANCELED. Until the guard is dropped no request is held: one that fails is reported. A
    /// device does that while it is reset, so that the reset need not wait for a resume.
    ///
    /// A stopped backend is still stopped afterwards.
    #[must_use = "requests are held again when it is dropped"]
    pub fn report_errors(&self) -> ReportErrors {
        let errors = self.errors();
        errors.reporting.set(errors.reporting.get() + 1);
        errors.purges.set(errors.purges.get() + 1);
        // The guard first: it must count down if a request panics.
        let guard = ReportErrors { backend: self.clone() };
        errors.wake_held();
        guard
    }

    /// Ends all held requests, and those that would be held until the guard is dropped, with
    /// [`GivenBack`]: they are not counted, and their sender keeps them and sends them again some time.
    /// A device does that before it lets go of its guest's memory, so that it need not wait for a
    /// resume.
    ///
    /// A stopped backend is still stopped afterwards.
    #[must_use = "requests are held again when it is dropped"]
    pub fn give_back_held(&self) -> GivingBack {
        let errors = self.errors();
        errors.giving_back.set(errors.giving_back.get() + 1);
        let guard = GivingBack { backend: self.clone() };
        errors.wake_held();
        guard
    }

    /// Runs `attempt` as often as the policies want it, and never while the backend is stopped.
    #[inline]
    pub(crate) fn with_policy(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        kind: RequestKind,
        range: (u64, u64),
        mut attempt: impl Attempt,
    ) -> io::Result<()> {
        self.wait_until_running(co, request)?;
        // One place that tries, so that it is compiled into its caller.
        loop {
            let error = match try_once(self, request, &mut attempt) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if let Some(result) = self.after_error(co, request, kind, range, error) {
                if result.is_ok() {
                    attempt.ignored();
                }
                return result;
            }
        }
    }

    /// Holds a new request while the backend is stopped.
    #[inline]
    pub(crate) fn wait_until_running(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
    ) -> io::Result<()> {
        if !self.errors().is_stopped() {
            return Ok(());
        }
        self.hold(co, request).map_err(|ended| match ended {
            Ended::Purged => io::Error::from_raw_os_error(libc::ECANCELED),
            Ended::GivenBack => io::Error::other(GivenBack),
        })
    }

    /// The result that the request ends with after an error; `None` if it is to be tried again.
    #[cold]
    fn after_error(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        kind: RequestKind,
        range: (u64, u64),
        error: io::Error,
    ) -> Option<io::Result<()>> {
        let unsupported = error.kind() == io::ErrorKind::Unsupported;
        // Who does not wait for it is not to be asked either.
        let given_up = error.raw_os_error() == Some(libc::ECANCELED) && !co.is_wanted();
        if unsupported || given_up || self.is_invalid(kind, range) {
            return Some(Err(error));
        }
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let action = self.errors().decide(kind, errno);
        self.tell(co, ErrorEvent { kind, errno, action });
        match action {
            ErrorAction::Report => Some(Err(error)),
            ErrorAction::Ignore => Some(Ok(())),
            // The listener has resumed it.
            ErrorAction::Stop if !self.errors().is_stopped() => {
                co.yield_now();
                None
            }
            ErrorAction::Stop => match self.hold(co, request) {
                Ok(()) => None,
                Err(Ended::Purged) => Some(Err(error)),
                Err(Ended::GivenBack) => Some(Err(io::Error::other(GivenBack))),
            },
        }
    }

    fn tell(&self, co: &Co<'_>, event: ErrorEvent) {
        trace_event!(
            "block_io_error",
            backend = self.name(),
            kind = event.kind.name(),
            errno = event.errno,
            action = ?event.action
        );
        let errors = self.errors();
        // The first error is the one to look into.
        if event.action == ErrorAction::Stop && !errors.is_stopped() {
            let no_space = event.is_no_space();
            errors.status.set(if no_space { IoStatus::NoSpace } else { IoStatus::Failed });
        }
        let listener = errors.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(co.context(), self, event);
        }
    }

    /// Waits outside the gate until the backend runs.
    #[cold]
    fn hold(&self, co: &Co<'_>, request: &mut Option<Request>) -> Result<(), Ended> {
        let errors = self.errors();
        let purges = errors.purges.get();
        while errors.is_stopped() && errors.reporting.get() == 0 {
            *request = None;
            if errors.giving_back.get() == 0 {
                let held = self.recorder().hold();
                let hold = |waker| errors.held.borrow_mut().push_back(waker);
                co.suspend_for("a stopped backend", hold);
                drop(held);
            }
            // One that ends does not touch the node any more, so it waits for no drain either.
            if errors.purges.get() != purges {
                return Err(Ended::Purged);
            }
            if errors.giving_back.get() > 0 && errors.is_stopped() {
                return Err(Ended::GivenBack);
            }
            *request = self.begin_request(co);
        }
        Ok(())
    }
}

/// A request as it is tried, perhaps several times.
pub(crate) trait Attempt {
    fn try_on(&mut self, medium: &Medium) -> io::Result<()>;

    /// It has failed, and ends as if it had succeeded.
    fn ignored(&mut self) {}
}

impl<A: FnMut(&Medium) -> io::Result<()>> Attempt for A {
    #[inline]
    fn try_on(&mut self, medium: &Medium) -> io::Result<()> {
        self(medium)
    }
}

/// One attempt, on the medium that the request is counted in on (contract: C74).
#[inline]
pub(crate) fn try_once(
    backend: &BlockBackend,
    request: &Option<Request>,
    attempt: &mut impl Attempt,
) -> io::Result<()> {
    match request {
        Some(request) => attempt.try_on(request.medium()),
        None => Err(backend.slot().refusal()),
    }
}

/// A held request was made to end.
enum Ended {
    Purged,
    GivenBack,
}

/// The error of a held request that was given back, as [`BlockBackend::give_back_held`] does:
/// nothing of the request has been done. It is inside an [`io::Error`]; see [`is_in`](Self::is_in).
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the backend has stopped, and gives the request back")]
pub struct GivenBack;

impl GivenBack {
    /// Whether a request ended because it was given back.
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|source| source.is::<GivenBack>())
    }
}

/// A guard: requests are given back instead of held for as long as it lives; see
/// [`BlockBackend::give_back_held`].
pub struct GivingBack {
    backend: BlockBackend,
}

impl Drop for GivingBack {
    fn drop(&mut self) {
        let giving_back = &self.backend.errors().giving_back;
        giving_back.set(giving_back.get() - 1);
    }
}

/// A guard: errors of a backend are reported for as long as it lives; see
/// [`BlockBackend::report_errors`].
pub struct ReportErrors {
    backend: BlockBackend,
}

impl Drop for ReportErrors {
    fn drop(&mut self) {
        let reporting = &self.backend.errors().reporting;
        reporting.set(reporting.get() - 1);
    }
}
