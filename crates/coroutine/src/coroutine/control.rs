//! The control block: what a handle points to.
//!
//! It lies at the top of its coroutine's stack, so a suspended coroutine is one page of memory and
//! nothing else. Block and stack are allocated and freed as one, and the pool keeps them as one.
//!
//! ```text
//! top of the stack    control block: state, wake queue, switch context, entry slot
//!                     frame of the trampoline
//!                     frames of the closure
//!                     ...
//! lowest page         guard page
//! ```
//!
//! All fields are cells: a block is touched only by the thread that its coroutine belongs to, and
//! no reference into a cell outlives a statement. While it is idle in the pool it belongs to the
//! pool.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::ptr::{self, NonNull};

use super::CoroutineState;
use super::entry::{self, EntryVtable, Slot};
use super::suspender::Suspender;
use super::wake_queue::WakeQueue;
use crate::stack::{self, Stack};
use crate::switch::Context;

/// In place of an id: an idle block that has been trimmed since its last run.
const TRIMMED: u64 = 0;
/// What an idle stack keeps below its block.
const KEPT_BYTES: usize = 32 << 10;

/// Everything about one coroutine but its frames.
#[repr(C, align(64))]
pub(crate) struct Control {
    // Touched by every resume and suspend; one cache line up to the first word of `scheduled_by`.
    context: Context,
    state: Cell<CoroutineState>,
    unwinding: Cell<Unwinding>,
    has_left_work: Cell<bool>,
    scheduled_by: Cell<Option<&'static str>>,
    /// Handles. So wide that no loop that forgets handles lives to see it overflow.
    references: Cell<u64>,
    /// The coroutine that resumed it last, or null.
    resumer: Cell<*const Control>,
    woken: WakeQueue,

    // Touched once or twice a run.
    next: Cell<*const Control>,
    is_queued: Cell<bool>,
    entry: Cell<Option<&'static EntryVtable>>,
    name: Cell<&'static str>,
    id: Cell<u64>,
    panic: Cell<Option<Box<dyn Any + Send>>>,
    stack: Stack,
    slot: UnsafeCell<MaybeUninit<Slot>>,
}

/// Whether a suspended function that is resumed must throw instead of going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwinding {
    /// It goes on.
    No,
    /// It throws.
    Throw,
    /// It has thrown, and is suspended in a destructor on its way out: it must go on.
    Underway,
}

impl Control {
    pub(crate) const CONTEXT_OFFSET: usize = offset_of!(Control, context);
    pub(crate) const STATE_OFFSET: usize = offset_of!(Control, state);
    pub(crate) const NAME_OFFSET: usize = offset_of!(Control, name);
    pub(crate) const ID_OFFSET: usize = offset_of!(Control, id);
    pub(crate) const STACK_OFFSET: usize = offset_of!(Control, stack);

    /// A block with a stack of its own, that runs nothing. Freed with [`Control::free`].
    pub(crate) fn allocate() -> io::Result<NonNull<Control>> {
        let stack = stack::allocate()?;
        let place = stack.place_at_top::<Control>();
        let range = stack.below(place);
        // SAFETY: the stack is new, and lives as long as the block on it; the trampoline asks for a
        // block, this one by the time it runs, and neither returns nor unwinds.
        let context = unsafe { Context::new(range, entry::trampoline, place.as_ptr().cast()) };
        let control = Control {
            context,
            state: Cell::new(CoroutineState::Terminated),
            unwinding: Cell::new(Unwinding::No),
            has_left_work: Cell::new(false),
            references: Cell::new(0),
            resumer: Cell::new(ptr::null()),
            scheduled_by: Cell::new(None),
            woken: WakeQueue::new(),
            next: Cell::new(ptr::null()),
            is_queued: Cell::new(false),
            entry: Cell::new(None),
            name: Cell::new(""),
            id: Cell::new(0),
            panic: Cell::new(None),
            stack,
            slot: UnsafeCell::new(MaybeUninit::uninit()),
        };
        // SAFETY: there is room for a block, which nothing else uses.
        unsafe { place.write(control) };
        Ok(place)
    }

    /// Takes all frames off the stack of an idle block, so that it may go on to another thread:
    /// those between two runs may hold what belongs to theirs.
    ///
    /// # Safety
    /// As [`Control::free`].
    pub(crate) unsafe fn reset(control: NonNull<Control>) {
        // SAFETY: by the caller nothing uses the block; the context neither runs nor will run again,
        // and its frames have nothing left to drop. The new one is made as in `allocate`.
        unsafe {
            let context = &raw mut (*control.as_ptr()).context;
            let range = control.as_ref().stack.below(control);
            context.drop_in_place();
            context.write(Context::new(range, entry::trampoline, control.as_ptr().cast()));
        }
    }

    /// Whether it may hold more memory than [`trim`](Self::trim) leaves it.
    #[inline]
    pub(crate) fn is_untrimmed(&self) -> bool {
        self.id.get() != TRIMMED
    }

    /// Gives back the memory of an idle block's stack, but for its top.
    pub(crate) fn trim(&self) {
        debug_assert_eq!(self.state.get(), CoroutineState::Terminated);
        self.id.set(TRIMMED);
        // SAFETY: it is idle: between two runs its frames are the few of `entry`, at the top.
        unsafe { self.stack.give_back_below(ptr::from_ref(self).addr() - KEPT_BYTES) };
    }

    /// Gives back a block and its stack.
    ///
    /// # Safety
    /// `control` came from [`Control::allocate`], no pointer to it is left, and its coroutine
    /// has terminated, so that no frame is on its stack but those of `entry`, which have
    /// nothing to drop.
    pub(crate) unsafe fn free(control: NonNull<Control>) {
        // SAFETY: by the caller the block is no longer used, nor the stack once it is moved out.
        unsafe {
            let Control { stack, .. } = control.read();
            stack::free(stack);
        }
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
        // SAFETY: the slot is empty: the closure of the last run was moved out of it or dropped.
        let vtable = unsafe { entry::store(self.slot(), entry) };
        self.entry.set(Some(vtable));
        self.name.set(name);
        self.id.set(id);
        self.references.set(1);
        self.unwinding.set(Unwinding::No);
        self.state.set(CoroutineState::Created);
    }

    #[inline]
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    #[inline]
    pub(crate) fn entry(&self) -> &'static EntryVtable {
        // SAFETY: `prepare` sets it; there is nothing to run or drop before.
        unsafe { self.entry.get().unwrap_unchecked() }
    }

    /// Where the closure is from `prepare` until it runs.
    #[inline]
    pub(crate) fn slot(&self) -> NonNull<Slot> {
        NonNull::from(&self.slot).cast()
    }

    #[inline]
    pub(crate) fn state(&self) -> CoroutineState {
        self.state.get()
    }

    /// Whether it has terminated, and no scheduler means to resume it all the same.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.state.get() == CoroutineState::Terminated && self.scheduled_by.get().is_none()
    }

    #[inline]
    pub(crate) fn set_state(&self, state: CoroutineState) {
        self.state.set(state);
    }

    #[inline]
    pub(crate) fn unwinding(&self) -> Unwinding {
        self.unwinding.get()
    }

    pub(crate) fn set_unwinding(&self, unwinding: Unwinding) {
        self.unwinding.set(unwinding);
    }

    #[inline]
    pub(crate) fn references(&self) -> u64 {
        self.references.get()
    }

    #[inline]
    pub(crate) fn set_references(&self, references: u64) {
        self.references.set(references);
    }

    #[inline]
    pub(crate) fn resumer(&self) -> *const Control {
        self.resumer.get()
    }

    #[inline]
    pub(crate) fn set_resumer(&self, resumer: *const Control) {
        self.resumer.set(resumer);
    }

    #[inline]
    pub(crate) fn scheduled_by(&self) -> Option<&'static str> {
        self.scheduled_by.get()
    }

    #[inline]
    pub(crate) fn set_scheduled_by(&self, by: Option<&'static str>) {
        self.scheduled_by.set(by);
    }

    /// Whether its resumer finds more to do than to go on: a panic, or coroutines that it woke.
    #[inline]
    pub(crate) fn has_left_work(&self) -> bool {
        self.has_left_work.get()
    }

    #[inline]
    pub(crate) fn set_left_work(&self, left: bool) {
        self.has_left_work.set(left);
    }

    /// The coroutines that this one has woken since it was resumed.
    #[inline]
    pub(crate) fn woken(&self) -> &WakeQueue {
        &self.woken
    }

    pub(crate) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic.take()
    }

    /// What its suspended function throws when it is resumed.
    pub(crate) fn set_thrown(&self, payload: Box<dyn Any + Send>) {
        self.unwinding.set(Unwinding::Throw);
        self.panic.set(Some(payload));
    }

    pub(crate) fn set_panic(&self, payload: Box<dyn Any + Send>) {
        self.panic.set(Some(payload));
        self.has_left_work.set(true);
    }

    #[inline]
    pub(crate) fn name(&self) -> &'static str {
        self.name.get()
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id.get()
    }

    /// The next block in the one list that this one is in: a wake queue or the pool.
    #[inline]
    pub(crate) fn next(&self) -> *const Control {
        self.next.get()
    }

    #[inline]
    pub(crate) fn set_next(&self, next: *const Control) {
        self.next.set(next);
    }

    /// Whether it is in a wake queue. It is then marked as scheduled, too.
    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        self.is_queued.get()
    }

    #[inline]
    pub(crate) fn set_queued(&self, queued: bool) {
        self.is_queued.set(queued);
    }

    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }
}

// A block, a trampoline's frame and a small frame of the user's have to fit one page.
#[cfg(not(coblk_ucontext))]
const _: () = assert!(size_of::<Control>() <= 512);
