//! [`Queue`]: runs that a walker has found, given out in pieces.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coblk::{Co, CoWaker};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// Runs that the walker is ahead of the workers.
const MAX_RUNS: usize = 64;

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run<K> {
    /// Their offset.
    pub(crate) start: u64,
    /// Their number.
    pub(crate) bytes: u64,
    /// Their kind.
    pub(crate) kind: K,
}

/// A part of a run, for one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<K> {
    /// Pieces are numbered in the order of their offsets.
    pub(crate) number: u64,
    /// What it is.
    pub(crate) run: Run<K>,
}

/// Runs on their way from the walker to the workers. Any thread.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    /// Most pieces that are given out at a time.
    max_pieces: usize,
    /// Most bytes of a piece of a kind. A piece ends at a multiple of it.
    max_bytes: fn(K) -> u64,
    interrupt: Interrupt,
}

struct State<K> {
    runs: VecDeque<Run<K>>,
    /// The walker has come to its end.
    is_complete: bool,
    next_number: u64,
    given_out: usize,
    walker: Option<CoWaker>,
    workers: Vec<CoWaker>,
    failure: Option<Failure>,
    is_stopped: bool,
}

impl<K: Clone + Copy + PartialEq> Queue<K> {
    /// An empty queue.
    pub(crate) fn new(
        max_pieces: usize,
        max_bytes: fn(K) -> u64,
        interrupt: Interrupt,
    ) -> Queue<K> {
        let state = State {
            runs: VecDeque::new(),
            is_complete: false,
            next_number: 0,
            given_out: 0,
            walker: None,
            workers: Vec::new(),
            failure: None,
            is_stopped: false,
        };
        Queue { state: state.into(), max_pieces, max_bytes, interrupt }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a run behind the last one; waits while there are many. False if the work has been stopped.
    pub(crate) fn co_push(&self, co: &Co<'_>, run: Run<K>) -> bool {
        if run.bytes == 0 {
            return !self.is_stopped();
        }
        loop {
            let mut state = self.lock();
            if state.is_stopped {
                return false;
            }
            if state.runs.len() < MAX_RUNS {
                state.push(run);
                let workers = mem::take(&mut state.workers);
                drop(state);
                workers.into_iter().for_each(CoWaker::wake);
                return true;
            }
            co.suspend_for("room for a run", move |waker| state.walker = Some(waker));
        }
    }

    /// There are no more runs.
    pub(crate) fn complete(&self) {
        let mut state = self.lock();
        state.is_complete = true;
        let workers = mem::take(&mut state.workers);
        drop(state);
        workers.into_iter().for_each(CoWaker::wake);
    }

    /// Takes the next piece; waits for it. `None` if there is none any more.
    pub(crate) fn co_take(&self, co: &Co<'_>) -> Option<Piece<K>> {
        loop {
            self.look_for_interrupt();
            let mut state = self.lock();
            if state.is_stopped {
                return None;
            }
            if state.given_out < self.max_pieces
                && let Some(piece) = state.take(self.max_bytes)
            {
                let walker = state.walker.take();
                drop(state);
                walker.into_iter().for_each(CoWaker::wake);
                return Some(piece);
            }
            if state.is_complete && state.runs.is_empty() {
                return None;
            }
            co.suspend_for("a piece of work", move |waker| state.workers.push(waker));
        }
    }

    /// A piece has been dealt with: another one may be given out.
    pub(crate) fn give_back(&self) {
        let mut state = self.lock();
        state.given_out -= 1;
        let worker = state.workers.pop();
        drop(state);
        worker.into_iter().for_each(CoWaker::wake);
    }

    /// Stops the work. The first failure is the one that counts.
    pub(crate) fn fail(&self, failure: Failure) {
        self.stop(Some(failure));
    }

    /// Stops the work, if there was a signal.
    fn look_for_interrupt(&self) {
        if self.interrupt.is_told() {
            self.stop(Some(Failure::new("interrupted by a signal")));
        }
    }

    fn stop(&self, failure: Option<Failure>) {
        let mut state = self.lock();
        state.is_stopped = true;
        if state.failure.is_none() {
            state.failure = failure;
        }
        let mut wakers = mem::take(&mut state.workers);
        wakers.extend(state.walker.take());
        drop(state);
        wakers.into_iter().for_each(CoWaker::wake);
    }

    /// Stops the work: what was found will do.
    pub(crate) fn enough(&self) {
        self.stop(None);
    }

    /// Whether the work has been stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.look_for_interrupt();
        self.lock().is_stopped
    }

    /// Why the work was stopped.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }
}

impl<K: Clone + Copy + PartialEq> State<K> {
    fn push(&mut self, run: Run<K>) {
        if let Some(last) = self.runs.back_mut()
            && last.kind == run.kind
            && last.start + last.bytes == run.start
        {
            last.bytes += run.bytes;
            return;
        }
        self.runs.push_back(run);
    }

    fn take(&mut self, max_bytes: fn(K) -> u64) -> Option<Piece<K>> {
        let run = self.runs.front_mut()?;
        let most = max_bytes(run.kind);
        let bytes = (most - run.start % most).min(run.bytes);
        let piece = Run { bytes, ..*run };
        run.start += bytes;
        run.bytes -= bytes;
        if run.bytes == 0 {
            self.runs.pop_front();
        }
        self.given_out += 1;
        self.next_number += 1;
        Some(Piece { number: self.next_number - 1, run: piece })
    }
}
