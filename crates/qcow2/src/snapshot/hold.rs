//! [`Held`]: an image whose mapping stands still.
//!
//! Changes of entries wait until it ends. Where clusters are about to be shared, writes in place have ended
//! too, and those that come become changes of entries, which wait. Reads go on.

use std::io;
use std::time::Duration;

use coblk_aio::Co;

use crate::image::Image;
use crate::layout::{COPIED, Header, Incompatible};
use crate::refcount::Refcounts;
use crate::state::wake_all;

/// Longest time between two looks at whether requests have ended.
const MAX_WAIT: Duration = Duration::from_millis(2);

/// The mapping stands still while this lives.
pub(crate) struct Held<'a> {
    image: &'a Image,
    /// Where the locked ranges begin, which together are all of the disk.
    starts: Vec<u64>,
    /// All of it is locked.
    is_whole: bool,
}

/// An image that is to be repaired if the program ends before [`co_end`](Marked::co_end).
pub(super) struct Marked<'a> {
    image: &'a Image,
    /// The dirty bit is to be cleared at the end.
    is_marked: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.image.lock();
        let mut waiting = state.take_waiting();
        state.is_held &= !self.is_whole;
        self.starts.iter().for_each(|start| waiting.extend(state.locks.unlock(*start)));
        drop(state);
        wake_all(waiting);
    }
}

impl Image {
    /// Has the mapping stand still, with all of it in the file.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn co_hold_unmarked(&self, co: &Co<'_>) -> io::Result<Held<'_>> {
        let held = self.co_lock_all(co);
        self.co_settle(co)?;
        self.co_await_commits(co);
        Ok(held)
    }

    /// Has the mapping of an image stand still that is not used any more, as it is corrupt. What was not written
    /// is forgotten: flushes have failed since.
    pub(crate) fn co_hold_dead(&self, co: &Co<'_>) -> Held<'_> {
        let held = self.co_lock_all(co);
        self.co_await_commits(co);
        // What is about to be punched is not known any more then.
        let is_punching = || self.lock().refcounts.as_ref().is_some_and(Refcounts::is_punching);
        let mut wait = Duration::ZERO;
        while is_punching() {
            co_wait_longer(co, &mut wait);
        }
        let mut state = self.lock();
        state.forget(self.cache.owed());
        self.cache.clear(&state.owed);
        drop(state);
        held
    }

    /// Waits for a commit that others have begun. While the mapping stands still none comes after it.
    fn co_await_commits(&self, co: &Co<'_>) {
        let mut state = self.lock();
        while state.commits.is_active() {
            self.co_wait_for_change(co, state);
            state = self.lock();
        }
    }

    /// Has the mapping stand still, with all of it in the file, and the image marked as one to be repaired if
    /// the program ends before that is taken back.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn co_hold(&self, co: &Co<'_>) -> io::Result<Held<'_>> {
        let held = self.co_hold_unmarked(co)?;
        self.co_mark(co)?;
        Ok(held)
    }

    /// Marks the image as one to be repaired. Version 2 has no mark.
    ///
    /// # Errors
    /// Those of writing.
    pub(super) fn co_mark(&self, co: &Co<'_>) -> io::Result<Marked<'_>> {
        let header = self.header();
        let is_marked = header.version >= 3 && !header.incompatible.contains(Incompatible::DIRTY);
        if is_marked {
            self.co_update_header(co, |it: &mut Header| {
                it.incompatible.insert(Incompatible::DIRTY);
            })?;
        }
        Ok(Marked { image: self, is_marked })
    }
}

impl Marked<'_> {
    /// Ends an operation after which the tables are right.
    ///
    /// # Errors
    /// Those of writing; the image stays marked then.
    pub(super) fn co_end(self, co: &Co<'_>) -> io::Result<()> {
        self.image.co_settle(co)?;
        // Flags were written beside commits.
        self.image.file.co_flush(co)?;
        if self.is_marked {
            self.image.co_update_header(co, |it: &mut Header| {
                it.incompatible.remove(Incompatible::DIRTY);
            })?;
        }
        Ok(())
    }
}

/// Sleeps for longer each time, up to a bound.
fn co_wait_longer(co: &Co<'_>, wait: &mut Duration) {
    co.sleep(*wait);
    *wait = (*wait * 2 + Duration::from_micros(10)).min(MAX_WAIT);
}

impl Image {
    /// Locks from the beginning of the disk to its end. What was locked stays so, while ranges behind it are
    /// waited for.
    fn co_lock_all(&self, co: &Co<'_>) -> Held<'_> {
        let mut held = Held { image: self, starts: Vec::new(), is_whole: false };
        let mut from = 0;
        loop {
            let mut state = self.lock();
            let conflict = state.locks.conflict(&(from..u64::MAX));
            let until = conflict.unwrap_or(u64::MAX);
            if from < until {
                state.locks.lock(&(from..until));
                held.starts.push(from);
                from = until;
            }
            match conflict {
                None => {
                    (state.is_held, held.is_whole) = (true, true);
                    break;
                }
                Some(start) => self.co_wait_for_range(co, state, start),
            }
        }
        // A cluster for a table may have been on its way.
        drop(self.block_turn.lock(co));
        held
    }
}

impl Held<'_> {
    /// Ends writes in place: no cluster counts as the disk's own alone from here on.
    pub(super) fn co_stop_writes(&self, co: &Co<'_>) {
        let image = self.image;
        {
            let mut state = image.lock();
            for index in 0..image.l1.entries() {
                let word = image.l1.get(index);
                if word & COPIED != 0 {
                    image.l1.set(index, word & !COPIED);
                    state.mark_l1(index);
                }
            }
            // Slices are read anew, and lose their flags by that.
            image.cache.clear(&state.owed);
        }
        self.co_pass_epochs(co, || true);
    }

    /// Waits for the requests that have found something before the standstill. What was given up until then is
    /// free afterwards, reached by none, and punched where it is to be.
    ///
    /// # Errors
    /// ECANCELED when the coroutine is not wanted any more.
    pub(crate) fn co_pass_requests(&self, co: &Co<'_>) -> io::Result<()> {
        let canceled = || io::Error::from_raw_os_error(libc::ECANCELED);
        if !self.co_pass_epochs(co, || co.is_wanted()) {
            return Err(canceled());
        }
        // Another one punches, perhaps.
        let is_punching =
            || self.image.lock().refcounts.as_ref().is_some_and(Refcounts::is_punching);
        let mut wait = Duration::ZERO;
        while is_punching() {
            if !co.is_wanted() {
                return Err(canceled());
            }
            co_wait_longer(co, &mut wait);
        }
        Ok(())
    }

    /// Waits until two epochs have ended: with them a request that was there before. `false` if it is not to go on
    /// before that.
    fn co_pass_epochs(&self, co: &Co<'_>, goes_on: impl Fn() -> bool) -> bool {
        let (mut epochs, mut wait) = (0, Duration::ZERO);
        while epochs < 2 {
            if self.image.co_try_epoch(co) {
                epochs += 1;
            } else if goes_on() {
                co_wait_longer(co, &mut wait);
            } else {
                return false;
            }
        }
        true
    }
}
