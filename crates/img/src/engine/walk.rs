//! The walk along the status of images, ahead of the workers.

use std::ops::Range;
use std::sync::Arc;

use coblk::block::Extent;
use coblk::{BackendOptions, BlockBackend, BlockNode, Co};

use super::Kind;
use super::queue::{Queue, Run};
use crate::failure::{Failure, words};
use crate::progress::Progress;

/// Most bytes that are asked about at once.
const MAX_ASKED: u64 = 1 << 30;

/// An image whose bytes are a part of what is copied.
#[derive(Clone)]
pub(crate) struct Part {
    /// The image.
    pub(crate) node: Arc<BlockNode>,
    /// How it is used.
    pub(crate) options: BackendOptions,
    /// What is not in the layers above this backing file is left out.
    pub(crate) base: Option<Arc<BlockNode>>,
    /// Where its bytes are in the whole.
    pub(crate) place: Range<u64>,
    /// Where they begin in the image.
    pub(crate) from: u64,
}

impl Part {
    /// Where the image has what is at an offset of the whole.
    pub(crate) fn offset(&self, at: u64) -> u64 {
        at - self.place.start + self.from
    }
}

/// Walks along parts, and gives the runs to a queue. Whole units, but for the last one: a unit of which a part
/// is data is data.
pub(crate) struct Walk<'a> {
    pub(crate) queue: &'a Queue<Kind>,
    pub(crate) progress: &'a Progress,
    /// Zeroes are in the target already.
    pub(crate) skips_zeroes: bool,
    /// Bytes of a unit.
    pub(crate) unit: u64,
    pub(crate) end: u64,
    /// Up to where runs were given away.
    pub(crate) given_to: u64,
}

impl Walk<'_> {
    /// Walks along one part, until the queue is stopped.
    ///
    /// # Errors
    /// If its status cannot be found.
    pub(crate) fn co_walk(
        &mut self,
        co: &Co<'_>,
        backend: &BlockBackend,
        part: &Part,
    ) -> Result<(), Failure> {
        let mut at = part.place.start;
        while at < part.place.end {
            let bytes = MAX_ASKED.min(part.place.end - at);
            let offset = part.offset(at);
            let found = backend.co_status_above(co, part.base.as_deref(), offset, bytes);
            let extent = found.map_err(|error| {
                let why = words(&error);
                Failure::new(format!("error while reading block status at offset {at}: {why}"))
            })?;
            let extent = extent.extent;
            let kind = kind_of(&extent, part.base.is_some());
            if !self.co_give(co, at..at + extent.bytes, kind) {
                return Ok(());
            }
            at += extent.bytes;
        }
        Ok(())
    }

    /// Gives whole units of a kind away, and as data the last one that is none. False if the work was stopped.
    fn co_give(&mut self, co: &Co<'_>, range: Range<u64>, kind: Option<Kind>) -> bool {
        let start = range.start.max(self.given_to);
        let whole_end = match range.end == self.end {
            true => range.end,
            false => range.end - range.end % self.unit,
        };
        if start < whole_end && !self.co_push(co, start..whole_end, kind) {
            return false;
        }
        let rest = start.max(whole_end)..range.end;
        if rest.is_empty() {
            return true;
        }
        let end = range.end.next_multiple_of(self.unit).min(self.end);
        self.co_push(co, rest.start..end, Some(Kind::Data))
    }

    fn co_push(&mut self, co: &Co<'_>, range: Range<u64>, kind: Option<Kind>) -> bool {
        self.given_to = range.end;
        let (start, bytes) = (range.start, range.end - range.start);
        match kind {
            Some(kind) if kind != Kind::Zero || !self.skips_zeroes => {
                self.queue.co_push(co, Run { start, bytes, kind })
            }
            _ => {
                self.progress.add(bytes);
                !self.queue.is_stopped()
            }
        }
    }
}

/// The kind of an extent; `None` if it is left to the backing file of the target.
fn kind_of(extent: &Extent, has_base: bool) -> Option<Kind> {
    match extent {
        _ if has_base && !extent.allocated => None,
        Extent { zero: true, .. } => Some(Kind::Zero),
        Extent { data: true, .. } => Some(Kind::Data),
        // Not allocated anywhere.
        _ => Some(Kind::Zero),
    }
}
