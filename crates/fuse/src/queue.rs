//! [`Queue`]: the requests that one context serves, from the device and back.
//!
//! All queues of an export read from the same list of the kernel; each request is answered by the queue
//! that took it. So that no client starves what else runs in the context, a queue that has read many
//! requests lets it have a turn. It reads no more while it has as many as its memory allows.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use coblk_aio::{AioContext, BottomHalf, Co, CoWaker, FdHandler, FdInterest, Wanted};
use coblk_block::BlockBackend;
use rustix::io::Errno;

use crate::file::File;
use crate::memory::{Block, Memory, Payload, SMALL};
use crate::reply::{self, Reply};
use crate::request::{Header, MAX_BODY, Request, WRITE_BYTES};
use crate::serve::serve;

/// Requests of one context that are being carried out.
pub const MAX_IN_FLIGHT: usize = 128;
/// Requests that are read before others have a turn.
const MAX_READ_AT_ONCE: usize = 64;
/// What is read in front of the data of a write.
const HEAD: usize = Header::BYTES + WRITE_BYTES;

pub struct Queue {
    pub file: Arc<File>,
    pub backend: BlockBackend,
    pub memory: Rc<Memory>,
    /// Until the export is closed, for requests that take long.
    pub wanted: Wanted,
    /// Requests of all queues that the kernel may send before they are answered.
    pub max_background: u16,
    device: Rc<OwnedFd>,
    watched: RefCell<Option<FdHandler<Rc<OwnedFd>>>>,
    landing: RefCell<Landing>,
    in_flight: Cell<usize>,
    /// It reads at this moment.
    is_reading: Cell<bool>,
    /// It did not read on for want of room.
    is_full: Cell<bool>,
    /// Goes on reading.
    more: BottomHalf,
    waiters: RefCell<Vec<CoWaker>>,
}

/// Where the next request is read to.
#[derive(Default)]
struct Landing {
    small: Option<Block>,
    large: Option<Block>,
}

/// A request, with the data of a write.
struct Message {
    header: Header,
    request: Option<Request>,
    payload: Option<Payload>,
}

impl Queue {
    /// One that does not read yet.
    pub fn new(
        ctx: &AioContext,
        file: Arc<File>,
        backend: BlockBackend,
        device: OwnedFd,
        max_background: u16,
    ) -> Rc<Queue> {
        Rc::new_cyclic(|me: &Weak<Queue>| {
            let me = Weak::clone(me);
            Queue {
                file,
                backend,
                memory: Rc::default(),
                wanted: Wanted::new(),
                max_background,
                device: Rc::new(device),
                watched: RefCell::default(),
                landing: RefCell::default(),
                in_flight: Cell::new(0),
                is_reading: Cell::new(false),
                is_full: Cell::new(false),
                more: ctx.bottom_half("fuse-read", move |ctx| {
                    if let Some(queue) = me.upgrade() {
                        queue.read_all(ctx);
                    }
                }),
                waiters: RefCell::default(),
            }
        })
    }

    /// Begins to read.
    pub fn begin(self: &Rc<Self>, ctx: &AioContext) -> io::Result<()> {
        let me = Rc::downgrade(self);
        let watched =
            ctx.fd_handler(Rc::clone(&self.device), FdInterest::Read, move |ctx, _| {
                if let Some(queue) = me.upgrade() {
                    queue.read_all(ctx);
                }
            })?;
        self.watched.replace(Some(watched));
        self.more.schedule();
        Ok(())
    }

    /// Reads no more. What was read is answered, but for what takes long, which ends.
    pub fn stop(&self) {
        self.watched.take();
        self.wanted.give_up();
    }

    /// Returns when all that was read is answered.
    pub fn co_wait(&self, co: &Co<'_>) {
        while self.in_flight.get() > 0 {
            co.suspend_for("the last FUSE request", |waker| self.waiters.borrow_mut().push(waker));
        }
    }

    /// Reads what there is.
    pub fn read_all(self: &Rc<Self>, ctx: &AioContext) {
        if self.is_reading.replace(true) {
            return;
        }
        let _reading = Reading(&self.is_reading);
        // The kernel is told of each answer at once, and its client works on meanwhile.
        let _batch = ctx.begin_batch();
        for _ in 0..MAX_READ_AT_ONCE {
            if self.watched.borrow().is_none() {
                return;
            }
            if !self.has_room() {
                self.is_full.set(true);
                return;
            }
            match self.read() {
                Ok(message) => self.start(ctx, message),
                // A signal; or a client that has given up meanwhile.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => return self.ended(error),
            }
        }
        self.more.schedule();
    }

    /// Whether one more request can be read, of whatever length.
    fn has_room(&self) -> bool {
        let mut landing = self.landing.borrow_mut();
        let Landing { small, large } = &mut *landing;
        if self.in_flight.get() == MAX_IN_FLIGHT || large.is_none() && !self.memory.has_large() {
            return false;
        }
        if small.is_none() {
            *small = self.memory.small().ok();
        }
        if large.is_none() {
            *large = self.memory.large().ok();
        }
        // Without memory, it goes on when a request gives back what it has; there is one, then, for it is
        // requests that take blocks away.
        small.is_some() && large.is_some()
    }

    fn read(&self) -> Result<Message, Errno> {
        let mut landing = self.landing.borrow_mut();
        let mut head = [0; HEAD];
        let Landing { small: Some(small), large: Some(large) } = &mut *landing else {
            return Err(Errno::AGAIN);
        };
        let target =
            &mut [IoSliceMut::new(&mut head), IoSliceMut::new(small), IoSliceMut::new(large)];
        let received = rustix::io::readv(&*self.device, target)?;
        let header = Header::parse(&head[..received.min(HEAD)]).ok_or(Errno::IO)?;
        let request = if received <= HEAD {
            Request::parse(&header, &head[Header::BYTES..received], received)
        } else {
            let mut body = [0; MAX_BODY];
            body[..WRITE_BYTES].copy_from_slice(&head[Header::BYTES..]);
            let more = (received - HEAD).min(MAX_BODY - WRITE_BYTES);
            body[WRITE_BYTES..][..more].copy_from_slice(&small[..more]);
            Request::parse(&header, &body[..WRITE_BYTES + more], received)
        };
        let payload = match request {
            Ok(Request::Write(write)) => {
                let len = write.size as usize;
                let large = if len > SMALL { landing.large.take() } else { None };
                landing.small.take().map(|small| Payload { small, large, len })
            }
            _ => None,
        };
        Ok(Message { header, request: request.ok(), payload })
    }

    fn start(self: &Rc<Self>, ctx: &AioContext, message: Message) {
        let Message { header, request, payload } = message;
        let answer = Answer::new(self, header.unique);
        match request {
            Some(request) => serve(ctx, answer, request, payload),
            None => {
                tracing::warn!(
                    opcode = header.opcode,
                    length = header.length,
                    "a FUSE request makes no sense"
                );
                answer.error(libc::EINVAL);
            }
        }
    }

    /// The device says that it has nothing more.
    fn ended(&self, error: Errno) {
        self.watched.take();
        // The file system was unmounted, by whatever user.
        if error == Errno::NODEV || error == Errno::CONNABORTED {
            tracing::info!(export = self.backend.name(), "is no longer mounted");
        } else {
            tracing::error!(export = self.backend.name(), %error, "cannot read FUSE requests");
        }
    }

    /// Sends bytes to the kernel. Returns whether it still wanted them.
    fn send(&self, message: &[IoSlice<'_>]) -> bool {
        match rustix::io::writev(&*self.device, message) {
            Ok(_) => true,
            // The client was killed, or the file system is gone.
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED | Errno::NOTCONN) => false,
            Err(error) => {
                tracing::warn!(export = self.backend.name(), %error, "cannot answer a FUSE request");
                false
            }
        }
    }

    /// Has the kernel ask for the length again.
    pub fn forget_attributes(&self) {
        let body = Reply::forget_attributes();
        let header = reply::header(0, crate::abi::NOTIFY_INVAL_INODE, body.as_bytes().len());
        // Fails before the file system is mounted, and if the kernel knows no inode.
        self.send(&[IoSlice::new(&header), IoSlice::new(body.as_bytes())]);
    }
}

struct Reading<'a>(&'a Cell<bool>);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// A request that is to be answered: with EIO, if it is dropped without. Counts as in flight.
pub struct Answer {
    pub queue: Rc<Queue>,
    unique: u64,
    is_owed: bool,
}

impl Answer {
    fn new(queue: &Rc<Queue>, unique: u64) -> Answer {
        queue.in_flight.set(queue.in_flight.get() + 1);
        Answer { queue: Rc::clone(queue), unique, is_owed: true }
    }

    /// No answer is expected.
    pub fn none(mut self) {
        self.is_owed = false;
    }

    /// With an errno.
    pub fn error(mut self, errno: i32) {
        self.send_error(errno);
    }

    fn send_error(&mut self, errno: i32) {
        self.is_owed = false;
        // The kernel takes no others.
        let errno = if (1..512).contains(&errno) { errno } else { libc::EIO };
        self.queue.send(&[IoSlice::new(&reply::header(self.unique, -errno, 0))]);
    }

    /// With a short answer. Returns whether the kernel still wanted it.
    pub fn reply(mut self, reply: &Reply) -> bool {
        self.is_owed = false;
        let header = reply::header(self.unique, 0, reply.as_bytes().len());
        self.queue.send(&[IoSlice::new(&header), IoSlice::new(reply.as_bytes())])
    }

    /// With data.
    pub fn data(mut self, payload: &Payload) {
        self.is_owed = false;
        let header = reply::header(self.unique, 0, payload.len);
        self.queue.send(&payload.behind(&header));
    }

    /// With what an operation has come to.
    pub fn result(self, result: io::Result<Reply>) {
        match result {
            Ok(reply) => drop(self.reply(&reply)),
            Err(error) => self.error(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_owed {
            self.send_error(libc::EIO);
        }
        let queue = &self.queue;
        queue.in_flight.set(queue.in_flight.get() - 1);
        if queue.is_full.replace(false) {
            queue.more.schedule();
        }
        if queue.in_flight.get() == 0 {
            queue.waiters.take().into_iter().for_each(CoWaker::wake);
        }
    }
}
