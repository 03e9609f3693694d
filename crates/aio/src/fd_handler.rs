//! Descriptor handlers: callbacks for readable and writable descriptors, on mio.
//!
//! mio reports edges. A handler must therefore read, or write, until the call says `WouldBlock`;
//! what it leaves unread is not reported again before more arrives.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;

use crate::context::AioContext;
use crate::polling::PollHook;
use crate::sys;
use crate::trace_event;

/// The token of the context's own waker.
pub(crate) const WAKER_TOKEN: Token = Token(usize::MAX);

/// Events taken from the kernel at once; what is left is taken by the next poll.
const EVENTS_PER_WAIT: usize = 256;

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, or the other end closed, or an error waits.
    pub readable: bool,
    /// There is room to write, or the other end closed, or an error waits.
    pub writable: bool,
    /// The other end closed, or an error waits: no other change may be reported, so what is read
    /// next must not be waited for.
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
}

impl From<FdInterest> for Interest {
    fn from(interest: FdInterest) -> Interest {
        match interest {
            FdInterest::Read => Interest::READABLE,
            FdInterest::Write => Interest::WRITABLE,
            FdInterest::ReadWrite => Interest::READABLE | Interest::WRITABLE,
        }
    }
}

pub(crate) type Callback = Box<dyn Fn(&AioContext, Readiness)>;

struct Handler {
    fd: RawFd,
    callback: Callback,
    /// How to look whether it is ready without asking the kernel.
    hook: Option<Rc<PollHook>>,
    /// Unset while events for it may be queued: they are then dropped (contract: C44).
    deleted: Cell<bool>,
}

/// mio, the registered handlers, and the events not yet dispatched.
pub(crate) struct FdHandlers {
    poll: RefCell<Poll>,
    events: RefCell<Events>,
    registry: Registry,
    handlers: RefCell<Slab<Rc<Handler>>>,
    token_of: RefCell<HashMap<RawFd, usize>>,
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
            token_of: RefCell::new(HashMap::new()),
            ready: RefCell::new(VecDeque::new()),
        })
    }

    pub(crate) fn new_waker(&self) -> io::Result<mio::Waker> {
        mio::Waker::new(&self.registry, WAKER_TOKEN)
    }

    /// mio's descriptor, to be waited for by other means.
    pub(crate) fn epoll(&self) -> RawFd {
        self.poll.borrow().as_raw_fd()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.token_of.borrow().is_empty()
    }

    /// Whether events wait to be dispatched, as they do in a poll nested in a handler.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    pub(crate) fn set(
        &self,
        fd: RawFd,
        interest: FdInterest,
        callback: Callback,
        hook: Option<Rc<PollHook>>,
    ) -> io::Result<()> {
        let handler = Rc::new(Handler { fd, callback, hook, deleted: Cell::new(false) });
        let token = self.handlers.borrow_mut().insert(handler);
        if let Err(error) =
            self.registry.register(&mut SourceFd(&fd), Token(token), interest.into())
        {
            // Dropped after the borrow has ended: its destructors may come back here.
            let handler = self.handlers.borrow_mut().remove(token);
            drop(handler);
            return Err(error);
        }
        self.token_of.borrow_mut().insert(fd, token);
        Ok(())
    }

    /// Removes a handler, and returns its hook, if it had one.
    pub(crate) fn unset(&self, fd: RawFd) -> Option<Rc<PollHook>> {
        let token = self.token_of.borrow_mut().remove(&fd)?;
        let handler = self.handlers.borrow_mut().remove(token);
        handler.deleted.set(true);
        // Fails if the descriptor is closed already, and then epoll has forgotten it by itself.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
        handler.hook.clone()
    }

    /// Waits for events, or for the waker, and queues what is ready. `None` waits for ever. Returns
    /// whether it was ended by the waker and by nothing else.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut poll = self.poll.borrow_mut();
        let mut events = self.events.borrow_mut();
        if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
            // mio rounds up to milliseconds; ppoll on its descriptor does not.
            if !sys::wait_readable(poll.as_raw_fd(), timeout)? {
                return Ok(false);
            }
        }
        let timeout = timeout.map(|_| Duration::ZERO);
        while let Err(error) = poll.poll(&mut events, timeout) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let handlers = self.handlers.borrow();
        let mut ready = self.ready.borrow_mut();
        let kicked = !events.is_empty();
        for event in events.iter().filter(|event| event.token() != WAKER_TOKEN) {
            if let Some(handler) = handlers.get(event.token().0) {
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
        loop {
            let Some((handler, readiness)) = self.ready.borrow_mut().pop_front() else {
                return progress;
            };
            if !handler.deleted.get() {
                trace_event!("aio_dispatch_fd", fd = handler.fd);
                if let Some(hook) = &handler.hook {
                    ctx.inner().polling.activate(ctx, hook);
                }
                (handler.callback)(ctx, readiness);
                progress = true;
            }
        }
    }
}
