//! The write threshold of a node: a listener is called once when a write ends behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A threshold that was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThresholdPassed {
    /// The threshold, in bytes.
    pub threshold: u64,
    /// How far behind it the write ends, in bytes.
    pub exceeded: u64,
}

pub(super) type Listener = Box<dyn FnOnce(ThresholdPassed) + Send>;

/// Any thread. There is a listener if, and only if, `end` is not [`NONE`].
pub(super) struct WriteThreshold {
    /// Writes may end here, and no later. Changed under the lock alone.
    end: AtomicU64,
    listener: Mutex<Option<Listener>>,
}

/// No write ends behind it.
const NONE: u64 = u64::MAX;

impl Default for WriteThreshold {
    fn default() -> WriteThreshold {
        WriteThreshold { end: AtomicU64::new(NONE), listener: Mutex::new(None) }
    }
}

impl WriteThreshold {
    pub(super) fn set(&self, end: u64, listener: Option<Listener>) {
        let mut current = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        self.end.store(if listener.is_some() { end } else { NONE }, Ordering::Relaxed);
        *current = listener;
    }

    pub(super) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Relaxed)).filter(|end| *end != NONE)
    }

    /// A write that ended at `end`, whether it succeeded or not. Without a threshold it is a load and a
    /// comparison.
    #[inline]
    pub(super) fn wrote_up_to(&self, end: u64) {
        if end > self.end.load(Ordering::Relaxed) {
            self.passed(end);
        }
    }

    #[cold]
    fn passed(&self, end: u64) {
        let mut current = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let threshold = self.end.load(Ordering::Relaxed);
        // Another write may have been first, or it has been set anew.
        if end <= threshold {
            return;
        }
        self.end.store(NONE, Ordering::Relaxed);
        let listener = current.take();
        // It may set the next one.
        drop(current);
        if let Some(listener) = listener {
            listener(ThresholdPassed { threshold, exceeded: end - threshold });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn it_is_passed_once_by_whichever_thread_is_first() {
        for _ in 0..100 {
            let threshold = WriteThreshold::default();
            let (told, passed) = channel();
            threshold.set(10, Some(Box::new(move |it| told.send(it).unwrap())));
            std::thread::scope(|scope| {
                for end in [9, 10, 11, 12] {
                    let threshold = &threshold;
                    scope.spawn(move || threshold.wrote_up_to(end));
                }
            });
            let passed: Vec<ThresholdPassed> = passed.iter().collect();
            assert_eq!(passed.len(), 1);
            assert!([1, 2].contains(&passed[0].exceeded), "{passed:?}");
            assert_eq!(threshold.end(), None);
        }
    }
}
