//! What the loop calls, shielded from panics: a phase goes on behind what has panicked.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::Inner;
use crate::panics::{PanicPolicy, Payload, report};

impl Inner {
    /// Calls `work`, and again after each panic, to do what is left. Whether there was a panic.
    #[inline]
    pub(crate) fn shield(&self, mut work: impl FnMut()) -> bool {
        let mut panicked = false;
        while let Err(payload) = catch_unwind(AssertUnwindSafe(&mut work)) {
            panicked = true;
            self.panicked(payload);
        }
        panicked
    }

    #[cold]
    fn panicked(&self, payload: Payload) {
        let culprit = self.panics.take_culprit();
        match self.panics.policy {
            PanicPolicy::Report => report(&self.shared.name, culprit, &*payload),
            PanicPolicy::Stop => resume_unwind(payload),
        }
    }
}
