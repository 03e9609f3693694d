//! [`Loading`]: of coroutines that want the same thing from a file, one gets it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_aio::sync::{CoMutex, CoMutexGuard};

/// Things that are being loaded, by their keys. One coroutine loads a thing, and others that want it wait for
/// that, in whatever context they are; then they look for it, and the next one tries again if it is not there.
#[derive(Default)]
pub(crate) struct Loading(Mutex<HashMap<u64, Arc<CoMutex<()>>>>);

/// A coroutine that wants a thing.
pub(crate) struct Load<'a> {
    loading: &'a Loading,
    key: u64,
    gate: Arc<CoMutex<()>>,
}

impl Loading {
    pub(crate) fn enter(&self, key: u64) -> Load<'_> {
        let gate = Arc::clone(lock(&self.0).entry(key).or_default());
        Load { loading: self, key, gate }
    }

    /// Whether nothing is.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

impl Load<'_> {
    /// Waits for its turn to look for the thing, and to load it.
    pub(crate) fn co_turn(&self, co: &Co<'_>) -> CoMutexGuard<'_, ()> {
        self.gate.lock(co)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let mut all = lock(&self.loading.0);
        // Others are counted under the lock: ours and the table's are the last.
        if Arc::strong_count(&self.gate) == 2 {
            all.remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
