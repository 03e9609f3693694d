//! What was copied is read from the target, and compared with checksums of what was read from the source.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AlignedBuffer, Co, IoVectorMut};

use crate::copy::sums::Sums;
use crate::copy::target::Target;
use crate::{Job, JobFailure};

/// Reads at a time, and bytes of each, unless a granule has more: then there are fewer, of no more bytes in all.
const READERS: u64 = 4;
const MAX_READ: u64 = 1 << 20;

/// What the readers have in common.
struct Reading {
    job: Rc<Job>,
    target: Rc<Target>,
    sums: Arc<Sums>,
    /// What is before was given to a reader.
    next: Cell<u64>,
    readers: Cell<usize>,
    failure: RefCell<Option<JobFailure>>,
}

/// Compares all that was copied, and is durable. A step of the job's main coroutine; is paused with the job.
///
/// # Errors
/// If the target cannot be read, or has other bytes; if the job is cancelled.
pub(super) fn co_verify(
    co: &Co<'_>,
    job: &Rc<Job>,
    target: &Rc<Target>,
    sums: &Arc<Sums>,
) -> Result<(), JobFailure> {
    let own = target.node().own_requests();
    target.co_apart(co, job, move |co, _| own.co_drop_caches(co))??;
    let reading = Rc::new(Reading {
        job: Rc::clone(job),
        target: Rc::clone(target),
        sums: Arc::clone(sums),
        next: Cell::new(0),
        readers: Cell::new(0),
        failure: RefCell::default(),
    });
    loop {
        if reading.readers.get() == 0 {
            job.co_pause_point(co)?;
            if let Some(failure) = reading.failure.take() {
                return Err(failure);
            }
            if sums.next(reading.next.get(), MAX_READ).is_none() {
                return Ok(());
            }
            let at_once = READERS * MAX_READ / sums.granularity().max(MAX_READ);
            (0..at_once.max(1)).for_each(|_| reading.begin(co));
        }
        if job.is_cancelled() {
            // A target that does not answer is left behind.
            return Err(JobFailure::Cancelled);
        }
        job.co_wait(co, None);
    }
}

impl Reading {
    fn begin(self: &Rc<Self>, co: &Co<'_>) {
        self.readers.set(self.readers.get() + 1);
        let (own, reading) = (self.target.begin(), Rc::clone(self));
        co.context().spawn("verification", move |co| {
            // The hook of panics has reported it.
            let read = co.catch_unwind(|| reading.co_read(co));
            if let Err(failure) = read.unwrap_or_else(|_| Err(JobFailure::panicked())) {
                reading.failure.borrow_mut().get_or_insert(failure);
            }
            reading.readers.set(reading.readers.get() - 1);
            own.co_end(co);
            reading.job.kick();
        });
    }

    /// Reads as long as there is something to be read.
    fn co_read(&self, co: &Co<'_>) -> Result<(), JobFailure> {
        let longest = MAX_READ.max(self.sums.granularity());
        let alignment = self.target.node().limits().memory_alignment.max(4096) as usize;
        let length = usize::try_from(longest).map_err(|_| io::ErrorKind::OutOfMemory);
        let mut data = AlignedBuffer::new(length.map_err(io::Error::from)?, alignment)?;
        let backend = self.target.backend();
        loop {
            let is_over = self.failure.borrow().is_some();
            if is_over || self.job.is_cancelled() || self.job.should_pause() {
                return Ok(());
            }
            let Some(range) = self.sums.next(self.next.get(), longest) else { return Ok(()) };
            self.next.set(range.end);
            let bytes = &mut data[..(range.end - range.start) as usize];
            backend.co_preadv(co, range.start, &mut IoVectorMut::from(&mut *bytes))?;
            if let Some(place) = self.sums.first_difference(range.start, bytes) {
                let name = self.target.node().name();
                let text =
                    format!("Node '{name}' has other bytes at {place} than were copied there");
                return Err(JobFailure::Text(text));
            }
        }
    }
}
