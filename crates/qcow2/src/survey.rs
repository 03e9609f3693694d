//! [`Survey`]: free space is found in the background.
//!
//! The first allocation goes to the end of the file, which one refcount block shows. After it a coroutine reads
//! the other blocks, one at a time, and notes how much is free in each; allocations use the gaps from then on. It
//! counts as the node's own I/O until it ends: when all is known, when its context ends, with the beginning of a
//! drain, and with a close, which wait for it. So it does no I/O in a drained section. The next allocation begins it
//! again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coblk_aio::{Co, CoWaker};

use crate::image::Image;
use crate::layout::RefcountWidth;
use crate::refcount::Need;
use crate::source::Source;
use crate::state::wake_all;

/// Whether free space is looked for. Any thread.
#[derive(Default)]
pub(crate) struct Survey(Arc<Shared>);

#[derive(Default)]
struct Shared {
    is_running: AtomicBool,
    /// The node is quiesced.
    is_held: AtomicBool,
    /// The node is being closed.
    is_ended: AtomicBool,
    /// Wait for the end.
    waiting: Mutex<Vec<CoWaker>>,
}

impl Shared {
    fn may_go_on(&self) -> bool {
        !self.is_held.load(Ordering::SeqCst) && !self.is_ended.load(Ordering::SeqCst)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<CoWaker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Survey {
    /// The node is quiesced from now on, or not any more.
    pub(crate) fn hold(&self, is_held: bool) {
        self.0.is_held.store(is_held, Ordering::SeqCst);
    }

    /// Whether the node is quiesced, or about to be.
    pub(crate) fn is_held(&self) -> bool {
        self.0.is_held.load(Ordering::SeqCst)
    }

    /// Ends it, and waits for that; no other begins until [`resume`](Self::resume).
    pub(crate) fn co_end(&self, co: &Co<'_>) {
        let shared = &self.0;
        shared.is_ended.store(true, Ordering::SeqCst);
        while shared.is_running.load(Ordering::SeqCst) {
            co.suspend_for("the end of a look for free space", |waker| {
                let mut waiting = shared.waiting();
                // It may have ended by now.
                match shared.is_running.load(Ordering::SeqCst) {
                    true => waiting.push(waker),
                    false => waker.wake(),
                }
            });
        }
    }

    /// The node was not closed after all.
    pub(crate) fn resume(&self) {
        self.0.is_ended.store(false, Ordering::SeqCst);
    }
}

/// A survey that runs, until it is dropped.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::SeqCst);
        let waiting = std::mem::take(&mut *self.0.waiting());
        wake_all(waiting);
    }
}

impl Image {
    /// Has a coroutine look for free space, if there are refcount blocks that were never read.
    pub(crate) fn begin_survey(&self, co: &Co<'_>) {
        let shared = &self.survey.0;
        let Some(image) = self.me.get().and_then(Weak::upgrade) else { return };
        if self.next_unread().is_none() || shared.is_running.swap(true, Ordering::SeqCst) {
            return;
        }
        let running = Running(Arc::clone(shared));
        // A close that has begun does not wait for one that begins now, which would hold the image.
        if !shared.may_go_on() {
            return;
        }
        // Without memory for a stack the next allocation tries again.
        let begun = co.context().try_spawn("qcow2 free space", move |co| {
            // A close that waits for the end finds the image not in use.
            let (running, image) = (running, image);
            image.co_survey(co, &running.0);
            drop(image);
            drop(running);
        });
        if let Err(error) = begun {
            tracing::debug!(%error, "free space is not looked for");
        }
    }

    fn next_unread(&self) -> Option<(u64, u64)> {
        match self.lock().refcounts.as_mut()?.next_unread()? {
            Need::Block { index, offset } => Some((index, offset)),
            _ => None,
        }
    }

    fn co_survey(&self, co: &Co<'_>, shared: &Shared) {
        let Ok(width) = RefcountWidth::new(self.header().refcount_order) else { return };
        let _own = self.file.enter_own();
        // Counted first, and looked at then: a drain that is not seen here waits for this coroutine.
        while shared.may_go_on()
            && let Some((index, offset)) = self.next_unread()
        {
            let mut bytes = vec![0; self.geometry.cluster_bytes() as usize];
            let read = self.file.co_read_at(co, offset, &mut bytes);
            let free = read.map(|()| width.count_free(&bytes)).ok();
            if let Some(refcounts) = &mut self.lock().refcounts {
                refcounts.surveyed(index, free);
            }
            co.yield_now();
        }
    }
}
