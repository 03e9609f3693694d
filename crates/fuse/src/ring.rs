//! Requests over io_uring: those of the kernel's queues that a context serves. One system call answers
//! requests and fetches others, and a loop that looks for work sees them without any.
//!
//! The kernel has a queue a CPU, which takes the requests of programs that run there. The contexts of an
//! export share the queues among them. What the ring has not got comes from the device as before: the first
//! request, which agrees on the ring, and what is to be forgotten.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

use coblk_aio::sys::{FuseEntry, FuseRing};
use coblk_aio::{AioContext, BottomHalf, BusyPoll, FdHandler, FdInterest};

use crate::abi::MAX_TRANSFER;
use crate::answer::Answer;
use crate::queue::Queue;
use crate::request::{Header, MAX_BODY, Request};
use crate::room::Room;
use crate::serve::start;

/// Entries of all queues of a context, which are its requests in flight; each queue has one at least.
pub const MAX_ENTRIES: usize = 64;
/// Requests that are served before others have a turn.
const MAX_AT_ONCE: usize = 64;
/// Answers that the kernel is told of at once, while others are worked on.
const MAX_UNTOLD: usize = 8;

/// Which of the kernel's queues a context serves: each `step`th from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub first: usize,
    pub step: usize,
}

impl Share {
    /// The numbers of the queues, of so many.
    fn of(self, queues: usize) -> impl Iterator<Item = u16> {
        (self.first..queues).step_by(self.step).map(|queue| queue as u16)
    }
}

/// How many queues the kernel has, which is one for each CPU that there may ever be.
fn queues() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_of(&text).ok_or_else(|| io::Error::other(format!("possible CPUs are '{}'", text.trim())))
}

/// The number behind the last of ranges such as `0-3,8-11`.
fn last_of(ranges: &str) -> Option<usize> {
    let last = ranges.trim().rsplit([',', '-']).next()?;
    last.parse::<u16>().ok().map(|last| usize::from(last) + 1)
}

/// A ring that the kernel has heard nothing of, and entries for it.
pub struct Spare {
    ring: FuseRing,
    entries: Vec<FuseEntry>,
}

impl Spare {
    /// For the queues of a share; `None` if there are none in it. For the thread that makes it.
    pub fn new(device: &Rc<OwnedFd>, share: Share) -> io::Result<Option<Spare>> {
        let all = queues()?;
        let served = share.of(all).count();
        if served == 0 {
            return Ok(None);
        }
        let each = (MAX_ENTRIES / served).max(1);
        let ring = FuseRing::new((each * served) as u32)?;
        // One each first: the kernel begins to use rings as soon as every queue has an entry.
        let numbers = (0..each).flat_map(|_| share.of(all));
        let entries: io::Result<_> =
            numbers.map(|number| FuseEntry::new(device, number, MAX_TRANSFER)).collect();
        Ok(Some(Spare { ring, entries: entries? }))
    }
}

/// The ring of a context.
pub struct Lane {
    ring: FuseRing,
    /// Those that the kernel gets first.
    spare: RefCell<Vec<FuseEntry>>,
    /// It is being served at this moment.
    is_busy: Cell<bool>,
    /// Answers that the kernel was not told of.
    untold: Cell<usize>,
    has_served: Cell<bool>,
    /// Tells it, and serves on.
    more: BottomHalf,
    handler: RefCell<Option<FdHandler<Rc<OwnedFd>>>>,
}

impl Lane {
    pub fn new(ctx: &AioContext, spare: Spare, queue: &Weak<Queue>) -> Rc<Lane> {
        let Spare { ring, entries } = spare;
        let queue = Weak::clone(queue);
        Rc::new(Lane {
            ring,
            spare: RefCell::new(entries),
            is_busy: Cell::new(false),
            untold: Cell::new(0),
            has_served: Cell::new(false),
            more: ctx.bottom_half("fuse-ring", move |ctx| serve(&queue, ctx)),
            handler: RefCell::default(),
        })
    }

    /// Has the loop watch the ring.
    pub fn watch(self: &Rc<Self>, ctx: &AioContext, queue: &Rc<Queue>) -> io::Result<()> {
        let signal = Rc::clone(self.ring.signal());
        let told = Rc::downgrade(queue);
        let poll = LanePoll { queue: Rc::downgrade(queue), lane: Rc::downgrade(self) };
        let called = move |ctx: &AioContext, _| serve(&told, ctx);
        let handler = ctx.polled_fd_handler(signal, FdInterest::Read, called, poll)?;
        self.handler.replace(Some(handler));
        Ok(())
    }

    /// Offers the kernel all entries. It has to have agreed on rings.
    pub fn begin(&self) {
        for entry in self.spare.take() {
            self.hand_over(entry);
        }
        self.more.schedule();
    }

    /// The loop looks no more. All answers are with the kernel afterwards.
    pub fn end(&self) {
        self.handler.take();
        self.tell();
    }

    /// Hands an entry over with its answer. The kernel hears of it at the end of the turn, or earlier.
    pub fn answer(&self, entry: FuseEntry) {
        self.hand_over(entry);
        if !self.is_busy.get() {
            self.more.schedule();
        } else if self.untold.get() >= MAX_UNTOLD {
            self.tell();
        }
    }

    fn hand_over(&self, entry: FuseEntry) {
        if let Err(error) = self.ring.hand_over(entry) {
            tracing::error!(%error, "cannot hand an entry to the FUSE ring");
        }
        self.untold.set(self.untold.get() + 1);
    }

    /// Tells the kernel of all answers, and has it fill entries. False if the ring is broken.
    fn tell(&self) -> bool {
        self.untold.set(0);
        let told = self.ring.enter();
        if let Err(error) = &told {
            tracing::error!(%error, "the FUSE ring is broken");
        }
        told.is_ok()
    }
}

/// How a loop that looks for work sees it.
struct LanePoll {
    queue: Weak<Queue>,
    lane: Weak<Lane>,
}

impl BusyPoll for LanePoll {
    fn is_busy(&self, _: &AioContext) -> bool {
        self.lane.upgrade().is_some_and(|lane| lane.ring.has_work())
    }

    fn ready(&self, ctx: &AioContext) {
        serve(&self.queue, ctx);
    }
}

fn serve(queue: &Weak<Queue>, ctx: &AioContext) {
    let Some(queue) = queue.upgrade() else { return };
    let Some(lane) = queue.lane() else { return };
    if lane.is_busy.replace(true) {
        return;
    }
    let _busy = Busy(&lane.is_busy);
    let _batch = ctx.begin_batch();
    let mut served = 0;
    while lane.untold.get() > 0 || lane.ring.has_work() {
        if !lane.tell() {
            return;
        }
        while let Some(next) = lane.ring.next() {
            match next {
                Ok(entry) => begin(&queue, ctx, entry),
                Err(error) => lost(&queue, &error),
            }
            served += 1;
        }
        if served >= MAX_AT_ONCE {
            lane.more.schedule();
            return;
        }
    }
}

/// Begins a request. One that comes when the export ends is left to the kernel, which ends it with the rest.
fn begin(queue: &Rc<Queue>, ctx: &AioContext, entry: FuseEntry) {
    if !queue.is_open() {
        return;
    }
    let Some(header) = Header::parse(&entry.header::<{ Header::BYTES }>()) else { return };
    if queue.lane().is_some_and(|lane| !lane.has_served.replace(true)) {
        tracing::debug!(export = queue.backend.name(), "requests come over io_uring");
    }
    let received = entry.received_bytes();
    let body = entry.kind::<MAX_BODY>();
    let request = Request::parse(&header, &body, header.length as usize).ok();
    let request = request.filter(|request| match request {
        Request::Write(write) => write.size as usize == received,
        _ => true,
    });
    let bytes = received.min(MAX_TRANSFER);
    start(ctx, Answer::new(queue, header.unique, Room::Entry(entry, bytes)), &header, request);
}

/// The kernel has given up an entry.
fn lost(queue: &Queue, error: &io::Error) {
    match error.raw_os_error() {
        // The file system was unmounted, or the client of an answer was killed.
        Some(
            libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV | libc::ENOENT,
        ) => {}
        _ => {
            let export = queue.backend.name();
            tracing::error!(export, %error, "the kernel does not take FUSE requests over the ring");
        }
    }
}

struct Busy<'a>(&'a Cell<bool>);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_one_context() {
        let all = |first| Share { first, step: 3 }.of(8).collect::<Vec<_>>();
        assert_eq!([all(0), all(1), all(2)], [vec![0, 3, 6], vec![1, 4, 7], vec![2, 5]]);
        assert_eq!(Share { first: 2, step: 3 }.of(2).count(), 0);
    }

    #[test]
    fn possible_cpus_are_counted() {
        assert_eq!(
            [last_of("0-1\n"), last_of("0\n"), last_of("0-3,8-11")],
            [Some(2), Some(1), Some(12)]
        );
        assert_eq!([last_of(""), last_of("x")], [None, None]);
        assert!(queues().unwrap() > 0);
    }
}
