//! Changes of a whole image give way to drains of its node: snapshots, properties, an image that is emptied.
//!
//! Such a change goes over all tables, and a drain would wait for its end. It lets the drain go ahead between two
//! steps, and goes on when the drained section has ended.
//!
//! # What holds at such a point
//!
//! * What a crash may leave of the file is what it may leave at any other moment of the change: steps keep their order,
//!   and an image of version 3 is marked until the last.
//! * Nothing of the image is in flight, and its mapping does not stand still.
//! * Requests may wait for the [turn](Image::co_turn), for counts that fall again, and, where they are tracked, for
//!   all of the disk. So a drain goes ahead only if nothing else is in flight that it waits for: no request to the
//!   node or to one that leads to it, and no other operation on the image.
//! * In the drained section no request comes in. Commits, and other cache sizes, are as beside the change. What would
//!   have the node read-only, inactive or closed finds the turn taken, and fails.
//!
//! A check of all entries for which the mapping stands still ends with EINTR when a drain begins, and is made anew
//! after it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coblk_aio::Co;
use coblk_aio::sync::{CoMutex, CoMutexGuard};

use crate::image::Image;

/// How often drains interrupt what is made anew then; the next one waits for its end.
const MAX_INTERRUPTIONS: u32 = 16;
/// Longest time between two looks at whether requests have ended.
const MAX_WAIT: Duration = Duration::from_millis(2);

/// Held by the one that changes tables as a whole: snapshots, bitmaps, the length, properties, repairs.
#[derive(Default)]
pub(crate) struct WholeTurn {
    turn: CoMutex<()>,
    /// Wait for it.
    waiting: AtomicUsize,
    /// The one that holds it has let a drain go ahead.
    gives_way: AtomicBool,
}

impl WholeTurn {
    /// The drained section ends: from here on the holder goes on.
    pub(crate) fn goes_on(&self) {
        self.gives_way.store(false, Ordering::SeqCst);
    }
}

/// Is counted while it waits for the turn.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Image {
    /// The turn of changes of tables as a whole.
    ///
    /// # Errors
    /// As of [`check_turn`](Self::check_turn).
    pub(crate) fn co_turn(&self, co: &Co<'_>) -> io::Result<CoMutexGuard<'_, ()>> {
        self.check_turn()?;
        let _waiting = Waiting::new(&self.whole_turn.waiting);
        Ok(self.whole_turn.turn.lock(co))
    }

    /// Checks, in a drained section, that no change of the image waits for the end of the section.
    ///
    /// # Errors
    /// EBUSY if one does.
    pub(crate) fn check_turn(&self) -> io::Result<()> {
        match self.whole_turn.gives_way.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "a snapshot, or another change of the whole image, is under way",
            )),
        }
    }

    /// Lets a drain go ahead that waits for this change alone. The caller has the turn. `false` if there is one that
    /// has to wait.
    pub(crate) fn co_give_way(&self, co: &Co<'_>) -> bool {
        if !self.survey.is_held() {
            return true;
        }
        // Where the mapping stands still requests wait for that.
        if self.lock().is_held {
            return false;
        }
        let gives_way = &self.whole_turn.gives_way;
        self.file.co_let_drain(co, || gives_way.store(true, Ordering::SeqCst))
    }

    /// Does what may be made anew after a drain that it ends for, with EINTR: `attempt` is told whether to.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub(crate) fn co_interruptible<R>(
        &self,
        co: &Co<'_>,
        attempt: impl Fn(bool) -> io::Result<R>,
    ) -> io::Result<R> {
        for _ in 0..MAX_INTERRUPTIONS {
            match attempt(true) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
            if !self.co_await_drain(co) {
                break;
            }
        }
        attempt(false)
    }

    /// Waits for the end of a drain. `false` if something waits for this change meanwhile.
    fn co_await_drain(&self, co: &Co<'_>) -> bool {
        let mut wait = Duration::ZERO;
        while !self.co_give_way(co) {
            if self.whole_turn.waiting.load(Ordering::SeqCst) > 0 {
                return false;
            }
            co.sleep(wait);
            wait = (wait * 2 + Duration::from_micros(10)).min(MAX_WAIT);
        }
        true
    }

    /// Ends a check of all entries if a drain has begun.
    ///
    /// # Errors
    /// EINTR then.
    pub(crate) fn check_drain(&self) -> io::Result<()> {
        match self.survey.is_held() {
            false => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::EINTR)),
        }
    }
}
