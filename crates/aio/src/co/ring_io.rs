//! One request to the ring, in the frame of the coroutine that waits for it.
//!
//! The argument why that is sound is the one of `blocking.rs`, with the kernel in the
//! worker's place: the frame is left after the completion has been reaped and has resumed the
//! coroutine, or, when the coroutine is unwound, after [`WaitOnUnwind`] has cancelled the request
//! and reaped its completion.

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use io_uring::{opcode, squeue, types};

use super::{Co, Task};
use crate::context::AioContext;
use crate::io_vector::{IoVector, IoVectorMut};
use crate::ring::{Request, Ring, RingFd, fd};
use crate::run_list::{Node, NodeKind, Runner};
use crate::sys::{self, IOV_MAX};
use crate::thread_pool::owed;
use crate::trace_event;

/// A request that a coroutine waits for. All of it belongs to the home thread.
#[repr(C)]
struct RingOp {
    request: Request,
    /// The task to resume.
    task: NonNull<Task>,
    /// The node is off its list and the coroutine resumed.
    done: Cell<bool>,
}

static RING_OP_KIND: NodeKind = NodeKind { run: run_ring_op, discard: discard_ring_op };

/// The completion bottom half.
///
/// # Safety
/// As `NodeKind::run`; the node is a `RingOp`'s.
unsafe fn run_ring_op(node: NonNull<Node>, _: Runner<'_>) -> bool {
    // SAFETY: the coroutine is suspended in `RingOp::submit`, so the request is there. The
    // reference is not used after the resume, which ends the frame.
    let task = unsafe {
        let op = node.cast::<RingOp>().as_ref();
        op.done.set(true);
        op.task
    };
    // SAFETY: its coroutine waits for this, so it is live.
    unsafe { Task::resume(task) };
    true
}

/// # Safety
/// As `NodeKind::discard`.
unsafe fn discard_ring_op(_node: NonNull<Node>) {
    // A context unwinds its coroutines, and so takes their requests off its lists, before it
    // discards what is left.
    unreachable!("a coroutine's request outlived the coroutine");
}

impl RingOp {
    /// Queues `entry` and suspends until it has completed.
    ///
    /// # Safety
    /// What `entry` points to stays valid for the length of this call.
    // Always inlined, like what calls it: the processor predicts the return of each frame between
    // two switches of stacks for the other stack, and wrongly.
    #[inline(always)]
    unsafe fn submit(co: &Co<'_>, ring: &Ring, entry: squeue::Entry) -> io::Result<usize> {
        let op = RingOp {
            request: Request::new(&RING_OP_KIND),
            task: NonNull::from(co.task()),
            done: Cell::new(false),
        };
        trace_event!("luring_co_submit");
        let user_data = ring.tagged(&raw const op.request);
        let entry = entry.user_data(user_data);
        // SAFETY: this call lasts until the completion is reaped: it returns after `done`, and
        // unwinds through the guard.
        unsafe { ring.start(&op.request, &entry)? };
        let guard = WaitOnUnwind { op: &op, user_data, ring, ctx: co.context() };
        while !op.done.get() {
            co.suspend("the ring");
        }
        drop(guard);
        match op.request.result() {
            Some(bytes @ 0..) => Ok(bytes as usize),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => unreachable!("a request is done without its completion"),
        }
    }
}

/// Keeps a frame until the kernel is done with the request in it.
struct WaitOnUnwind<'a> {
    op: &'a RingOp,
    user_data: u64,
    ring: &'a Ring,
    ctx: &'a AioContext,
}

impl Drop for WaitOnUnwind<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.op.done.get() {
            self.cancel_and_wait();
        }
    }
}

impl WaitOnUnwind<'_> {
    #[cold]
    fn cancel_and_wait(&self) {
        let queues = self.ctx.inner().bh();
        owed::pay();
        // Completions of other requests are kept for the next bottom-half phase.
        if !self.ring.take_back(&self.op.request, self.user_data, &queues.pending) {
            return;
        }
        let node = self.op.request.node();
        if !queues.pending.remove(node) {
            queues.running.remove(node);
        }
    }
}

/// Requests through the context's ring. The result is the kernel's: a transfer may be short, and
/// EINTR or EAGAIN may come; who calls decides about retries. ENOSYS if the context has no ring
/// ([`AioContext::has_ring`]).
impl Co<'_> {
    fn ring(&self) -> io::Result<&Ring> {
        self.context().ring().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))
    }

    #[inline]
    fn place(&self, ring: &Ring, file: RingFd<'_>) -> Place {
        let slot = match file {
            RingFd::Registered(file) => ring.slot(file, self.context().inner().shared()),
            RingFd::Plain(_) => None,
        };
        slot.map_or_else(|| Place::Fd(fd(file.plain())), |slot| Place::Slot(types::Fixed(slot)))
    }

    /// In a simulated context the call is made in the ring's place, when its time has come.
    fn simulated<R: Send>(&self, call: impl FnOnce() -> R + Send) -> Option<R> {
        let ctx = self.context();
        ctx.simulation().is_some().then(|| ctx.thread_pool().submit_co(self, call))
    }

    /// Reads at `offset_bytes` into `target`; returns how many bytes were read.
    #[inline(always)]
    pub fn ring_preadv<'a>(
        &self,
        file: impl Into<RingFd<'a>>,
        target: &mut IoVectorMut<'_>,
        offset_bytes: u64,
    ) -> io::Result<usize> {
        let file = file.into();
        if let Some(result) = self.simulated(|| sys::preadv(file.plain(), target, offset_bytes)) {
            return result;
        }
        let ring = self.ring()?;
        let entry = match target.as_iovecs() {
            [range] => {
                let (base, len) = (range.iov_base.cast(), short_len(range.iov_len));
                match self.place(ring, file) {
                    Place::Slot(slot) => opcode::Read::new(slot, base, len),
                    Place::Fd(fd) => opcode::Read::new(fd, base, len),
                }
                .offset(offset_bytes)
                .build()
            }
            ranges => {
                let (first, count) = (ranges.as_ptr(), range_count(ranges.len()));
                match self.place(ring, file) {
                    Place::Slot(slot) => opcode::Readv::new(slot, first, count),
                    Place::Fd(fd) => opcode::Readv::new(fd, first, count),
                }
                .offset(offset_bytes)
                .build()
            }
        };
        // SAFETY: ranges and memory are borrowed for the length of this call. So is the file: its
        // slot stays its own.
        unsafe { RingOp::submit(self, ring, entry) }
    }

    /// Writes `source` at `offset_bytes`; returns how many bytes were written.
    ///
    /// For files and devices. A write to a pipe or a socket whose other end is closed raises
    /// SIGPIPE, as any does that cannot say otherwise.
    #[inline(always)]
    pub fn ring_pwritev<'a>(
        &self,
        file: impl Into<RingFd<'a>>,
        source: &IoVector<'_>,
        offset_bytes: u64,
    ) -> io::Result<usize> {
        let file = file.into();
        if let Some(result) = self.simulated(|| sys::pwritev(file.plain(), source, offset_bytes)) {
            return result;
        }
        let ring = self.ring()?;
        let entry = match source.as_iovecs() {
            [range] => {
                let (base, len) = (range.iov_base.cast::<u8>(), short_len(range.iov_len));
                match self.place(ring, file) {
                    Place::Slot(slot) => opcode::Write::new(slot, base, len),
                    Place::Fd(fd) => opcode::Write::new(fd, base, len),
                }
                .offset(offset_bytes)
                .build()
            }
            ranges => {
                let (first, count) = (ranges.as_ptr(), range_count(ranges.len()));
                match self.place(ring, file) {
                    Place::Slot(slot) => opcode::Writev::new(slot, first, count),
                    Place::Fd(fd) => opcode::Writev::new(fd, first, count),
                }
                .offset(offset_bytes)
                .build()
            }
        };
        // SAFETY: as in `ring_preadv`.
        unsafe { RingOp::submit(self, ring, entry) }
    }

    /// Makes written data durable.
    pub fn ring_fdatasync(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(result) = self.simulated(|| sys::fdatasync(file)) {
            return result;
        }
        let entry =
            opcode::Fsync::new(fd(file)).flags(io_uring::types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry points to nothing.
        unsafe { RingOp::submit(self, self.ring()?, entry) }.map(|_| ())
    }
}

/// Where the kernel finds a file.
enum Place {
    Slot(types::Fixed),
    Fd(types::Fd),
}

/// The ring's lengths have 32 bits; what is longer is transferred in part.
fn short_len(len: usize) -> u32 {
    const MAX_BYTES: usize = 1 << 30;
    len.min(MAX_BYTES) as u32
}

fn range_count(count: usize) -> u32 {
    count.min(IOV_MAX) as u32
}
