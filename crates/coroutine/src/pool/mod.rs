//! Coroutines that have ended, kept with their stacks for the next ones.
//!
//! Two levels. Each thread keeps at most two batches of 128 for itself, in a list that takes no
//! lock and touches nothing shared. When it runs out, or has two batches to spare, it exchanges a
//! batch with the pool of the process, so the lock there is taken once in 128 coroutines at most.
//! The pool of the process is bounded too: what it has no room for is freed.
//!
//! contract: C17, C18, C19, C20

mod shared;

pub use shared::set_pool_limit;

use std::cell::Cell;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::coroutine::control::Control;
use crate::coroutine::current;
use crate::stack::{self, GuardKind, overflow};
use shared::Batch;

/// Coroutines in a batch.
const BATCH: u32 = 128;

/// What the pools hold, and what there is besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Coroutines with a stack, in use or idle, in the whole process.
    pub allocated: usize,
    /// Those of them that are idle in the pool of this thread.
    pub idle_in_thread: usize,
    /// Those of them that are idle in the pool of the process.
    pub idle_shared: usize,
    /// How many the pool of the process may hold.
    pub shared_limit: usize,
    /// Those that can neither go on nor end, because the last handle to a coroutine was dropped
    /// which was suspended in a destructor, on its way out. They keep their stacks for good.
    pub abandoned: usize,
    /// How their stacks are guarded; `None` until there is one.
    pub guard: Option<GuardKind>,
}

/// What the pools hold now, as this thread sees it.
pub fn pool_stats() -> PoolStats {
    PoolStats {
        allocated: stack::allocated(),
        idle_in_thread: LOCAL.with(Local::idle),
        idle_shared: shared::idle(),
        shared_limit: shared::limit(),
        abandoned: ABANDONED.load(Ordering::Relaxed),
        guard: stack::guard_kind(),
    }
}

/// Frees what is idle in the pool of this thread and in that of the process, and returns how many
/// coroutines that were. Their memory goes back to the system.
///
/// Other threads keep their own share, of at most 256 each.
pub fn trim_pool() -> usize {
    let local = LOCAL.with(Local::take_all).into_iter().flatten();
    local.chain(shared::take_all()).map(Batch::free).sum()
}

/// Makes sure that the next coroutine of this thread finds a stack, so that creating it cannot
/// fail. For a request that must be answered if there is no memory for it.
///
/// # Errors
///
/// As [`Coroutine::try_new`](crate::Coroutine::try_new).
#[inline]
pub fn ensure_stack() -> io::Result<()> {
    LOCAL.with(|local| {
        if local.head.get().is_null() {
            let control = local.refill()?;
            // SAFETY: it runs nothing, and nothing else points to it.
            unsafe { release(control) };
        }
        Ok(())
    })
}

/// Whether stacks that are idle in the pool of this thread or of the process may hold more memory
/// than the top of each; see [`release_idle_memory`]. Cheap.
#[inline]
pub fn has_idle_memory() -> bool {
    LOCAL.with(|local| {
        let lists = [local.head.get(), local.spare.get()];
        // SAFETY: blocks in the pool are valid.
        lists.iter().any(|head| unsafe { head.as_ref() }.is_some_and(Control::is_untrimmed))
    }) || shared::has_untrimmed()
}

/// A number that grows with each coroutine this thread creates, to find out whether there was one
/// since the last look.
#[inline]
pub fn creation_mark() -> u64 {
    LOCAL.with(|local| local.next_id.get())
}

/// Gives the memory of idle stacks back to the system, but for the topmost 32 KiB of each, which
/// ordinary use needs again. The stacks stay in the pools.
///
/// A system call for each stack that has been used since the last time. For an event loop that has
/// had nothing to do for a while.
pub fn release_idle_memory() {
    LOCAL.with(|local| {
        trim_list(local.head.get());
        trim_list(local.spare.get());
    });
    shared::trim();
}

/// Trims the blocks of a list, up to the first that is trimmed: lists are used last in, first out,
/// so those behind it are trimmed as well.
fn trim_list(head: *const Control) {
    let mut next = head;
    // SAFETY: blocks in the pool are valid, and idle.
    while let Some(control) = unsafe { next.as_ref() }.filter(|control| control.is_untrimmed()) {
        control.trim();
        next = control.next();
    }
}

/// A block that runs nothing, and an id for its next run.
#[inline]
pub(crate) fn acquire() -> io::Result<(NonNull<Control>, u64)> {
    LOCAL.with(|local| {
        let control = match local.pop() {
            Some(control) => control,
            None => local.refill()?,
        };
        Ok((control, local.next_id()))
    })
}

/// Takes back a block.
///
/// # Safety
/// Its coroutine has terminated, and no pointer to it is left.
#[inline]
pub(crate) unsafe fn release(control: NonNull<Control>) {
    LOCAL.with(|local| match local.room.get() {
        // SAFETY: by the caller.
        0 => unsafe { local.release_to_full(control) },
        _ => local.push(control),
    });
}

/// Counts a block that can never be released.
#[cold]
pub(crate) fn abandon(_: NonNull<Control>) {
    ABANDONED.fetch_add(1, Ordering::Relaxed);
}

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// The pool of one thread. Has no destructor of its own, so that using it costs no check whether it
/// still exists; `AtExit` gives back what is in it when the thread ends.
struct Local {
    /// The list that blocks are taken from and put into.
    head: Cell<*const Control>,
    /// How many more may be put into it: up to [`BATCH`], and none once the thread ends.
    room: Cell<u32>,
    /// A full batch besides, or null.
    spare: Cell<*const Control>,
    /// Ids are taken from the process in blocks.
    next_id: Cell<u64>,
    last_id: Cell<u64>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            head: Cell::new(ptr::null()),
            room: Cell::new(BATCH),
            spare: Cell::new(ptr::null()),
            next_id: Cell::new(1),
            last_id: Cell::new(0),
        }
    };
    static AT_EXIT: AtExit = const { AtExit };
}

/// Gives back the pool of its thread when the thread ends. contract: C20
struct AtExit;

impl Drop for AtExit {
    fn drop(&mut self) {
        LOCAL.with(Local::close);
    }
}

impl Local {
    #[inline]
    fn pop(&self) -> Option<NonNull<Control>> {
        let control = NonNull::new(self.head.get().cast_mut())?;
        // SAFETY: blocks in the pool are valid.
        self.head.set(unsafe { control.as_ref() }.next());
        self.room.set(self.room.get() + 1);
        Some(control)
    }

    #[inline]
    fn push(&self, control: NonNull<Control>) {
        // SAFETY: the caller releases it, so it is valid.
        unsafe { control.as_ref() }.set_next(self.head.get());
        self.head.set(control.as_ptr());
        self.room.set(self.room.get() - 1);
    }

    /// Takes back a block when there is no room in the list.
    ///
    /// # Safety
    /// As [`release`].
    #[cold]
    #[inline(never)]
    unsafe fn release_to_full(&self, control: NonNull<Control>) {
        self.make_room();
        if self.room.get() > 0 {
            self.push(control);
        } else {
            // SAFETY: by the caller.
            unsafe { Control::free(control) };
        }
    }

    /// A block, when the list is empty: from the spare batch, the pool of the process, or newly
    /// made.
    #[cold]
    #[inline(never)]
    fn refill(&self) -> io::Result<NonNull<Control>> {
        // Fails when the thread is ending. What is released then is freed at once.
        let open = AT_EXIT.try_with(|_| ()).is_ok();
        overflow::watch(current::on_this_stack);
        let spare = self.spare.replace(ptr::null());
        let batch = if spare.is_null() { shared::take() } else { Some(Batch::full(spare)) };
        match batch {
            Some(batch) if open => {
                self.room.set(BATCH - batch.len());
                self.head.set(batch.into_list());
                Ok(self.pop().expect("a batch is not empty"))
            }
            Some(batch) => Ok(batch.into_one()),
            None => Control::allocate(),
        }
    }

    /// Sets a full list aside, and the batch that was set aside before, if any, into the pool of
    /// the process. Does nothing when the thread is ending.
    fn make_room(&self) {
        if self.head.get().is_null() {
            return;
        }
        let spare = self.spare.replace(self.head.replace(ptr::null()));
        self.room.set(BATCH);
        if !spare.is_null() {
            shared::give(Batch::full(spare));
        }
    }

    /// Gives everything to the pool of the process, and takes nothing in any more.
    fn close(&self) {
        self.take_all().into_iter().flatten().for_each(shared::give);
        self.room.set(0);
    }

    /// Takes everything out.
    fn take_all(&self) -> [Option<Batch>; 2] {
        let (head, spare) = (self.head.replace(ptr::null()), self.spare.replace(ptr::null()));
        let listed = (!head.is_null()).then(|| Batch::new(head, BATCH - self.room.replace(BATCH)));
        [listed, (!spare.is_null()).then(|| Batch::full(spare))]
    }

    fn idle(&self) -> usize {
        let spare = if self.spare.get().is_null() { 0 } else { BATCH };
        let listed = if self.head.get().is_null() { 0 } else { BATCH - self.room.get() };
        (listed + spare) as usize
    }

    #[inline]
    fn next_id(&self) -> u64 {
        if self.next_id.get() > self.last_id.get() {
            self.take_ids();
        }
        self.next_id.replace(self.next_id.get() + 1)
    }

    /// Takes a block of ids for this thread, so that the counter of the process is rarely touched.
    #[cold]
    fn take_ids(&self) {
        const BLOCK: u64 = 1 << 20;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let first = NEXT.fetch_add(BLOCK, Ordering::Relaxed);
        self.next_id.set(first);
        self.last_id.set(first + BLOCK - 1);
    }
}
