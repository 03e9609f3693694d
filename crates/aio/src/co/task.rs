//! What a context knows of one of its coroutines, and the list of all of them.
//!
//! A task outlives its coroutine's stack only in one case: the coroutine is unwound (its context
//! ends) while a [`CoWaker`](super::CoWaker) for it is still held. Then the task, a small
//! heap block, belongs to that waker. Who owns it is decided by one atomic swap of `state`:
//!
//! ```text
//!            arm                     waker used               off the list
//!   IDLE ----------> ARMED ---------------------------> WOKEN --------------> IDLE
//!                      |                                  |
//!                      | unwound                          | unwound
//!                      v                                  v
//!                  ABANDONED: the waker frees it      ABANDONED: the list node frees it
//! ```
//!
//! `IDLE` is what a suspended coroutine waits for: its wake has been served. Nothing but the wake
//! brings it about, and no second waker is made and the node not pushed before it: that, and not
//! the good behaviour of resumers, keeps a node from being on two lists.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use coblk_coroutine::{Coroutine, CoroutineState};

use super::{CoroutineInfo, Note, Wanted};
use crate::context::{AioContext, Inner};
use crate::home::Home;
use crate::panics;
use crate::run_list::{Node, NodeKind, Runner};
use crate::trace_event;

/// No waker exists and the node is on no list.
const IDLE: u8 = 0;
/// A waker exists.
const ARMED: u8 = 1;
/// The waker was used, or the coroutine rescheduled itself; the node is on a list or about to be.
const WOKEN: u8 = 2;
/// The coroutine is gone; who finds this frees the task.
const ABANDONED: u8 = 3;

/// One coroutine of a context.
#[repr(C)]
pub(crate) struct Task {
    node: Node,
    state: AtomicU8,
    /// The waker was dropped instead of used.
    lost: AtomicBool,

    // The rest belongs to the home thread.
    suspended: Cell<bool>,
    waits_for: Cell<&'static str>,
    note: Note,
    /// The requester that it works for, while that may end.
    pub(super) wanted: RefCell<Option<Wanted>>,
    spawned_ns: Cell<i64>,
    name: Cell<&'static str>,
    coroutine: UnsafeCell<Option<Coroutine>>,
    inner: NonNull<Inner>,
    previous: Cell<*mut Task>,
    next: Cell<*mut Task>,
}

/// Where a debugger finds what it shows of a task: offsets, in bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TaskLayout {
    /// The next task, or null.
    pub(crate) next: u32,
    /// Address of its context.
    pub(crate) inner: u32,
    /// A `&'static str`.
    pub(crate) name: u32,
    /// A `&'static str`.
    pub(crate) waits_for: u32,
    /// Address of the coroutine's control block, or null.
    pub(crate) coroutine: u32,
}

static TASK_KIND: NodeKind = NodeKind { run: run_task, discard: discard_task };

/// The bottom half that resumes a coroutine which was woken from another thread (contract: C24).
///
/// # Safety
/// As `NodeKind::run`: the node is a `Task`'s.
unsafe fn run_task(node: NonNull<Node>, _: Runner<'_>) -> bool {
    let task = node.cast::<Task>();
    // SAFETY: scheduled, so alive, or ours to free.
    let state = unsafe { &task.as_ref().state };
    if state.load(Ordering::Acquire) == ABANDONED {
        // SAFETY: abandoned while on the list: it is ours.
        unsafe { free_abandoned(task) };
        return false;
    }
    state.store(IDLE, Ordering::Relaxed);
    // SAFETY: not abandoned, so live.
    unsafe { Task::resume(task) };
    true
}

/// # Safety
/// The task is abandoned, and the caller's.
#[cold]
#[inline(never)]
unsafe fn free_abandoned(task: NonNull<Task>) {
    // SAFETY: by the caller.
    drop(unsafe { Box::from_raw(task.as_ptr()) });
}

/// # Safety
/// As `NodeKind::discard`: the node is a `Task`'s. A context unwinds its coroutines before it
/// discards its lists, so the task is abandoned, and ours.
unsafe fn discard_task(node: NonNull<Node>) {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(node.cast::<Task>().as_ptr()) });
}

impl Task {
    /// For a debugger.
    pub(crate) const LAYOUT: TaskLayout = TaskLayout {
        next: offset_of!(Task, next) as u32,
        inner: offset_of!(Task, inner) as u32,
        name: offset_of!(Task, name) as u32,
        waits_for: offset_of!(Task, waits_for) as u32,
        coroutine: offset_of!(Task, coroutine) as u32,
    };

    pub(crate) fn context(&self) -> &AioContext {
        // SAFETY: the caller runs in this task's coroutine, and a context outlives its
        // coroutines: its `Drop` unwinds them first.
        unsafe { self.inner.as_ref() }.me()
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name.get()
    }

    #[inline]
    pub(crate) fn has_suspended(&self) -> bool {
        self.suspended.get()
    }

    #[inline]
    pub(crate) fn set_suspended(&self, what: &'static str) {
        self.suspended.set(true);
        self.waits_for.set(what);
    }

    /// The next older task of the context.
    pub(super) fn following(&self) -> *mut Task {
        self.next.get()
    }

    #[inline]
    pub(crate) fn set_note(&self, tag: u64, offset: u64, bytes: u64) {
        // SAFETY: called by the running coroutine, so its context is there.
        let since_ns = unsafe { self.inner.as_ref() }.coarse_ns();
        self.note.set(tag, offset, bytes, since_ns);
    }

    #[inline]
    pub(crate) fn clear_note(&self) {
        self.note.clear();
    }

    pub(super) fn info(&self, context: &str, now_ns: i64) -> CoroutineInfo {
        // SAFETY: home thread.
        let coroutine = unsafe { self.coroutine() };
        let age_ns = now_ns.saturating_sub(self.spawned_ns.get());
        CoroutineInfo {
            id: coroutine.as_ref().map_or(0, Coroutine::id),
            name: self.name(),
            context: context.to_owned(),
            state: coroutine.map_or(CoroutineState::Created, |coroutine| coroutine.state()),
            waits_for: self.waits_for.get(),
            age: Duration::from_nanos(u64::try_from(age_ns).unwrap_or(0)),
            note: self.note.info(now_ns),
        }
    }

    /// A handle on the coroutine, which keeps it while it is resumed.
    ///
    /// # Safety
    /// Home thread only.
    #[inline]
    unsafe fn coroutine(&self) -> Option<Coroutine> {
        // SAFETY: home thread only; the borrow ends with the clone.
        unsafe { (*self.coroutine.get()).clone() }
    }

    /// Resumes the coroutine, unless it runs: then it has not got round to suspending yet, and will
    /// see that it need not.
    ///
    /// # Safety
    /// Home thread, and the task is live.
    #[inline(always)]
    pub(crate) unsafe fn resume(task: NonNull<Task>) {
        // SAFETY: live by contract. The handle is our own, because the task may be released, and
        // reused, while the coroutine runs.
        let (coroutine, policy) =
            unsafe { (task.as_ref().coroutine(), task.as_ref().inner.as_ref().panics.policy) };
        if let Some(coroutine) = coroutine.filter(|it| it.state() != CoroutineState::Entered) {
            trace_event!("aio_coroutine_enter", coroutine = coroutine.name());
            panics::resume(&coroutine, policy);
        }
    }

    /// Whether no waker is out and the node is on no list.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Relaxed) == IDLE
    }

    /// Before a second waker would be made, or the node pushed a second time. It happens when
    /// `register` suspends, or when it hid its waker somewhere and then panicked.
    #[inline]
    pub(super) fn assert_idle(&self) {
        assert!(
            self.is_idle(),
            "coroutine '{}' suspends while the waker of another suspension is out",
            self.name()
        );
    }

    /// A waker is about to be made.
    #[inline]
    pub(super) fn arm(&self) -> Arc<Home> {
        self.assert_idle();
        self.lost.store(false, Ordering::Relaxed);
        self.state.store(ARMED, Ordering::Release);
        // SAFETY: called by the running coroutine, so its context is there.
        Arc::clone(unsafe { self.inner.as_ref() }.shared())
    }

    /// Whether the last waker was dropped instead of used.
    #[inline]
    pub(super) fn waker_was_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Has the loop resume the coroutine in its next bottom-half phase. Home thread, and only by
    /// the owner of the sole right to wake it: its waker, or the running coroutine itself.
    pub(super) fn schedule_local(task: NonNull<Task>) {
        // SAFETY: the task is live and so is its context. The sole right to wake it means that the
        // node is on no list; it stays in place until the coroutine is resumed from there, or,
        // abandoned, until the list frees it.
        unsafe {
            task.as_ref().state.store(WOKEN, Ordering::Relaxed);
            task.as_ref().inner.as_ref().bh().schedule(task.cast::<Node>());
        }
    }

    /// The waker is used, on any thread.
    ///
    /// # Safety
    /// `task` is the one the waker was armed for, and this is the waker's only use.
    pub(super) unsafe fn wake(task: NonNull<Task>, home: &Arc<Home>, wake: Wake) {
        // SAFETY: armed: alive until this swap tells otherwise.
        let this = unsafe { task.as_ref() };
        if wake == Wake::Lost {
            this.lost.store(true, Ordering::Relaxed);
        }
        if this.state.swap(WOKEN, Ordering::AcqRel) == ABANDONED {
            // SAFETY: the coroutine is gone and left the task to us.
            drop(unsafe { Box::from_raw(task.as_ptr()) });
        } else if home.is_home_thread() {
            // SAFETY: not abandoned, and we are the thread that could abandon it.
            unsafe { Task::wake_at_home(task, wake) };
        } else {
            // SAFETY: the node stays: the task is freed only by the thread that takes it from the list,
            // or when it has been resumed from there. The swap above makes this the only push.
            unsafe { home.schedule(task.cast::<Node>()) };
        }
    }

    /// # Safety
    /// Home thread; the task is live and was just woken.
    unsafe fn wake_at_home(task: NonNull<Task>, wake: Wake) {
        // SAFETY: live by contract; home thread.
        let Some(coroutine) = (unsafe { task.as_ref().coroutine() }) else { return };
        let entered = coroutine.state() == CoroutineState::Entered;
        // On the way out of a panic the coroutine would run inside of that, and a panic of its own
        // end the process.
        if (wake != Wake::AtOnce || std::thread::panicking()) && !entered {
            return Task::schedule_local(task);
        }
        // No list will hold the node.
        // SAFETY: live by contract.
        unsafe { task.as_ref() }.state.store(IDLE, Ordering::Relaxed);
        if entered {
            // It runs, or waits for something that it called itself, and has not suspended yet. It
            // need not any more; but that it wakes itself is a mistake.
            let own = coblk_coroutine::current().is_some_and(|now| now.id() == coroutine.id());
            assert!(
                wake == Wake::Lost || !own,
                "coroutine '{}' tried to wake itself",
                coroutine.name()
            );
            return;
        }
        if coblk_coroutine::in_coroutine() {
            coroutine.queue_wake("CoWaker::wake");
        } else {
            // SAFETY: live, home thread, and suspended, as it is neither entered nor terminated.
            unsafe { Task::resume(task) };
        }
    }
}

/// How a suspended coroutine is woken on its own thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Within the call (contract: C22, C23).
    AtOnce,
    /// From a bottom half: the caller may hold something that the coroutine wants.
    Later,
    /// Its waker was dropped: it will panic, which must not happen in a destructor.
    Lost,
}

/// The coroutines of one context, and tasks kept for reuse.
pub(crate) struct TaskList {
    live: Cell<*mut Task>,
    free: Cell<*mut Task>,
}

impl TaskList {
    pub(crate) const LIVE_OFFSET: usize = offset_of!(TaskList, live);

    pub(crate) const fn new() -> TaskList {
        TaskList { live: Cell::new(ptr::null_mut()), free: Cell::new(ptr::null_mut()) }
    }

    /// A task for a coroutine that is about to be created.
    #[inline]
    pub(crate) fn acquire(&self, inner: NonNull<Inner>, name: &'static str) -> NonNull<Task> {
        let task = match NonNull::new(self.free.get()) {
            Some(task) => {
                // SAFETY: tasks on the free list are alive and ours.
                self.free.set(unsafe { task.as_ref() }.next.get());
                task
            }
            None => NonNull::from(Box::leak(Box::new(Task::new(inner)))),
        };
        // SAFETY: just taken from the free list, or just made.
        let this = unsafe { task.as_ref() };
        this.name.set(name);
        this.suspended.set(false);
        this.clear_note();
        // SAFETY: the context that acquires is there.
        this.spawned_ns.set(unsafe { inner.as_ref() }.coarse_ns());
        this.previous.set(ptr::null_mut());
        this.next.set(self.live.get());
        if let Some(first) = NonNull::new(self.live.get()) {
            // SAFETY: live tasks are alive.
            unsafe { first.as_ref() }.previous.set(task.as_ptr());
        }
        self.live.set(task.as_ptr());
        task
    }

    /// Gives the coroutine to its task.
    ///
    /// # Safety
    /// `task` comes from `acquire` and was not released.
    #[inline]
    pub(crate) unsafe fn adopt(task: NonNull<Task>, coroutine: Coroutine) {
        // SAFETY: live, home thread (a `Coroutine` is not `Send`), and nothing else looks at it. Written
        // over, not dropped: `release` has taken the one before.
        unsafe { task.as_ref().coroutine.get().write(Some(coroutine)) };
    }

    /// The coroutine has ended, or was never started.
    ///
    /// # Safety
    /// `task` comes from this list's `acquire`; called once; the resumer of the coroutine holds
    /// a handle of its own.
    #[inline]
    pub(crate) unsafe fn release(&self, task: NonNull<Task>) {
        // SAFETY: live until here.
        let this = unsafe { task.as_ref() };
        let (previous, next) = (this.previous.get(), this.next.get());
        match NonNull::new(previous) {
            None => self.live.set(next),
            // SAFETY: live tasks are alive.
            Some(previous) => unsafe { previous.as_ref() }.next.set(next),
        }
        if let Some(next) = NonNull::new(next) {
            // SAFETY: live tasks are alive.
            unsafe { next.as_ref() }.previous.set(previous);
        }
        // SAFETY: home thread; taken before it is dropped, so nothing borrows the cell meanwhile.
        drop(unsafe { (*this.coroutine.get()).take() });
        if this.state.load(Ordering::Relaxed) == IDLE
            || this.state.swap(ABANDONED, Ordering::AcqRel) == IDLE
        {
            this.next.set(self.free.get());
            self.free.set(task.as_ptr());
        }
    }

    /// Gives a live coroutine another task, because a waker of the old one is still held: the
    /// suspension that it was for has been unwound. The old task is then the waker's, or the list's.
    ///
    /// # Safety
    /// `task` is live; what refers to it and is not its waker is told of the new one.
    #[cold]
    pub(super) unsafe fn replace(&self, task: NonNull<Task>) -> NonNull<Task> {
        // SAFETY: live by contract; home thread.
        let old = unsafe { task.as_ref() };
        let new = self.acquire(old.inner, old.name());
        // SAFETY: just acquired.
        let fresh = unsafe { new.as_ref() };
        fresh.suspended.set(old.suspended.get());
        fresh.spawned_ns.set(old.spawned_ns.get());
        // SAFETY: home thread; just acquired, and the old one is live until it is released.
        unsafe {
            *fresh.coroutine.get() = old.coroutine();
            self.release(task);
        }
        new
    }

    /// The youngest live task, or null.
    pub(super) fn first(&self) -> *mut Task {
        self.live.get()
    }

    /// Any live coroutine, as a handle.
    pub(crate) fn first_live(&self) -> Option<Coroutine> {
        let task = NonNull::new(self.live.get())?;
        // SAFETY: live tasks are alive, and this is the home thread.
        unsafe { task.as_ref().coroutine() }
    }

    /// The live coroutine with that id. For rare occasions: looks at all.
    pub(crate) fn find(&self, id: u64) -> Option<Coroutine> {
        let mut next = self.live.get();
        while let Some(task) = NonNull::new(next) {
            // SAFETY: live tasks are alive, and this is the home thread.
            let (coroutine, following) =
                unsafe { (task.as_ref().coroutine(), task.as_ref().next.get()) };
            if let Some(found) = coroutine.filter(|it| it.id() == id) {
                return Some(found);
            }
            next = following;
        }
        None
    }

    /// Whether a coroutine of this context is running, or waiting for one that it resumed.
    pub(crate) fn any_entered(&self) -> bool {
        let mut next = self.live.get();
        while let Some(task) = NonNull::new(next) {
            // SAFETY: live tasks are alive, and this is the home thread.
            let (coroutine, following) =
                unsafe { (task.as_ref().coroutine(), task.as_ref().next.get()) };
            if coroutine.is_some_and(|it| it.state() == CoroutineState::Entered) {
                return true;
            }
            next = following;
        }
        false
    }
}

impl Drop for TaskList {
    fn drop(&mut self) {
        while let Some(task) = NonNull::new(self.free.get()) {
            // SAFETY: tasks on the free list are alive, ours, and not referred to.
            let boxed = unsafe { Box::from_raw(task.as_ptr()) };
            self.free.set(boxed.next.get());
        }
    }
}

impl Task {
    fn new(inner: NonNull<Inner>) -> Task {
        Task {
            node: Node::new(&TASK_KIND),
            state: AtomicU8::new(IDLE),
            lost: AtomicBool::new(false),
            suspended: Cell::new(false),
            waits_for: Cell::new(""),
            note: Note::new(),
            wanted: RefCell::new(None),
            spawned_ns: Cell::new(0),
            name: Cell::new(""),
            coroutine: UnsafeCell::new(None),
            inner,
            previous: Cell::new(ptr::null_mut()),
            next: Cell::new(ptr::null_mut()),
        }
    }
}
