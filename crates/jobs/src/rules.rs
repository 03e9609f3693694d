//! Steps that keep jobs from losing writes. A test build can leave one out: its tests show that each is needed.

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // Without the feature those that are asked for are all.
pub enum Rule {
    /// A mark is set after the write has returned.
    MarkAfterWrite,
    /// Marks that come while a granule is copied stay.
    KeepMarks,
    /// What was not copied is to be copied again.
    CopyAgain,
    /// Nothing is marked in the drained section in which users turn to the copy.
    EqualAtPivot,
    /// The copy is durable before users turn to it.
    DurableAtPivot,
    /// A guest that writes to both nodes claims the granules.
    GuestsClaim,
    /// A guest's write that has failed at the target is marked.
    MarkFailedAtTarget,
    /// A guest's write to both nodes that has failed at the source is marked.
    MarkFailedAtSource,
    /// A granule that is to be copied, and that a guest covers in part, is left to the copier.
    LeaveParts,
    /// A guest's write waits for copies of others that are under way where it writes.
    GuestsWait,
    /// What cannot be copied any more fails the backup.
    LostFails,
    /// A backup is durable before it ends.
    DurableAtEnd,
    /// A guest's copy ends before what is in the spill.
    SpilledStays,
    /// What a stream has left out keeps the chain.
    LeftOutFails,
    /// What is copied is durable before a header leads past it.
    DurableBeforeHeaders,
}

#[cfg(feature = "test-rules")]
thread_local! {
    static LEFT_OUT: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Has jobs of this thread leave out a step from now on, or none.
#[cfg(feature = "test-rules")]
pub fn leave_out(rule: Option<Rule>) {
    LEFT_OUT.set(rule);
}

/// Whether a step is to be done.
#[cfg(feature = "test-rules")]
#[inline]
pub(crate) fn holds(rule: Rule) -> bool {
    LEFT_OUT.get() != Some(rule)
}

/// Whether a step is to be done: always.
#[cfg(not(feature = "test-rules"))]
#[inline]
pub(crate) fn holds(_: Rule) -> bool {
    true
}
