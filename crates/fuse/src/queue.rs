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

use coblk_aio::{AioContext, BottomHalf, BusyPoll, Co, CoWaker, FdHandler, FdInterest, Wanted};
use coblk_block::BlockBackend;
use rustix::io::Errno;

use crate::answer::{Answer, Body, Untold};
use crate::file::File;
use crate::memory::{Block, MAX_IDLE_SMALL, Memory, Payload, SMALL};
use crate::reply::{self, Reply};
use crate::request::{Header, MAX_BODY, Request, WRITE_BYTES};
use crate::ring::{Lane, Spare};
use crate::room::Room;
use crate::serve::start;

/// Requests of one context that are being carried out.
pub const MAX_IN_FLIGHT: usize = MAX_IDLE_SMALL;
/// Requests that are read before others have a turn.
const MAX_READ_AT_ONCE: usize = 64;
/// Answers that the kernel is told of together, while requests are read.
const MAX_UNTOLD: usize = 8;
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
    /// No other context serves the file.
    is_alone: bool,
    watched: RefCell<Option<FdHandler<Rc<OwnedFd>>>>,
    landing: RefCell<Landing>,
    /// A request that the loop has found while it looked for work.
    found: RefCell<Option<Message>>,
    /// Answers that the kernel is told of together.
    untold: RefCell<Vec<Untold>>,
    /// The kernel was told of an answer since reading began.
    has_told: Cell<bool>,
    in_flight: Cell<usize>,
    /// It has begun to read, and has not stopped.
    is_open: Cell<bool>,
    /// It reads at this moment.
    is_reading: Cell<bool>,
    /// It does not read for want of room.
    is_full: Cell<bool>,
    /// Goes on reading.
    more: BottomHalf,
    waiters: RefCell<Vec<CoWaker>>,
    /// The ring, if the export is to use one.
    lane: Option<Rc<Lane>>,
}

/// Where the next request is read to.
#[derive(Default)]
struct Landing {
    small: Option<Block>,
    large: Option<Block>,
}

impl Landing {
    /// Its blocks, as room for so many bytes.
    fn take(&mut self, len: usize) -> Option<Payload> {
        let large = if len > SMALL { self.large.take() } else { None };
        self.small.take().map(|small| Payload { small, large, len })
    }
}

/// A request, with the data of a write, or room for that of a read.
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
        device: Rc<OwnedFd>,
        is_alone: bool,
        max_background: u16,
        spare: Option<Spare>,
    ) -> Rc<Queue> {
        Rc::new_cyclic(|me: &Weak<Queue>| {
            let lane = spare.map(|spare| Lane::new(ctx, spare, me));
            let me = Weak::clone(me);
            Queue {
                file,
                backend,
                memory: Rc::default(),
                wanted: Wanted::new(),
                max_background,
                device,
                is_alone,
                watched: RefCell::default(),
                landing: RefCell::default(),
                found: RefCell::default(),
                untold: RefCell::new(Vec::with_capacity(MAX_UNTOLD)),
                has_told: Cell::new(false),
                in_flight: Cell::new(0),
                is_open: Cell::new(false),
                is_reading: Cell::new(false),
                is_full: Cell::new(false),
                more: ctx.bottom_half("fuse-read", move |ctx| {
                    if let Some(queue) = me.upgrade() {
                        queue.read_all(ctx);
                    }
                }),
                waiters: RefCell::default(),
                lane,
            }
        })
    }

    /// The ring, if there is one.
    pub fn lane(&self) -> Option<&Rc<Lane>> {
        self.lane.as_ref()
    }

    /// Whether requests are taken.
    pub fn is_open(&self) -> bool {
        self.is_open.get()
    }

    /// Begins to read.
    pub fn begin(self: &Rc<Self>, ctx: &AioContext) -> io::Result<()> {
        self.is_open.set(true);
        self.watch(ctx)?;
        self.more.schedule();
        Ok(())
    }

    /// Has the loop call when there is something to read, unless another queue that sleeps is called.
    fn watch(self: &Rc<Self>, ctx: &AioContext) -> io::Result<()> {
        let me = Rc::downgrade(self);
        let called = move |ctx: &AioContext, _| {
            if let Some(queue) = me.upgrade() {
                queue.read_all(ctx);
            }
        };
        let device = Rc::clone(&self.device);
        let interest = FdInterest::ReadShared;
        // One of several contexts leaves it to the kernel: a request that it took by itself would wake another
        // one in vain. With a ring, the device has next to nothing.
        let handler = if self.is_alone && self.lane.is_none() {
            ctx.polled_fd_handler(device, interest, called, Look(Rc::downgrade(self)))?
        } else {
            ctx.fd_handler(device, interest, called)?
        };
        self.watched.replace(Some(handler));
        Ok(())
    }

    /// Reads no more. What was read is answered, but for what takes long, which ends.
    pub fn stop(self: &Rc<Self>, ctx: &AioContext) {
        self.serve_found(ctx);
        self.close();
        self.wanted.give_up();
    }

    fn close(&self) {
        self.is_open.set(false);
        self.watched.take();
    }

    /// There is no room: leaves it to the other queues to be called, and to read what there is.
    fn pause(&self) {
        if !self.is_full.replace(true) {
            self.watched.take();
            self.file.look_elsewhere();
        }
    }

    /// Reads again, if there is so much room that it pays.
    fn goes_on(self: &Rc<Self>, ctx: &AioContext) -> bool {
        if !self.is_open() || !self.may_go_on() {
            return false;
        }
        let watched = self.watch(ctx);
        self.is_full.set(watched.is_err());
        if let Err(error) = &watched {
            tracing::error!(%error, "cannot wait for FUSE requests");
        }
        watched.is_ok()
    }

    /// Whether so much room has come back that reading pays.
    fn may_go_on(&self) -> bool {
        self.in_flight.get() <= MAX_IN_FLIGHT / 4 * 3 && self.memory.has_large()
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
        let _reading = Reading(self);
        if self.is_full.get() && !self.goes_on(ctx) {
            return;
        }
        // The kernel is told of answers while others are worked on, and its client works on meanwhile.
        let _batch = ctx.begin_batch();
        self.serve_found(ctx);
        for _ in 0..MAX_READ_AT_ONCE {
            if !self.is_open() {
                return;
            }
            if !self.has_room() {
                return self.pause();
            }
            match self.read() {
                Ok(message) => self.serve(ctx, message),
                // A signal; or a client that has given up meanwhile.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => return self.ended(error),
            }
        }
        self.more.schedule();
    }

    fn serve(self: &Rc<Self>, ctx: &AioContext, message: Message) {
        let Message { header, request, payload } = message;
        let answer = Answer::new(self, header.unique, Room::Blocks(payload));
        start(ctx, answer, &header, request);
    }

    /// It has its blocks already, for which there was room.
    fn serve_found(self: &Rc<Self>, ctx: &AioContext) {
        let found = self.found.take();
        if let Some(message) = found {
            self.serve(ctx, message);
        }
    }

    /// Whether there is a request, which then is the next one.
    fn looks(&self) -> bool {
        if self.found.borrow().is_some() {
            return true;
        }
        if !self.is_open() || self.is_full.get() || self.is_reading.get() || !self.has_room() {
            return false;
        }
        let Ok(message) = self.read() else { return false };
        self.found.replace(Some(message));
        true
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
        // What a read answers with takes the place of what a write would have brought: so no request takes
        // more than there was room for before it was read.
        let bytes = match request {
            Ok(Request::Write(write)) => Some(write.size),
            Ok(Request::Read { size, .. }) => Some(size),
            _ => None,
        };
        let payload = bytes.and_then(|bytes| landing.take(bytes as usize));
        Ok(Message { header, request: request.ok(), payload })
    }

    /// The device says that it has nothing more.
    fn ended(&self, error: Errno) {
        self.close();
        // What was open is never closed when the connection was cut, as by `umount --force`.
        self.file.forget_opens();
        // The file system was unmounted, by whatever user.
        if error == Errno::NODEV || error == Errno::CONNABORTED {
            tracing::info!(export = self.backend.name(), "is no longer mounted");
        } else {
            tracing::error!(export = self.backend.name(), %error, "cannot read FUSE requests");
        }
    }

    /// Sends bytes to the kernel. Returns whether it still wanted them.
    pub fn send(&self, message: &[IoSlice<'_>]) -> bool {
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

    /// One more request is in flight.
    pub fn count_begun(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// One of them is answered.
    pub fn count_ended(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.is_full.get() && self.may_go_on() {
            self.more.schedule();
        }
        if self.in_flight.get() == 0 {
            self.waiters.take().into_iter().for_each(CoWaker::wake);
        }
    }

    /// Whether an answer may wait for others. The first one while requests are read wakes the client, which then
    /// finds those that follow without being woken for each.
    pub fn may_wait(&self) -> bool {
        self.is_reading.get() && self.has_told.replace(true)
    }

    /// Has it wait.
    pub fn tell_later(&self, answer: Untold) {
        let count = {
            let mut untold = self.untold.borrow_mut();
            untold.push(answer);
            untold.len()
        };
        if count == MAX_UNTOLD {
            self.tell();
        }
    }

    /// Sends the answers that have waited.
    fn tell(&self) {
        for Untold { header, body } in self.untold.borrow_mut().drain(..) {
            match body {
                Body::Data(room) => self.send(&room.behind(&header)),
                Body::Reply(reply) => {
                    self.send(&[IoSlice::new(&header), IoSlice::new(reply.as_bytes())])
                }
            };
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

struct Reading<'a>(&'a Queue);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.tell();
        self.0.has_told.set(false);
        self.0.is_reading.set(false);
    }
}

/// How a loop that looks for work sees it.
struct Look(Weak<Queue>);

impl BusyPoll for Look {
    fn is_busy(&self, _: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|queue| queue.looks())
    }

    fn ready(&self, ctx: &AioContext) {
        if let Some(queue) = self.0.upgrade() {
            queue.read_all(ctx);
        }
    }
}
