//! [`Order`]: results that begin to be used one after the other, in the order of their numbers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Results by their numbers. A worker that has one puts it here, and then uses all that are due, until the
/// next one is not there, or as many as may be are in use by others: no worker waits for its turn. Any thread.
pub(crate) struct Order<T> {
    state: Mutex<State<T>>,
    /// Most results in use at a time.
    max: usize,
}

struct State<T> {
    next: u64,
    ready: BTreeMap<u64, T>,
    /// How many are in use.
    in_use: usize,
}

impl<T> Order<T> {
    /// Number 0 is the first. At most `max` are in use at a time.
    pub(crate) fn new(max: usize) -> Order<T> {
        Order { state: State { next: 0, ready: BTreeMap::new(), in_use: 0 }.into(), max }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a result.
    pub(crate) fn put(&self, number: u64, result: T) {
        self.lock().ready.insert(number, result);
    }

    /// Takes the next result, if it is there and may be used now. [`used`](Self::used) follows.
    pub(crate) fn take(&self) -> Option<T> {
        let mut state = self.lock();
        if state.in_use >= self.max {
            return None;
        }
        let next = state.next;
        let result = state.ready.remove(&next)?;
        state.next += 1;
        state.in_use += 1;
        Some(result)
    }

    /// A result that was taken has been used.
    pub(crate) fn used(&self) {
        self.lock().in_use -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_one_by_one_in_their_order() {
        let order = Order::new(1);
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

    #[test]
    fn some_may_be_in_use_together() {
        let order = Order::new(2);
        (0..4).for_each(|number| order.put(number, number));
        assert_eq!([order.take(), order.take(), order.take()], [Some(0), Some(1), None]);
        order.used();
        assert_eq!([order.take(), order.take()], [Some(2), None]);
        order.used();
        order.used();
        assert_eq!(order.take(), Some(3));
    }
}
