//! The first scan: what is to be copied before anything was written.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::{BlockBackend, BlockNode};

use super::SyncMode;
use super::top::Marks;
use crate::copy::target::Target;
use crate::{Job, JobFailure};

/// After that long without a suspension others have a turn.
const TURN_NS: i64 = 10_000_000;

/// What reads as zeroes in the source is left out if all of the target does, too.
pub(super) struct Scan<'a> {
    pub(super) job: &'a Rc<Job>,
    pub(super) source: &'a BlockBackend,
    pub(super) target: &'a Rc<Target>,
    pub(super) marks: &'a Marks,
}

impl Scan<'_> {
    /// Marks what is to be copied. A step of the job's main coroutine; is paused with the job.
    ///
    /// # Errors
    /// If the job is cancelled, or the source cannot say what it has.
    pub(super) fn co_mark(&self, co: &Co<'_>, sync: SyncMode) -> Result<(), JobFailure> {
        let backing = self.source.node().and_then(|node| backing_of(&node));
        let backing = if self.marks.is_commit { Some(self.target.node().clone()) } else { backing };
        let sync = if self.marks.is_commit { SyncMode::Top } else { sync };
        match (sync, backing) {
            (SyncMode::None, _) => Ok(()),
            (SyncMode::Top, Some(base)) => self.co_each(co, |co, offset, bytes| {
                let (source, is_included) = (self.source, false);
                let (is_allocated, bytes) =
                    source.co_is_allocated_above(co, &base, is_included, offset, bytes)?;
                Ok((is_allocated, bytes))
            }),
            _ if self.co_target_is_zero(co)? => self.co_each(co, |co, offset, bytes| {
                let extent = self.source.co_block_status(co, offset, bytes)?;
                Ok((!extent.zero, extent.bytes))
            }),
            _ => {
                self.marks.mark(&(0..self.marks.length));
                Ok(())
            }
        }
    }

    /// Marks the parts of which `ask` says so; it also says how many bytes that is about.
    fn co_each(
        &self,
        co: &Co<'_>,
        ask: impl Fn(&Co<'_>, u64, u64) -> io::Result<(bool, u64)>,
    ) -> Result<(), JobFailure> {
        let (mut at, mut turn_ns) = (0, co.context().now_ns());
        while at < self.marks.length {
            let left = self.marks.length - at;
            let (is_marked, bytes) = ask(co, at, left)?;
            let end = at + bytes.clamp(1, left);
            if is_marked {
                self.marks.mark(&(at..end));
            }
            at = end;
            if co.context().now_ns() - turn_ns > TURN_NS {
                co.yield_now();
                turn_ns = co.context().now_ns();
            }
            self.job.co_pause_point(co)?;
        }
        Ok(())
    }

    /// Whether all of the target is known to read as zeroes.
    fn co_target_is_zero(&self, co: &Co<'_>) -> Result<bool, JobFailure> {
        let length = self.marks.length;
        self.target.co_apart(co, self.job, move |co, target| {
            let mut at = 0;
            while at < length {
                match target.co_block_status(co, at, length - at) {
                    Ok(extent) if extent.zero && extent.bytes > 0 => at += extent.bytes,
                    // One that cannot tell is written.
                    _ => return false,
                }
            }
            true
        })
    }
}

/// The first backing file of a node, below its filters.
pub(crate) fn backing_of(node: &Arc<BlockNode>) -> Option<Arc<BlockNode>> {
    let mut node = Arc::clone(node);
    loop {
        let children = node.children();
        let is_filter = node.driver().filtered().is_some();
        let next = children.into_iter().find(|(name, _)| is_filter || name == "backing");
        let (_, next) = next?;
        if !is_filter {
            return Some(next);
        }
        node = next;
    }
}
