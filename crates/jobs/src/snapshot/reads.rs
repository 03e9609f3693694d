//! [`Reads`]: reads of an instant, and the copies that wait for them.
//!
//! A read that takes bytes from the node enters its range in a list, under the lock under which it looks where they
//! are. A copy says under that lock that the target has them, and then waits for those in the list that overlap. A
//! count for all reads would be simpler, and have each first write wait for the longest read anywhere.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_block::DirtyBits;

use crate::copy::piece::Scratch;
use crate::copy::waiters::Waiters;

/// Where bytes of the instant are, and reads of them from the node. Any thread.
pub(super) struct Reads {
    /// Bytes that may be read: those that were to be kept, and are not given up.
    readable: DirtyBits,
    /// Bytes that the target has.
    copied: DirtyBits,
    state: Mutex<State>,
    /// Copies that wait for reads.
    waiters: Waiters,
}

#[derive(Default)]
struct State {
    /// Under way, with their numbers.
    reads: Vec<(u64, Range<u64>)>,
    next: u64,
    /// Bytes that are in memory until the target has them, by where they begin.
    held: BTreeMap<u64, (Range<u64>, Arc<Scratch>)>,
}

/// Where the first bytes of a range are, and how many are there.
pub(super) enum Found<'a> {
    Target(u64),
    /// The node, which no guest changes there until this is dropped.
    Node(u64, Read<'a>),
    /// Memory, whose bytes begin at a place.
    Memory(u64, u64, Arc<Scratch>),
}

/// A read of the node under way.
pub(super) struct Read<'a> {
    reads: &'a Reads,
    number: u64,
}

impl Reads {
    pub(super) fn new(length: u64, cluster: u64) -> io::Result<Reads> {
        Ok(Reads {
            readable: DirtyBits::new(length, cluster)?,
            copied: DirtyBits::new(length, cluster)?,
            state: Mutex::default(),
            waiters: Waiters::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes of the instant may be read.
    pub(super) fn allow(&self, range: Range<u64>) {
        self.readable.mark(range);
    }

    /// These are not read any more.
    pub(super) fn forbid(&self, range: Range<u64>) {
        let _state = self.state();
        self.readable.clear(range);
    }

    /// Finds the first bytes of a range.
    ///
    /// # Errors
    /// EACCES if they may not be read.
    pub(super) fn find(&self, range: &Range<u64>) -> io::Result<Found<'_>> {
        let mut state = self.state();
        let range = range.start..range.end.min(self.readable.length());
        if range.is_empty() || !self.readable.is_dirty(range.start) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let end = self.readable.next_clean(range.clone()).unwrap_or(range.end);
        let readable = range.start..end;
        if self.copied.is_dirty(range.start) {
            let end = self.copied.next_clean(readable).unwrap_or(end);
            return Ok(Found::Target(end - range.start));
        }
        let end = self.copied.next_dirty(readable).unwrap_or(end);
        let before = state.held.range(..=range.start).next_back();
        if let Some((start, (_, bytes))) = before.filter(|(_, (of, _))| of.end > range.start) {
            let held = state.held[start].0.end.min(end);
            return Ok(Found::Memory(held - range.start, *start, Arc::clone(bytes)));
        }
        let after = state.held.range(range.start..end).next();
        let end = after.map_or(end, |(start, _)| *start);
        let number = state.next;
        state.next += 1;
        state.reads.push((number, range.start..end));
        Ok(Found::Node(end - range.start, Read { reads: self, number }))
    }

    /// The target has these bytes: waits for reads that take them from the node.
    pub(super) fn co_publish(&self, co: &Co<'_>, range: &Range<u64>) {
        let later = {
            let state = self.state();
            self.copied.mark(range.clone());
            state.next
        };
        self.co_wait_for_reads(co, range, later);
    }

    /// These bytes are in memory: waits for reads that take them from the node.
    pub(super) fn co_hold(&self, co: &Co<'_>, range: &Range<u64>, bytes: &Arc<Scratch>) {
        let later = {
            let mut state = self.state();
            state.held.insert(range.start, (range.clone(), Arc::clone(bytes)));
            state.next
        };
        self.co_wait_for_reads(co, range, later);
    }

    /// These bytes are not in memory any more.
    pub(super) fn release(&self, range: &Range<u64>) {
        self.state().held.remove(&range.start);
    }

    /// Waits for reads of the node that began before the read number `later`.
    fn co_wait_for_reads(&self, co: &Co<'_>, range: &Range<u64>, later: u64) {
        let is_over = || {
            let overlaps = |read: &Range<u64>| read.start < range.end && range.start < read.end;
            let waits_for = |(number, read): &(u64, _)| *number < later && overlaps(read);
            !self.state().reads.iter().any(waits_for)
        };
        while !is_over() {
            self.waiters.co_wait(co, is_over);
        }
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        self.reads.state().reads.retain(|(number, _)| *number != self.number);
        self.reads.waiters.wake();
    }
}
