//! [`Wanted`]: whether a requester still waits for what a coroutine does.

use std::cell::Cell;
use std::rc::Rc;

use super::Co;

/// Says whether a requester is still there: a client, a device. A handle: clones are the same. Home thread.
///
/// Work that goes on for long in pieces asks [`Co::is_wanted`] before each, and ends with ECANCELED if it is
/// not: a request may be for hours of writing, of which its requester, and a drain, see nothing.
#[derive(Clone, Debug)]
pub struct Wanted(Rc<Cell<bool>>);

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted(Rc::new(Cell::new(true)))
    }
}

impl Wanted {
    /// One that is still there.
    pub fn new() -> Wanted {
        Wanted::default()
    }

    /// It is gone. What is in the middle of a piece ends behind it.
    pub fn give_up(&self) {
        self.0.set(false);
    }
}

/// Restores the requester that the coroutine worked for before.
struct Restore<'a> {
    co: &'a Co<'a>,
    before: Option<Wanted>,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.co.task().wanted.replace(self.before.take());
    }
}

impl Co<'_> {
    /// Runs `work` for a requester that may go meanwhile.
    pub fn while_wanted<R>(&self, wanted: &Wanted, work: impl FnOnce() -> R) -> R {
        let before = self.task().wanted.replace(Some(wanted.clone()));
        let _restore = Restore { co: self, before };
        work()
    }

    /// Whether what this coroutine does is still wanted. True if no requester was given.
    pub fn is_wanted(&self) -> bool {
        self.task().wanted.borrow().as_ref().is_none_or(|wanted| wanted.0.get())
    }
}
