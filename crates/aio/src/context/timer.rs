//! Timers: callbacks at a deadline, in nanoseconds of the context's clock.
//!
//! All of this belongs to the home thread, so arming a timer never has to wake the loop: it is
//! awake, running the code that arms.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use slab::Slab;

use super::AioContext;
use super::clock::Clock;
use crate::panics::{Culprit, drop_reporting};

type Callback = Rc<dyn Fn(&AioContext)>;

/// What a timer's handle and the list share.
struct Entry {
    key: Cell<usize>,
    callback: RefCell<Option<Callback>>,
    deadline_ns: Cell<i64>,
    /// Which arming is in force; 0 when disarmed. An item in the heap with another number is
    /// stale and skipped.
    armed: Cell<u64>,
}

/// One arming in the heap: by deadline, then by age, so equal deadlines fire FIFO.
struct Item {
    deadline_ns: i64,
    number: u64,
    entry: Weak<Entry>,
}

impl Item {
    fn key(&self) -> Reverse<(i64, u64)> {
        Reverse((self.deadline_ns, self.number))
    }

    fn live(&self) -> Option<Rc<Entry>> {
        self.entry.upgrade().filter(|entry| entry.armed.get() == self.number)
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Item) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Item) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// The armed timers of one context.
pub(crate) struct TimerList {
    clock: Clock,
    heap: RefCell<BinaryHeap<Item>>,
    /// All timers that there are.
    live: RefCell<Slab<Weak<Entry>>>,
    closed: Cell<bool>,
    armings: Cell<u64>,
    /// Stale items in the heap, which is rebuilt when they are the majority.
    stale: Cell<usize>,
    /// The instant of the pass that runs callbacks now. What they arm is due after it, so a timer
    /// that arms itself for "now" fires once a poll and does not hold the loop.
    pass_ns: Cell<i64>,
}

impl TimerList {
    pub(crate) fn new(clock: Clock) -> TimerList {
        TimerList {
            clock,
            heap: RefCell::new(BinaryHeap::new()),
            live: RefCell::new(Slab::new()),
            closed: Cell::new(false),
            armings: Cell::new(0),
            stale: Cell::new(0),
            pass_ns: Cell::new(-1),
        }
    }

    pub(crate) fn now_ns(&self) -> i64 {
        self.clock.now_ns()
    }

    /// Time until the earliest timer is due: zero if it is overdue, `None` if none is armed.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let left = self.next_deadline_ns()?.saturating_sub(self.now_ns());
        Some(Duration::from_nanos(u64::try_from(left).unwrap_or(0)))
    }

    /// When the earliest timer is due.
    pub(crate) fn next_deadline_ns(&self) -> Option<i64> {
        let mut heap = self.heap.borrow_mut();
        loop {
            let first = heap.peek()?;
            if first.live().is_some() {
                return Some(first.deadline_ns);
            }
            heap.pop();
            self.stale.set(self.stale.get().saturating_sub(1));
        }
    }

    /// Runs the callbacks of all timers that are due now. What they arm runs in a later poll.
    pub(crate) fn run_due(&self, ctx: &AioContext) -> bool {
        if self.heap.borrow().is_empty() {
            return false;
        }
        let now_ns = self.now_ns();
        self.pass_ns.set(now_ns);
        let mut progress = false;
        let panicked = ctx.inner().shield(|| progress |= self.run_due_at(ctx, now_ns));
        progress | panicked
    }

    fn run_due_at(&self, ctx: &AioContext, now_ns: i64) -> bool {
        let mut progress = false;
        while let Some(entry) = self.pop_due(now_ns) {
            // Removed before its callback, which may arm it again (contract: C50).
            entry.armed.set(0);
            let callback = entry.callback.borrow().clone();
            if let Some(callback) = callback {
                ctx.inner().panics.blaming(Culprit::Other("a timer"), || callback(ctx));
                progress = true;
            }
        }
        progress
    }

    fn pop_due(&self, now_ns: i64) -> Option<Rc<Entry>> {
        let mut heap = self.heap.borrow_mut();
        loop {
            let first = heap.peek()?;
            match first.live() {
                None => {
                    heap.pop();
                    self.stale.set(self.stale.get().saturating_sub(1));
                }
                Some(_) if first.deadline_ns > now_ns => return None,
                Some(entry) => {
                    heap.pop();
                    return Some(entry);
                }
            }
        }
    }

    /// The context ends: no timer fires any more, and none keeps its callback.
    pub(crate) fn close(&self, context: &str) {
        self.closed.set(true);
        while !self.live.borrow().is_empty() {
            let live = std::mem::take(&mut *self.live.borrow_mut());
            for entry in live.iter().filter_map(|(_, entry)| entry.upgrade()) {
                entry.armed.set(0);
                drop_reporting(context, entry.callback.take());
            }
        }
        drop(self.heap.take());
    }

    fn arm(&self, entry: &Rc<Entry>, deadline_ns: i64) {
        self.disarm(entry);
        if self.closed.get() {
            return;
        }
        let deadline_ns = deadline_ns.max(self.pass_ns.get().saturating_add(1));
        let number = self.armings.get() + 1;
        self.armings.set(number);
        entry.armed.set(number);
        entry.deadline_ns.set(deadline_ns);
        let item = Item { deadline_ns, number, entry: Rc::downgrade(entry) };
        self.heap.borrow_mut().push(item);
    }

    fn disarm(&self, entry: &Entry) {
        if entry.armed.replace(0) == 0 {
            return;
        }
        self.stale.set(self.stale.get() + 1);
        let mut heap = self.heap.borrow_mut();
        if self.stale.get() > 64 && self.stale.get() > heap.len() / 2 {
            heap.retain(|item| item.live().is_some());
            self.stale.set(0);
        }
    }
}

/// Calls a callback at a deadline. Belongs to the home thread; dropping it disarms it.
///
/// The callback runs in the last phase of a poll. It may arm the timer again. It may be entered
/// again while it runs, by a poll nested in it.
#[must_use = "dropping it disarms it"]
pub struct Timer {
    entry: Rc<Entry>,
    list: Rc<TimerList>,
}

impl Timer {
    pub(crate) fn new(list: &Rc<TimerList>, callback: Callback) -> Timer {
        let entry = Rc::new(Entry {
            key: Cell::new(0),
            callback: RefCell::new(Some(callback)),
            deadline_ns: Cell::new(0),
            armed: Cell::new(0),
        });
        entry.key.set(list.live.borrow_mut().insert(Rc::downgrade(&entry)));
        Timer { entry, list: Rc::clone(list) }
    }

    /// Arms it for an instant of the context's clock ([`AioContext::now_ns`]); a deadline in the
    /// past, also a negative one, means now (contract: C51). Replaces an earlier arming. Without
    /// effect if the context is gone.
    pub fn arm_at_ns(&self, deadline_ns: i64) {
        self.list.arm(&self.entry, deadline_ns);
    }

    /// Arms it to fire after `delay`. Replaces an earlier arming.
    pub fn arm_after(&self, delay: Duration) {
        let delay_ns = i64::try_from(delay.as_nanos()).unwrap_or(i64::MAX);
        self.arm_at_ns(self.list.now_ns().saturating_add(delay_ns));
    }

    /// Arms it like [`arm_at_ns`](Self::arm_at_ns), unless it is armed for an earlier deadline
    /// already (contract: C52).
    pub fn anticipate_at_ns(&self, deadline_ns: i64) {
        if !self.is_armed() || deadline_ns < self.entry.deadline_ns.get() {
            self.arm_at_ns(deadline_ns);
        }
    }

    /// Disarms it.
    pub fn cancel(&self) {
        self.list.disarm(&self.entry);
    }

    /// Whether it is armed and has not fired.
    pub fn is_armed(&self) -> bool {
        self.entry.armed.get() != 0
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
        if !self.list.closed.get() {
            self.list.live.borrow_mut().remove(self.entry.key.get());
        }
        // Taken first and dropped after the borrow: its destructors may come back here.
        let callback = self.entry.callback.borrow_mut().take();
        drop(callback);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("is_armed", &self.is_armed()).finish_non_exhaustive()
    }
}
