//! [`ContextLink`]: how what is registered with a context reaches it.

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use super::{AioContext, Inner};

/// The way from a registration to its context, for as long as there is one. Home thread only.
pub(crate) struct ContextLink {
    pub(super) inner: Cell<Option<NonNull<Inner>>>,
    /// Calls of [`with`](Self::with) that have not returned.
    pub(super) users: Cell<usize>,
}

impl ContextLink {
    pub(super) fn new() -> Rc<ContextLink> {
        Rc::new(ContextLink { inner: Cell::new(None), users: Cell::new(0) })
    }

    /// Calls `code` with the context, if it is still there.
    pub(crate) fn with(&self, code: impl FnOnce(&AioContext)) {
        struct Leave<'a>(&'a Cell<usize>);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        let Some(inner) = self.inner.get() else { return };
        self.users.set(self.users.get() + 1);
        let _leave = Leave(&self.users);
        // SAFETY: the pointer is taken out before the context is freed, and while a call is in
        // here, as counted, the context is not freed but leaked.
        code(unsafe { inner.as_ref() }.me());
    }
}
