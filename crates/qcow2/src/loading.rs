//! [`Loading`]: of coroutines that want the same thing from a file, one gets it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::Co;
use coblk_aio::sync::{CoMutex, CoMutexGuard};

/// Things that are being loaded, by their keys. One coroutine loads a thing, and others that want it wait for
/// that, in whatever context they are; then they look for it, and the next one tries again if it is not there.
///
/// The one that loads has a `T` to do so: memory, say. What it leaves there is found by another one later, for
/// any key, or is dropped.
#[derive(Default)]
pub(crate) struct Loading<T> {
    gates: Mutex<Gates<T>>,
    /// How many gates are kept for others.
    max_spare: usize,
}

#[derive(Default)]
struct Gates<T> {
    /// There are as many as requests wait.
    by_key: BTreeMap<u64, Arc<CoMutex<T>>>,
    spare: Vec<Arc<CoMutex<T>>>,
}

/// A coroutine that wants a thing.
pub(crate) struct Load<'a, T> {
    loading: &'a Loading<T>,
    key: u64,
    /// `None` while it is given back.
    gate: Option<Arc<CoMutex<T>>>,
}

impl<T: Default> Loading<T> {
    /// At most `max_spare` values are kept while nothing is loaded.
    pub(crate) fn keeping(max_spare: usize) -> Loading<T> {
        Loading { max_spare, ..Loading::default() }
    }

    pub(crate) fn enter(&self, key: u64) -> Load<'_, T> {
        let mut gates = lock(&self.gates);
        let Gates { by_key, spare } = &mut *gates;
        let gate = by_key.entry(key).or_insert_with(|| spare.pop().unwrap_or_default());
        Load { loading: self, key, gate: Some(Arc::clone(gate)) }
    }

    /// Whether nothing is.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.gates).by_key.is_empty()
    }
}

impl<T> Load<'_, T> {
    /// Waits for its turn to look for the thing, and to load it.
    pub(crate) fn co_turn(&self, co: &Co<'_>) -> CoMutexGuard<'_, T> {
        self.gate.as_ref().expect("given back when it is dropped").lock(co)
    }
}

impl<T> Drop for Load<'_, T> {
    fn drop(&mut self) {
        let mut gates = lock(&self.loading.gates);
        // Under the lock: the last that wants the thing leaves one reference, the table's.
        drop(self.gate.take());
        let is_last = |gate: &Arc<CoMutex<T>>| Arc::strong_count(gate) == 1;
        if gates.by_key.get(&self.key).is_some_and(is_last)
            && let Some(gate) = gates.by_key.remove(&self.key)
            && gates.spare.len() < self.loading.max_spare
        {
            gates.spare.push(gate);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use coblk_aio::AioContext;

    use super::*;

    #[test]
    fn memory_is_kept_for_others_as_far_as_that_goes() {
        let ctx = AioContext::for_test().unwrap();
        let loading = Loading::<Vec<u8>>::keeping(2);
        ctx.run(|co| {
            let loads = [5, 6, 7].map(|key| loading.enter(key));
            for load in &loads {
                load.co_turn(co).resize(100, 1);
            }
            // A key that others want keeps its memory.
            let again = loading.enter(5);
            let [first, ..] = loads;
            drop(first);
            assert_eq!((again.co_turn(co).len(), loading.is_empty()), (100, false));
            drop(again);
        });
        let found = || ctx.run(|co| [1, 2, 3].map(|key| loading.enter(key).co_turn(co).len()));
        // One after the other has the same memory.
        assert_eq!((found(), loading.is_empty()), ([100; 3], true));
        let all = [1, 2, 3].map(|key| loading.enter(key));
        let lens = ctx.run(|co| all.iter().map(|load| load.co_turn(co).len()).sum::<usize>());
        assert_eq!(lens, 200);
    }
}
