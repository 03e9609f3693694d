//! The contexts of a thread, for what has to be done while it waits for another thread.
//!
//! A thread that unwinds a coroutine waits until what the coroutine has lent is given back; by a call that
//! runs in another context, perhaps ([`Co::call_at`](crate::Co::call_at)). That context's thread may wait
//! likewise, for this one. So calls are taken back also by a thread that waits.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::link::ContextLink;
use crate::co::serve_cancels;
use crate::home::HANDOVER_PAUSE;
use crate::thread_pool::owed;

thread_local! {
    static HERE: RefCell<Vec<Rc<ContextLink>>> = const { RefCell::new(Vec::new()) };
}

/// The longest that one wait takes between two looks.
const MAX_PAUSE: Duration = Duration::from_millis(1);

pub(super) fn register(link: &Rc<ContextLink>) {
    HERE.with_borrow_mut(|here| here.push(Rc::clone(link)));
}

pub(super) fn unregister(link: &Rc<ContextLink>) {
    // At the end of a thread the list may be gone before its contexts.
    let _ = HERE.try_with(|here| here.borrow_mut().retain(|it| !Rc::ptr_eq(it, link)));
}

/// Waits for another thread, and meanwhile takes back the calls to contexts of this one that others want
/// back.
pub(crate) fn wait_until(mut is_done: impl FnMut() -> bool) {
    let mut pause = HANDOVER_PAUSE;
    while !is_done() {
        let here = HERE.try_with(|here| here.borrow().clone()).unwrap_or_default();
        here.iter().for_each(|link| link.with(serve_cancels));
        if is_done() {
            return;
        }
        // What is waited for may take a job; and what has been unwound may have submitted some.
        owed::pay();
        std::thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
