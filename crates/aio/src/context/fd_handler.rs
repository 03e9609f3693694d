//! Descriptor handlers: callbacks for readable and writable descriptors, on mio.
//!
//! mio reports edges. A handler must therefore read, or write, until the call says `WouldBlock`;
//! what it leaves unread is not reported again before more arrives.
//!
//! A registration is a value, [`FdHandler`], that holds its descriptor. The kernel knows it by a
//! token that no other registration of the context ever gets: an open file description outlives
//! the descriptor that was registered if a copy of it is left, and then goes on reporting events
//! with the old token, which find nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;

use super::busy_poll::{BusyPoll, PollHook};
use super::{AioContext, ContextLink};
use crate::event_notifier::EventNotifier;
use crate::panics::{Culprit, drop_reporting};
use crate::sys;
use crate::trace_event;

/// The token of the context's own waker.
pub(crate) const WAKER_TOKEN: Token = Token(usize::MAX);

/// Events taken from the kernel at once; what is left is taken by the next poll.
const EVENTS_PER_WAIT: usize = 256;

/// From here on a wait is asked for in whole milliseconds.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// There is something to read, or the other end closed, or an error waits.
    pub readable: bool,
    /// There is room to write, or the other end closed, or an error waits.
    pub writable: bool,
    /// The other end closed, or an error waits. No further event may follow: read to the end
    /// now.
    pub closed: bool,
}

/// Which readiness a handler is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdInterest {
    /// Call when readable.
    Read,
    /// Call when writable.
    Write,
    /// Call for both.
    ReadWrite,
    /// As `Read`, for a descriptor whose source others wait for as well, with descriptors of their own: of
    /// those loops that sleep, one is called (`EPOLLEXCLUSIVE`). A handler that does not read until the call says
    /// `WouldBlock` must tell the others, or remove the handler. It stays as it is.
    ReadShared,
}

impl From<FdInterest> for Interest {
    fn from(interest: FdInterest) -> Interest {
        match interest {
            FdInterest::Read | FdInterest::ReadShared => Interest::READABLE,
            FdInterest::Write => Interest::WRITABLE,
            FdInterest::ReadWrite => Interest::READABLE | Interest::WRITABLE,
        }
    }
}

type Callback = Box<dyn Fn(&AioContext, Readiness)>;

/// Calls a callback whenever a descriptor is ready; see [`AioContext::fd_handler`].
///
/// Owns the descriptor, or borrows it: `F` may be a socket, an [`Rc`] of one, or a reference. So a
/// handler neither outlives its descriptor, nor is left without one. Dropping it removes the
/// handler, also from inside any handler, and then closes a descriptor that it owns (contract:
/// C44). It may outlive the context, and has no effect then.
#[must_use = "the handler is removed when this is dropped"]
pub struct FdHandler<F> {
    // In this order: the handler goes before its descriptor does.
    registration: Registration,
    descriptor: F,
}

/// A handler for an event notifier; see [`AioContext::event_handler`].
pub type EventHandler = FdHandler<Rc<EventNotifier>>;

/// The part of an [`FdHandler`] that does not depend on the kind of its descriptor.
struct Registration {
    context: Rc<ContextLink>,
    key: Key,
    fd: RawFd,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.context.with(|ctx| {
            if !ctx.inner().shared.is_own_process() {
                // The registration is the parent's as well.
                return;
            }
            let handler = ctx.inner().fds.remove(self.key, self.fd);
            if let Some(hook) = handler.as_ref().and_then(|handler| handler.hook.as_ref()) {
                ctx.inner().polling.forget(ctx, hook);
            }
        });
    }
}

impl<F> FdHandler<F> {
    /// What the handler waits for.
    pub fn descriptor(&self) -> &F {
        &self.descriptor
    }

    /// Removes the handler, and returns its descriptor.
    pub fn into_descriptor(self) -> F {
        drop(self.registration);
        self.descriptor
    }

    /// Changes what the handler is called for. What the descriptor is ready for now is reported
    /// once more.
    ///
    /// # Errors
    /// If the kernel has no memory, or the context is gone; the old interest stays.
    pub fn set_interest(&self, interest: FdInterest) -> io::Result<()> {
        let Registration { context, key, fd } = &self.registration;
        let mut result = Err(io::ErrorKind::BrokenPipe.into());
        context.with(|ctx| result = ctx.inner().fds.set_interest(*key, *fd, interest));
        result
    }
}

impl<F: fmt::Debug> fmt::Debug for FdHandler<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdHandler").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

impl AioContext {
    /// Calls `callback` whenever `descriptor` becomes ready, for as long as what this returns
    /// lives. Home thread.
    ///
    /// Readiness is reported once per change ("edge-triggered"): the callback must read or write
    /// until the call says `WouldBlock`. A nested poll may enter it again.
    ///
    /// # Errors
    /// If the descriptor cannot be waited for, as a regular file cannot; or if it has a handler in
    /// this context already, which stays (`AlreadyExists`).
    pub fn fd_handler<F: AsFd>(
        &self,
        descriptor: F,
        interest: FdInterest,
        callback: impl Fn(&AioContext, Readiness) + 'static,
    ) -> io::Result<FdHandler<F>> {
        self.add_handler(descriptor, interest, Box::new(callback), None)
    }

    /// [`fd_handler`](Self::fd_handler), with a way to see readiness without a system call: once
    /// the descriptor has been ready, a loop that polls adaptively asks `poll` before it sleeps,
    /// for as long as that pays (contract: C45, C46, C47).
    ///
    /// # Errors
    /// As [`fd_handler`](Self::fd_handler).
    pub fn polled_fd_handler<F: AsFd>(
        &self,
        descriptor: F,
        interest: FdInterest,
        callback: impl Fn(&AioContext, Readiness) + 'static,
        poll: impl BusyPoll + 'static,
    ) -> io::Result<FdHandler<F>> {
        let hook = PollHook::new(Box::new(poll));
        self.add_handler(descriptor, interest, Box::new(callback), Some(hook))
    }

    /// Calls `callback` after `notifier` was kicked, once for any number of kicks, for as long as
    /// what this returns lives. That has a descriptor of its own, so `notifier` may go. Home thread.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn event_handler(
        &self,
        notifier: &EventNotifier,
        callback: impl Fn(&AioContext) + 'static,
    ) -> io::Result<EventHandler> {
        let own = Rc::new(notifier.try_clone()?);
        let kicked = Rc::clone(&own);
        self.fd_handler(own, FdInterest::Read, move |ctx, _| {
            if kicked.test_and_clear().unwrap_or(true) {
                callback(ctx);
            }
        })
    }

    fn add_handler<F: AsFd>(
        &self,
        descriptor: F,
        interest: FdInterest,
        callback: Callback,
        hook: Option<Rc<PollHook>>,
    ) -> io::Result<FdHandler<F>> {
        let fd = descriptor.as_fd().as_raw_fd();
        let key = self.inner().fds.add(fd, interest, callback, hook)?;
        let registration = Registration { context: self.link(), key, fd };
        Ok(FdHandler { registration, descriptor })
    }
}

struct Handler {
    generation: u32,
    fd: RawFd,
    callback: Callback,
    /// How to look whether it is ready without asking the kernel.
    hook: Option<Rc<PollHook>>,
    /// Set when it is removed: events for it that are queued are then dropped (contract: C44).
    removed: Cell<bool>,
}

/// A registration: its place, and which of those that have had the place it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    index: usize,
    generation: u32,
}

impl Key {
    /// An index has 32 bits, for a process has fewer descriptors; so no key is the waker's token.
    fn token(self) -> Token {
        Token((self.generation as usize) << 32 | self.index)
    }

    fn of(token: Token) -> Key {
        Key { index: token.0 & u32::MAX as usize, generation: (token.0 >> 32) as u32 }
    }
}

/// How a limited wait is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    /// In whole milliseconds, which takes one system call.
    Whole(Duration),
    /// To the nanosecond.
    Precise(Duration),
}

impl Wait {
    /// A long wait ends up to a millisecond early, and the loop then waits for the rest: a loop that waits
    /// for descriptors, and far in the future for a timer, makes one call less each time.
    fn of(timeout: Duration) -> Wait {
        let whole = Duration::from_secs(timeout.as_secs())
            + Duration::from_millis(u64::from(timeout.subsec_millis()));
        if whole == timeout || whole >= LONG_WAIT {
            Wait::Whole(whole)
        } else {
            Wait::Precise(timeout)
        }
    }
}

/// mio, the registered handlers, and the events not yet dispatched.
pub(crate) struct FdHandlers {
    poll: RefCell<Poll>,
    events: RefCell<Events>,
    registry: Registry,
    handlers: RefCell<Slab<Rc<Handler>>>,
    generations: Cell<u32>,
    ready: RefCell<VecDeque<(Rc<Handler>, Readiness)>>,
}

impl FdHandlers {
    pub(crate) fn new() -> io::Result<FdHandlers> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        Ok(FdHandlers {
            poll: RefCell::new(poll),
            events: RefCell::new(Events::with_capacity(EVENTS_PER_WAIT)),
            registry,
            handlers: RefCell::new(Slab::new()),
            generations: Cell::new(0),
            ready: RefCell::new(VecDeque::new()),
        })
    }

    pub(crate) fn new_waker(&self) -> io::Result<mio::Waker> {
        mio::Waker::new(&self.registry, WAKER_TOKEN)
    }

    /// Watches a descriptor that wakes the loop as the waker does, and has no handler.
    pub(crate) fn watch_as_waker(&self, fd: RawFd) -> io::Result<()> {
        self.registry.register(&mut SourceFd(&fd), WAKER_TOKEN, Interest::READABLE)
    }

    /// mio's descriptor, to be waited for by other means.
    pub(crate) fn epoll(&self) -> RawFd {
        self.poll.borrow().as_raw_fd()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.handlers.borrow().is_empty()
    }

    /// Whether events wait to be dispatched, as they do in a poll nested in a handler.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    fn add(
        &self,
        fd: RawFd,
        interest: FdInterest,
        callback: Callback,
        hook: Option<Rc<PollHook>>,
    ) -> io::Result<Key> {
        let generation = self.generations.get();
        self.generations.set(generation.wrapping_add(1));
        let handler =
            Rc::new(Handler { generation, fd, callback, hook, removed: Cell::new(false) });
        let key = Key { index: self.handlers.borrow_mut().insert(handler), generation };
        let registered = match interest {
            FdInterest::ReadShared => sys::watch_shared(self.epoll(), fd, key.token().0 as u64),
            _ => self.registry.register(&mut SourceFd(&fd), key.token(), interest.into()),
        };
        if let Err(error) = registered {
            // Dropped after the borrow has ended: its destructors may come back here.
            let handler = self.handlers.borrow_mut().remove(key.index);
            drop(handler);
            return Err(error);
        }
        Ok(key)
    }

    fn set_interest(&self, key: Key, fd: RawFd, interest: FdInterest) -> io::Result<()> {
        self.registry.reregister(&mut SourceFd(&fd), key.token(), interest.into())
    }

    /// Removes a handler, and returns it, to be dropped without a borrow.
    fn remove(&self, key: Key, fd: RawFd) -> Option<Rc<Handler>> {
        let handler = self.handlers.borrow_mut().try_remove(key.index)?;
        handler.removed.set(true);
        // Fails if the descriptor has become another one's behind our back; its events, if there
        // are any, find no handler.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
        Some(handler)
    }

    /// The context ends: removes all handlers.
    pub(crate) fn close(&self, context: &str) {
        drop(self.ready.take());
        while !self.is_empty() {
            let handlers = std::mem::take(&mut *self.handlers.borrow_mut());
            for (_, handler) in handlers {
                handler.removed.set(true);
                drop_reporting(context, handler);
            }
        }
    }

    /// Waits for events, or for the waker, and queues what is ready. `None` waits forever. Returns
    /// whether it was ended by the waker and by nothing else.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut poll = self.poll.borrow_mut();
        let mut events = self.events.borrow_mut();
        let mut timeout = timeout;
        match timeout.map(Wait::of) {
            Some(Wait::Precise(precise)) => {
                // mio rounds up to milliseconds; ppoll on its descriptor does not, and is one more call.
                if !sys::wait_readable(poll.as_raw_fd(), precise)? {
                    return Ok(false);
                }
                timeout = Some(Duration::ZERO);
            }
            Some(Wait::Whole(millis)) => timeout = Some(millis),
            None => {}
        }
        while let Err(error) = poll.poll(&mut events, timeout) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            // How much of the time is left is for the loop to say.
            if timeout.is_some_and(|timeout| !timeout.is_zero()) {
                return Ok(false);
            }
        }
        let handlers = self.handlers.borrow();
        let mut ready = self.ready.borrow_mut();
        let kicked = !events.is_empty();
        for event in events.iter().filter(|event| event.token() != WAKER_TOKEN) {
            let key = Key::of(event.token());
            let handler = handlers.get(key.index);
            if let Some(handler) = handler.filter(|it| it.generation == key.generation) {
                let ended = event.is_error();
                let readiness = Readiness {
                    readable: event.is_readable() || event.is_read_closed() || ended,
                    writable: event.is_writable() || event.is_write_closed() || ended,
                    closed: event.is_read_closed() || ended,
                };
                ready.push_back((Rc::clone(handler), readiness));
            }
        }
        Ok(kicked && ready.is_empty())
    }

    /// Calls the handlers of all queued events; a nested poll goes on with the same queue.
    pub(crate) fn dispatch(&self, ctx: &AioContext) -> bool {
        let mut progress = false;
        if !self.has_ready() {
            return progress;
        }
        let panicked = ctx.inner().shield(|| progress |= self.dispatch_all(ctx));
        progress | panicked
    }

    fn dispatch_all(&self, ctx: &AioContext) -> bool {
        let mut progress = false;
        loop {
            let Some((handler, readiness)) = self.ready.borrow_mut().pop_front() else {
                return progress;
            };
            if !handler.removed.get() {
                trace_event!("aio_dispatch_fd", fd = handler.fd);
                ctx.inner().panics.blaming(Culprit::FdHandler(handler.fd), || {
                    if let Some(hook) = &handler.hook {
                        ctx.inner().polling.activate(ctx, hook);
                    }
                    (handler.callback)(ctx, readiness);
                });
                progress = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_are_asked_for_in_whole_milliseconds_and_never_end_late() {
        let (nanos, millis) = (Duration::from_nanos, Duration::from_millis);
        for whole in [Duration::ZERO, millis(1), millis(100), Duration::from_secs(3600)] {
            assert_eq!(Wait::of(whole), Wait::Whole(whole));
        }
        for precise in [nanos(1), nanos(999_999), nanos(99_999_999)] {
            assert_eq!(Wait::of(precise), Wait::Precise(precise));
        }
        assert_eq!(Wait::of(millis(100) + nanos(999_999)), Wait::Whole(millis(100)));
        assert_eq!(Wait::of(Duration::new(86_399, 1)), Wait::Whole(Duration::from_secs(86_399)));
    }
}
