//! [`Load`]: a miss, which waits for its own slice alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_aio::sync::{CoMutex, CoMutexGuard};

/// The slices that are being read, each with its gate.
pub(super) type Loading = HashMap<u64, Arc<CoMutex<()>>>;

/// A coroutine that wants a slice that is not there.
pub(crate) struct Load<'a> {
    loading: &'a Mutex<Loading>,
    slice: u64,
    gate: Arc<CoMutex<()>>,
}

impl Load<'_> {
    pub(super) fn enter(loading: &Mutex<Loading>, slice: u64) -> Load<'_> {
        let gate = Arc::clone(lock(loading).entry(slice).or_default());
        Load { loading, slice, gate }
    }

    /// Waits for its turn. The slice may be there by then.
    pub(crate) fn co_turn(&self, co: &Co<'_>) -> CoMutexGuard<'_, ()> {
        self.gate.lock(co)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut loading = lock(self.loading);
        // Others are counted under the lock: ours and the table's are the last.
        if Arc::strong_count(&self.gate) == 2 {
            loading.remove(&self.slice);
        }
    }
}

pub(super) fn lock(loading: &Mutex<Loading>) -> MutexGuard<'_, Loading> {
    loading.lock().unwrap_or_else(PoisonError::into_inner)
}
