//! [`Active`]: write-blocking mode. A guest's write goes to both nodes before the guest is told.
//!
//! ```text
//! claim the granules -> write the source -> what is wholly covered is not todo any more -> write the target -> end
//!                             | failed: they are todo                                          | failed: they are todo
//! ```
//!
//! The write to the target has a coroutine and a buffer of its own, as the guest may change its buffer, and may
//! have to be let go while the target does not answer. It passes no gate, as it is part of a guest's request that
//! has passed one; a drain of the target waits for it.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use coblk_aio::{Co, CoWaker, IoVector};
use coblk_block::{BlockNode, OwnRequests, WriteFlags, ZeroFlags};

use super::top::Marks;
use crate::Progress;
use crate::rules::{Rule, holds};

/// Longest write that is copied, in bytes; what is longer is marked.
const MAX_COPY: usize = 32 << 20;

/// What is written to both nodes.
pub(super) enum Change<'a> {
    Data(&'a IoVector<'a>, WriteFlags),
    Zeroes(ZeroFlags),
    Discard,
}

/// The same, for a coroutine that outlives its guest's request.
enum Owned {
    Data(Vec<u8>, WriteFlags),
    Zeroes(ZeroFlags),
    Discard,
}

impl Change<'_> {
    /// `None` if there is no memory.
    fn own(&self) -> Option<Owned> {
        Some(match self {
            Change::Data(source, flags) => {
                let mut data = Vec::new();
                if source.len() > MAX_COPY || data.try_reserve_exact(source.len()).is_err() {
                    return None;
                }
                data.resize(source.len(), 0);
                source.copy_to(0, &mut data);
                Owned::Data(data, *flags)
            }
            Change::Zeroes(flags) => Owned::Zeroes(*flags),
            Change::Discard => Owned::Discard,
        })
    }
}

impl Owned {
    /// Writes a range, whose bytes begin `skipped` bytes behind the beginning of the data.
    fn co_write(
        &self,
        co: &Co<'_>,
        target: &OwnRequests,
        range: &Range<u64>,
        skipped: usize,
    ) -> io::Result<()> {
        let bytes = range.end - range.start;
        match self {
            Owned::Data(data, flags) => {
                let source = IoVector::from(&data[skipped..skipped + bytes as usize]);
                target.co_pwritev(co, range.start, &source, *flags)
            }
            Owned::Zeroes(flags) => target.co_pwrite_zeroes(co, range.start, bytes, *flags),
            Owned::Discard => target.co_pdiscard(co, range.start, bytes),
        }
    }
}

/// The guests of a mirror in write-blocking mode. Any thread.
pub(super) struct Active {
    target: Arc<BlockNode>,
    marks: Arc<Marks>,
    /// Guests write to both.
    is_on: AtomicBool,
    /// Guests that wait for the target.
    waiting: Mutex<Vec<Arc<Done>>>,
    progress: Arc<Progress>,
}

impl Active {
    pub(super) fn new(
        target: &Arc<BlockNode>,
        marks: &Arc<Marks>,
        progress: &Arc<Progress>,
    ) -> Active {
        Active {
            target: Arc::clone(target),
            marks: Arc::clone(marks),
            is_on: AtomicBool::new(false),
            waiting: Mutex::default(),
            progress: Arc::clone(progress),
        }
    }

    /// Whether guests write to both.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::SeqCst)
    }

    /// From here on guests write to both. No request is under way.
    pub(super) fn switch_on(&self) {
        self.is_on.store(true, Ordering::SeqCst);
    }

    /// Lets guests go that wait for the target, and none wait any more.
    pub(super) fn give_up(&self) {
        self.is_on.store(false, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        waiting.iter().for_each(|guest| guest.set());
        self.marks.guests.waiters.wake();
    }

    /// Changes a range of bytes of both nodes: of the source by `at_source`.
    ///
    /// # Errors
    /// Those of the source.
    pub(super) fn co_change(
        self: &Arc<Self>,
        co: &Co<'_>,
        (range, change): (Range<u64>, &Change<'_>),
        at_source: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let owned = change.own();
        let mut held = Held::new(&self.marks, &range);
        let Some(owned) = owned.filter(|_| held.co_claim(co, self)) else {
            // Dropped after the write: that marks.
            return at_source();
        };
        if let Err(error) = at_source() {
            // Dropped, it marks.
            held.is_written = !holds(Rule::MarkFailedAtSource);
            return Err(error);
        }
        let Some(range) = held.cover(&range) else {
            held.end();
            return Ok(());
        };
        self.co_write_target(co, held, range, owned);
        Ok(())
    }

    /// Writes to the target, and waits for that as long as the mode is on.
    fn co_write_target(
        self: &Arc<Self>,
        co: &Co<'_>,
        mut held: Held,
        (range, skipped): (Range<u64>, usize),
        change: Owned,
    ) {
        let done = Arc::<Done>::default();
        lock(&self.waiting).push(Arc::clone(&done));
        let (active, told) = (Arc::clone(self), Told(Arc::clone(&done)));
        let own = self.target.own_requests();
        co.context().spawn("active write", move |co| {
            let written = co.catch_unwind(|| change.co_write(co, &own, &range, skipped));
            drop(own);
            // The hook of panics has reported it.
            match written.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::EIO))) {
                Ok(()) => {
                    active.progress.add(range.end - range.start);
                    held.end();
                }
                Err(error) => {
                    let marks = Arc::clone(&held.marks);
                    held.is_written = !holds(Rule::MarkFailedAtTarget);
                    // Marked before the policy acts.
                    drop(held);
                    marks.guests.failed(error);
                }
            }
            drop(told);
        });
        if !self.is_on() {
            done.set();
        }
        done.co_wait(co);
        lock(&self.waiting).retain(|guest| !Arc::ptr_eq(guest, &done));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The claim of a guest. Dropped, it marks what it was to write.
struct Held {
    marks: Arc<Marks>,
    /// The granules, of which those before `claimed` are claimed.
    granules: Range<u64>,
    claimed: u64,
    /// Those that are written as a whole.
    whole: Range<u64>,
    is_written: bool,
}

impl Held {
    fn new(marks: &Arc<Marks>, range: &Range<u64>) -> Held {
        let granules = marks.granules_of(range);
        let claimed = granules.start;
        Held { marks: Arc::clone(marks), granules, claimed, whole: 0..0, is_written: false }
    }

    /// Claims, after copies and writes there. False if the mode is switched off meanwhile.
    fn co_claim(&mut self, co: &Co<'_>, active: &Active) -> bool {
        let granules = &self.marks.granules;
        if !holds(Rule::GuestsClaim) {
            return active.is_on();
        }
        loop {
            self.claimed = granules.hold(self.claimed..self.granules.end);
            if self.claimed >= self.granules.end {
                return active.is_on();
            }
            if !active.is_on() {
                return false;
            }
            let next = self.claimed;
            let waiters = &self.marks.guests.waiters;
            waiters.co_wait(co, || !granules.is_busy(next) || !active.is_on());
        }
    }

    /// The part of a range that is to be written: without granules at its ends that are todo, and are not wholly
    /// covered; and how many bytes are left out before it. What is wholly covered is not todo any more.
    fn cover(&mut self, range: &Range<u64>) -> Option<(Range<u64>, usize)> {
        let (granules, granularity) = (&self.marks.granules, self.marks.granularity);
        let end = range.end.min(self.marks.length);
        let mut part = range.start..end;
        let is_last_whole = end.is_multiple_of(granularity) || end == self.marks.length;
        let mut whole = range.start.div_ceil(granularity)..end.div_ceil(granularity);
        if !is_last_whole {
            whole.end -= 1;
            if self.is_left(whole.end) {
                part.end = part.end.min(whole.end * granularity);
            }
        }
        if !range.start.is_multiple_of(granularity) && self.is_left(self.granules.start) {
            part.start = part.start.max(whole.start * granularity);
        }
        if !holds(Rule::LeaveParts) {
            (part, whole) = (range.start..end, self.granules.clone());
        }
        if whole.start < whole.end {
            granules.clear(whole.clone());
            self.whole = whole;
        }
        let skipped = (part.start - range.start) as usize;
        (part.start < part.end).then_some((part, skipped))
    }

    /// Whether a granule that is covered in part is left to the copier, and todo.
    fn is_left(&self, granule: u64) -> bool {
        let granules = &self.marks.granules;
        if !granules.is_todo(granule) && granules.is_copied(granule) {
            return false;
        }
        self.marks.mark_granules(granule..granule + 1);
        true
    }

    /// Both have what was written.
    fn end(mut self) {
        self.marks.granules.set_copied(self.whole.clone());
        self.is_written = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let granules = &self.marks.granules;
        if !self.is_written {
            self.marks.mark_granules(self.granules.clone());
        }
        if self.claimed > self.granules.start {
            granules.end(self.granules.start..self.claimed);
        }
        self.marks.guests.claim_ended();
    }
}

/// The write to the target, which tells its end also when it panics.
struct Told(Arc<Done>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// The end of a write to the target, or of the wait for it.
#[derive(Default)]
struct Done(Mutex<(bool, Option<CoWaker>)>);

impl Done {
    fn set(&self) {
        let waker = {
            let mut state = lock(&self.0);
            state.0 = true;
            state.1.take()
        };
        waker.into_iter().for_each(CoWaker::wake);
    }

    fn co_wait(&self, co: &Co<'_>) {
        if lock(&self.0).0 {
            return;
        }
        co.suspend_for("the target of a mirror", |waker| {
            let mut state = lock(&self.0);
            if state.0 {
                drop(state);
                co.context().schedule(move |_| waker.wake());
            } else {
                state.1 = Some(waker);
            }
        });
    }
}
