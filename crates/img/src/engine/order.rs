//! [`Order`]: results that are used one after the other, in the order of their numbers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Results by their numbers. A worker that has one puts it here, and then uses all that are due, until the
/// next one is not there, or another worker does so: no worker waits for its turn. Any thread.
pub(crate) struct Order<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    next: u64,
    ready: BTreeMap<u64, T>,
    /// A worker uses the one before the next.
    is_busy: bool,
}

impl<T> Order<T> {
    /// Number 0 is the first.
    pub(crate) fn new() -> Order<T> {
        Order { state: State { next: 0, ready: BTreeMap::new(), is_busy: false }.into() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a result.
    pub(crate) fn put(&self, number: u64, result: T) {
        self.lock().ready.insert(number, result);
    }

    /// Takes the next result, if it is there and no other is in use. [`used`](Self::used) follows.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        if state.is_busy {
            return None;
        }
        let next = state.next;
        let result = state.ready.remove(&next)?;
        state.next += 1;
        state.is_busy = true;
        Some(result)
    }

    /// The result that was taken has been used.
    pub(crate) fn used(&self) {
        self.lock().is_busy = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_one_by_one_in_their_order() {
        let order = Order::new();
        order.put(1, 'b');
        assert_eq!(order.take(), None);
        order.put(0, 'a');
        assert_eq!(order.take(), Some('a'));
        assert_eq!(order.take(), None, "'a' is in use");
        order.used();
        assert_eq!(order.take(), Some('b'));
        order.used();
        assert_eq!(order.take(), None);
    }
}
