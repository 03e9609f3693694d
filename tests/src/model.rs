//! [`Model`]: what a device should hold, for all contexts that use it.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk::{Co, CoWaker};

/// What the device should hold, and which operations are under way.
pub struct Model {
    state: Mutex<State>,
}

struct State {
    content: Vec<u8>,
    /// After a discard, or a write that failed, a byte may be anything until it is written again.
    known: Vec<bool>,
    /// Ranges in use, and whether to change them.
    locks: Vec<(u64, Range<usize>, bool)>,
    next_lock: u64,
    /// Coroutines whose ranges were taken.
    waiting: Vec<CoWaker>,
}

impl State {
    fn try_lock(&mut self, range: &Range<usize>, change: bool) -> Option<u64> {
        let overlaps = |other: &Range<usize>| other.start < range.end && range.start < other.end;
        let taken = |(_, other, exclusive): &(u64, Range<usize>, bool)| {
            overlaps(other) && (change || *exclusive)
        };
        if self.locks.iter().any(taken) {
            return None;
        }
        self.next_lock += 1;
        self.locks.push((self.next_lock, range.clone(), change));
        Some(self.next_lock)
    }
}

impl Model {
    /// A device of zeroes.
    pub fn new(bytes: usize) -> Model {
        Model::with(vec![0; bytes], vec![true; bytes])
    }

    /// A device with this content, of which these bytes are known.
    pub fn with(content: Vec<u8>, known: Vec<bool>) -> Model {
        let state = State { content, known, locks: vec![], next_lock: 0, waiting: vec![] };
        Model { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other lock of the range conflicts with this one, and takes it.
    pub fn lock(&self, co: &Co<'_>, range: &Range<usize>, change: bool) -> u64 {
        loop {
            let mut state = self.state();
            if let Some(lock) = state.try_lock(range, change) {
                return lock;
            }
            // The waker is there before another thread can unlock.
            co.suspend_with(|waker| {
                state.waiting.push(waker);
                drop(state);
            });
        }
    }

    /// Ends a lock.
    pub fn unlock(&self, lock: u64) {
        let mut state = self.state();
        state.locks.retain(|(number, _, _)| *number != lock);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(CoWaker::wake);
    }

    /// The range now holds this, or who knows what.
    pub fn set(&self, range: Range<usize>, content: Option<&[u8]>) {
        let mut state = self.state();
        state.known[range.clone()].fill(content.is_some());
        if let Some(content) = content {
            state.content[range].copy_from_slice(content);
        }
    }

    /// What was read from the range is right.
    #[track_caller]
    pub fn check(&self, what: &str, range: Range<usize>, read: &[u8]) {
        let state = self.state();
        for (at, byte) in range.zip(read) {
            let right = !state.known[at] || state.content[at] == *byte;
            assert!(right, "{what}: byte {at} is {byte:#x}, not {:#x}", state.content[at]);
        }
    }

    /// What it should hold, and which bytes of that are known.
    pub fn content(&self) -> (Vec<u8>, Vec<bool>) {
        let state = self.state();
        (state.content.clone(), state.known.clone())
    }
}
