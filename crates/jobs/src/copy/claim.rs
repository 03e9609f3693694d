//! [`Claim`]: granules that one copy has for itself.

use std::ops::Range;
use std::sync::Arc;

use super::granules::Granules;
use super::guests::Guests;
use crate::rules::{Rule, holds};

/// A claim. It fails unless it ends: its granules are to be copied again then. Any thread.
pub(super) struct Claim<'a> {
    granules: &'a Arc<Granules>,
    guests: &'a Arc<Guests>,
    range: Range<u64>,
    is_copied: bool,
}

impl<'a> Claim<'a> {
    /// Claims the first granules from `from` on, `most` at most.
    pub(super) fn take(
        (granules, guests): (&'a Arc<Granules>, &'a Arc<Guests>),
        from: u64,
        most: u64,
    ) -> Option<Claim<'a>> {
        let range = granules.claim(from, most.max(1))?;
        Some(Claim { granules, guests, range, is_copied: false })
    }

    /// The granule behind its last one.
    pub(super) fn end_granule(&self) -> u64 {
        self.range.end
    }

    /// Its granules.
    pub(super) fn granules(&self) -> &Range<u64> {
        &self.range
    }

    /// Gives back what is from a granule on: that is to be copied still.
    pub(super) fn cut(&mut self, end: u64) {
        if end < self.range.end {
            self.granules.fail(end..self.range.end);
            self.range.end = end;
            self.guests.claim_ended();
        }
    }

    /// Its range of a disk of `length` bytes, in bytes.
    pub(super) fn bytes(&self, granularity: u64, length: u64) -> Range<u64> {
        self.range.start * granularity..(self.range.end * granularity).min(length)
    }

    /// It is copied.
    pub(super) fn end(mut self) {
        self.is_copied = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let range = self.range.clone();
        if self.is_copied {
            self.granules.set_copied(range.clone());
            if !holds(Rule::KeepMarks) {
                self.granules.clear(range.clone());
            }
        }
        match self.is_copied || !holds(Rule::CopyAgain) {
            true => self.granules.end(range),
            false => self.granules.fail(range),
        }
        self.guests.claim_ended();
    }
}
