//! The control block: what a handle points to.
//!
//! One block and one stack belong together from the day they are allocated until they are freed; the pool keeps the
//! two as one. All fields are cells: a block is only ever touched by the thread its coroutine belongs to, and no
//! reference into a cell outlives a statement.

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::io;
use std::ptr::{self, NonNull};

use crate::coroutine::CoroutineState;
use crate::entry::{self, EntryVtable, SLOT_SIZE};
use crate::stack::Stack;
use crate::suspender::Suspender;
use crate::switch::Context;
use crate::wake_queue::WakeQueue;

/// Everything about one coroutine that is not on its stack.
pub(crate) struct Control {
    // Touched by every resume and suspend.
    state: Cell<CoroutineState>,
    unwinding: Cell<bool>,
    references: Cell<u32>,
    scheduled_by: Cell<Option<&'static str>>,
    woken: WakeQueue,
    context: OnceCell<Context>,

    // Touched once a run.
    panic: Cell<Option<Box<dyn Any + Send>>>,
    entry: Cell<Option<&'static EntryVtable>>,
    slot: NonNull<u8>,
    name: Cell<&'static str>,
    id: Cell<u64>,

    /// The next block in the one list that this one is in: a wake queue or the pool.
    next: Cell<*const Control>,
    #[expect(dead_code, reason = "frees the stack when the block is dropped")]
    stack: Stack,
}

impl Control {
    /// A block with a stack of its own, that runs nothing yet. Freed with [`Control::free`].
    pub(crate) fn allocate() -> io::Result<NonNull<Control>> {
        let stack = Stack::new()?;
        let range = stack.range(SLOT_SIZE);
        let control = Box::new(Control {
            state: Cell::new(CoroutineState::Terminated),
            unwinding: Cell::new(false),
            references: Cell::new(0),
            scheduled_by: Cell::new(None),
            woken: WakeQueue::new(),
            context: OnceCell::new(),
            panic: Cell::new(None),
            entry: Cell::new(None),
            slot: stack.top(SLOT_SIZE),
            name: Cell::new(""),
            id: Cell::new(0),
            next: Cell::new(ptr::null()),
            stack,
        });
        let control = NonNull::from(Box::leak(control));
        // SAFETY: the stack is new and lives as long as the block; the trampoline asks for a block, and neither returns
        // nor unwinds.
        let context = unsafe { Context::new(&range, entry::trampoline, control.as_ptr()) };
        // SAFETY: just leaked, so valid.
        let _ = unsafe { control.as_ref() }.context.set(context);
        Ok(control)
    }

    /// Gives back a block and its stack.
    ///
    /// # Safety
    /// `control` came from [`Control::allocate`], nobody points to it any more, and its coroutine has terminated, so
    /// that no frame but the trampoline's is on its stack.
    #[expect(dead_code, reason = "the pool does not shrink yet")]
    pub(crate) unsafe fn free(control: NonNull<Control>) {
        // SAFETY: by the caller; `allocate` leaked a box.
        drop(unsafe { Box::from_raw(control.as_ptr()) });
    }

    /// Makes a terminated block into a coroutine that has been created, with one reference.
    ///
    /// # Safety
    /// What `entry` borrows outlives its run.
    #[inline]
    pub(crate) unsafe fn prepare<F>(&self, name: &'static str, id: u64, entry: F)
    where
        F: FnOnce(&Suspender),
    {
        debug_assert_eq!(self.state.get(), CoroutineState::Terminated);
        // SAFETY: the slot is at the top of the stack, has this size and alignment, and is empty, for the closure of
        // the last run was moved out of it or dropped.
        let vtable = unsafe { entry::store(self.slot, entry) };
        self.entry.set(Some(vtable));
        self.name.set(name);
        self.id.set(id);
        self.references.set(1);
        self.state.set(CoroutineState::Created);
    }

    #[inline]
    pub(crate) fn context(&self) -> &Context {
        // SAFETY: `allocate` sets it before anybody else sees the block.
        unsafe { self.context.get().unwrap_unchecked() }
    }

    #[inline]
    pub(crate) fn entry(&self) -> &'static EntryVtable {
        // SAFETY: `prepare` sets it; there is nothing to run or drop before.
        unsafe { self.entry.get().unwrap_unchecked() }
    }

    #[inline]
    pub(crate) fn slot(&self) -> NonNull<u8> {
        self.slot
    }

    #[inline]
    pub(crate) fn state(&self) -> CoroutineState {
        self.state.get()
    }

    #[inline]
    pub(crate) fn set_state(&self, state: CoroutineState) {
        self.state.set(state);
    }

    /// Whether a suspended function that is resumed must throw instead of going on.
    #[inline]
    pub(crate) fn unwinding(&self) -> bool {
        self.unwinding.get()
    }

    pub(crate) fn set_unwinding(&self, unwinding: bool) {
        self.unwinding.set(unwinding);
    }

    #[inline]
    pub(crate) fn references(&self) -> u32 {
        self.references.get()
    }

    #[inline]
    pub(crate) fn set_references(&self, references: u32) {
        self.references.set(references);
    }

    #[inline]
    pub(crate) fn scheduled_by(&self) -> Option<&'static str> {
        self.scheduled_by.get()
    }

    #[inline]
    pub(crate) fn set_scheduled_by(&self, by: Option<&'static str>) {
        self.scheduled_by.set(by);
    }

    /// The coroutines that this one has woken since it was resumed.
    #[inline]
    pub(crate) fn woken(&self) -> &WakeQueue {
        &self.woken
    }

    #[inline]
    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic.take()
    }

    pub(crate) fn set_panic(&self, payload: Box<dyn Any + Send>) {
        self.panic.set(Some(payload));
    }

    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        self.name.get()
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id.get()
    }

    #[inline]
    pub(crate) fn next(&self) -> *const Control {
        self.next.get()
    }

    #[inline]
    pub(crate) fn set_next(&self, next: *const Control) {
        self.next.set(next);
    }
}
