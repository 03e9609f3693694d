//! Want of space: what is done before a request is told that there is none.
//!
//! # What holds
//!
//! * A request fails for want of space only after a commit, and after all that was given up before has become free,
//!   punched where it is, unless that takes longer than a second. It waits for that with nothing held that others wait
//!   for. What others take meanwhile it tries to get again, for a second in all.
//! * Where the host has no space for what would make the file longer, the file counts as one that cannot grow:
//!   gaps are looked for, in all refcount blocks. It counts so until there is no gap, or for one request.
//! * New tables and refcount blocks have their space on the host before anything is linked in them. So a commit
//!   needs none, and what was written can be flushed.

use std::io;
use std::ops::Range;
use std::time::Duration;

use coblk_aio::Co;
use coblk_block::ZeroFlags;

use crate::image::Image;
use crate::metadata::Metadata;
use crate::refcount::{Need, Refcounts};

/// How often the host may refuse space to a request before it gives up.
const MAX_REFUSALS: u32 = 8;
/// How long a request waits until what was given up is free.
const MAX_GRACE: Duration = Duration::from_secs(1);
/// Longest time between two looks at whether it is.
const MAX_WAIT: Duration = Duration::from_millis(2);

/// How long a request has tried to get space.
#[derive(Default)]
pub(crate) struct Patience {
    /// It has committed once.
    has_committed: bool,
    waited: Duration,
    /// The last time between two looks.
    wait: Duration,
    /// How often the host had no space.
    refusals: u32,
}

impl Patience {
    /// Waits for a moment, longer each time.
    fn co_wait(&mut self, co: &Co<'_>) {
        self.wait = (self.wait * 2 + Duration::from_micros(10)).min(MAX_WAIT);
        self.waited += self.wait;
        co.sleep(self.wait);
    }
}

/// Whether an error says that the host has no space for more.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

fn no_space() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Image {
    /// Does what the refcounts need for a request, which then tries again.
    ///
    /// # Errors
    /// If it cannot be done, ENOSPC among them.
    pub(crate) fn co_satisfy(
        &self,
        co: &Co<'_>,
        need: Need,
        patience: &mut Patience,
    ) -> io::Result<()> {
        let host = match need {
            Need::Commit => return self.co_recall(co, patience),
            Need::Memory => return self.co_make_room(co, patience),
            Need::Space => {
                // The host may have space again.
                let was_limited = self.lock().refcounts.as_mut().is_some_and(|it| it.lift_limit());
                return match was_limited && patience.refusals == 0 {
                    true => Ok(()),
                    false => Err(no_space()),
                };
            }
            Need::HostSpace { offset, .. } => Some(offset..offset + self.geometry.cluster_bytes()),
            _ => None,
        };
        match (self.co_load_need(co, need), host) {
            (Err(error), Some(host)) => self.co_refused(co, Some(host), error, patience),
            (result, _) => result,
        }
    }

    /// Commits, and frees what can be freed; if that was tried before it waits for what holds it back.
    fn co_recall(&self, co: &Co<'_>, patience: &mut Patience) -> io::Result<()> {
        if patience.waited >= MAX_GRACE {
            return Err(no_space());
        }
        self.co_commit_and_free(co)?;
        if std::mem::replace(&mut patience.has_committed, true) {
            self.co_wait_for_grace(co, patience);
        }
        Ok(())
    }

    /// Commits, so that there is memory for another refcount block; if others were faster it waits a moment, too.
    fn co_make_room(&self, co: &Co<'_>, patience: &mut Patience) -> io::Result<()> {
        if patience.waited >= MAX_GRACE {
            return Err(no_space());
        }
        self.co_commit(co)?;
        if std::mem::replace(&mut patience.has_committed, true) {
            patience.co_wait(co);
        }
        Ok(())
    }

    /// Waits until nothing is left that only has to pass its grace or to be punched, or the request has waited for long
    /// enough. Waits in any case: others may have taken what was free.
    fn co_wait_for_grace(&self, co: &Co<'_>, patience: &mut Patience) {
        loop {
            patience.co_wait(co);
            self.co_pass_grace(co);
            let is_closed = |it: &Refcounts| it.has_quarantine() || it.is_punching();
            let waits = self.lock().refcounts.as_ref().is_some_and(is_closed);
            if !waits || patience.waited >= MAX_GRACE {
                return;
            }
        }
    }

    /// The host had no space for a range of the file, which was given back; `None`: for one that stays in use. Has
    /// the request try again where there may be space.
    ///
    /// # Errors
    /// The host's, if there is none anywhere.
    pub(crate) fn co_refused(
        &self,
        co: &Co<'_>,
        host: Option<Range<u64>>,
        error: io::Error,
        patience: &mut Patience,
    ) -> io::Result<()> {
        if !is_no_space(&error) {
            return Err(error);
        }
        patience.refusals += 1;
        let can_free = {
            let mut state = self.lock();
            let Some(refcounts) = &mut state.refcounts else { return Err(error) };
            let may_move = host.is_some();
            if let Some(host) = host {
                refcounts.limit_to(host.start);
            }
            // What is punched gives space to the host.
            let can_free = refcounts.can_free();
            if patience.refusals > MAX_REFUSALS || !may_move && !can_free {
                refcounts.lift_limit();
                return Err(error);
            }
            can_free
        };
        match can_free {
            true => self.co_recall(co, patience),
            false => Ok(()),
        }
    }

    /// Has a cluster in reserve for an L2 table: with space on the host, it reads as zeroes.
    ///
    /// # Errors
    /// ENOSPC; those of writing. Nothing is kept then.
    pub(crate) fn co_reserve_table(&self, co: &Co<'_>, patience: &mut Patience) -> io::Result<()> {
        loop {
            let turn = self.block_turn.lock(co);
            let taken = {
                let mut guard = self.lock();
                let state = &mut *guard;
                let Some(refcounts) = &mut state.refcounts else { return Ok(()) };
                if !state.reserve.is_empty() {
                    return Ok(());
                }
                let is_held = state.is_held;
                (!is_held).then(|| refcounts.allocate_exact(1, Metadata::ACTIVE_L2))
            };
            let offset = match taken {
                Some(Ok(offset)) => offset,
                None => {
                    drop(turn);
                    let state = self.lock();
                    if state.is_held {
                        self.co_wait_for_change(co, state);
                    }
                    return Ok(());
                }
                Some(Err(need)) => {
                    drop(turn);
                    self.co_satisfy(co, need, patience)?;
                    continue;
                }
            };
            let range = offset..offset + self.geometry.cluster_bytes();
            let mut taken = Taken { image: self, range: Some(range.clone()) };
            match self.co_have_host_space(co, range.clone()) {
                Ok(()) => {
                    taken.range = None;
                    self.lock().reserve.push(offset);
                    return Ok(());
                }
                Err(error) => {
                    drop((taken, turn));
                    self.co_refused(co, Some(range), error, patience)?;
                }
            }
        }
    }

    /// Has the space of a new refcount block, which the next commit writes.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn co_have_block_space(
        &self,
        co: &Co<'_>,
        index: u64,
        offset: u64,
    ) -> io::Result<()> {
        let _turn = self.block_turn.lock(co);
        // Another block may be made by now.
        let need = Need::HostSpace { index, offset };
        let needs = |it: &mut Refcounts| it.needs_host_space(index) && it.host_space(index) == need;
        if !self.lock().refcounts.as_mut().is_some_and(needs) {
            return Ok(());
        }
        self.co_have_host_space(co, offset..offset + self.geometry.cluster_bytes())?;
        if let Some(refcounts) = &mut self.lock().refcounts {
            refcounts.has_host_space(index);
        }
        Ok(())
    }

    /// Gives back what is in reserve, and has the space of new refcount blocks if it is there.
    pub(crate) fn co_end_reserve(&self, co: &Co<'_>) {
        loop {
            let (index, offset) = {
                let mut guard = self.lock();
                let state = &mut *guard;
                let Some(refcounts) = &mut state.refcounts else { return };
                for offset in state.reserve.drain(..) {
                    refcounts.give_back(offset..offset + self.geometry.cluster_bytes());
                }
                match refcounts.block_without_space() {
                    Some(Need::HostSpace { index, offset }) => (index, offset),
                    _ => return,
                }
            };
            if let Err(error) = self.co_have_block_space(co, index, offset) {
                tracing::debug!(%error, "a refcount block has no space, and is left out");
                return;
            }
        }
    }

    /// Has the host allocate a range of the file, which reads as zeroes then. Nothing else is written there at the
    /// same time.
    pub(crate) fn co_have_host_space(&self, co: &Co<'_>, range: Range<u64>) -> io::Result<()> {
        self.co_grow_file(co, range.end)?;
        let bytes = range.end - range.start;
        self.file.co_pwrite_zeroes(co, range.start, bytes, ZeroFlags::empty())
    }
}

/// Clusters that are given back, unless they are used.
struct Taken<'a> {
    image: &'a Image,
    range: Option<Range<u64>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(range) = self.range.take()
            && let Some(refcounts) = &mut self.image.lock().refcounts
        {
            refcounts.give_back(range);
        }
    }
}
