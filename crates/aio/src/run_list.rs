//! The list node behind everything that is "run later on the home thread", and the two lists that
//! hold it.
//!
//! A [`Node`] is embedded in a bottom half, in a coroutine's task, in a worker's job. Scheduling
//! links it into a list; the loop's bottom-half phase takes it out and calls its `run`. No list
//! operation allocates.
//!
//! * [`LocalList`] is used by the home thread alone: a plain singly linked FIFO.
//! * [`RemoteList`] takes nodes from any thread with one compare-and-swap; the home thread takes
//!   all of them at once. As it only ever takes everything, no node can be freed and reused while
//!   a push looks at it (no ABA).
//!
//! The rule that makes both sound: **from the moment a node is scheduled until its `run` or
//! `discard` is called, its scheduler keeps it alive and in place, and does not schedule it
//! again.** Each embedding type says how it keeps the rule.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use crate::loom::{AtomicPtr, Ordering};
use crate::panics::drop_reporting;

/// What runs a list: the address of a context, which is not known here, and which the functions of a
/// node's kind make into a reference again.
#[derive(Clone, Copy)]
pub(crate) struct Runner<'a>(NonNull<()>, PhantomData<&'a ()>);

impl<'a> Runner<'a> {
    #[inline]
    pub(crate) fn new<C>(context: &'a C) -> Runner<'a> {
        Runner(NonNull::from(context).cast(), PhantomData)
    }

    /// # Safety
    /// It was made of a `C`.
    #[inline]
    pub(crate) unsafe fn get<C>(self) -> &'a C {
        // SAFETY: the type by contract; borrowed for `'a` when this was made.
        unsafe { self.0.cast().as_ref() }
    }
}

/// What a kind of node does when its turn comes.
pub(crate) struct NodeKind {
    /// Called on the home thread, once per scheduling; the node is on no list any more and may be
    /// freed or scheduled again from inside. Returns whether this counts as progress (C41).
    pub(crate) run: unsafe fn(NonNull<Node>, Runner<'_>) -> bool,
    /// Called instead of `run` when the context is gone. May run on any thread.
    pub(crate) discard: unsafe fn(NonNull<Node>),
}

/// Something to run on the home thread. Must be the first field of what embeds it.
pub(crate) struct Node {
    next: AtomicPtr<Node>,
    kind: &'static NodeKind,
}

impl Node {
    pub(crate) fn new(kind: &'static NodeKind) -> Node {
        Node { next: AtomicPtr::new(ptr::null_mut()), kind }
    }

    /// # Safety
    /// `node` is alive, and was just taken from a list by the home thread.
    pub(crate) unsafe fn run(node: NonNull<Node>, runner: Runner<'_>) -> bool {
        // SAFETY: alive by contract; `kind` is the table that belongs to its embedding type.
        unsafe { (node.as_ref().kind.run)(node, runner) }
    }

    /// # Safety
    /// `node` is alive, and was just taken from a list that will not be served any more.
    pub(crate) unsafe fn discard(node: NonNull<Node>) {
        // SAFETY: alive by contract; `kind` is the table that belongs to its embedding type.
        unsafe { (node.as_ref().kind.discard)(node) }
    }

    fn next(&self) -> *mut Node {
        self.next.load(Ordering::Relaxed)
    }

    fn set_next(&self, next: *mut Node) {
        self.next.store(next, Ordering::Relaxed);
    }
}

/// A closure as a node.
#[repr(C)]
struct Boxed<F> {
    node: Node,
    run: F,
}

/// Boxes a closure as a node, which is freed when it is run or discarded; it returns what
/// [`NodeKind::run`] does.
pub(crate) fn boxed<F: FnOnce(Runner<'_>) -> bool + 'static>(run: F) -> NonNull<Node> {
    struct Kind<F>(F);
    impl<F: FnOnce(Runner<'_>) -> bool + 'static> Kind<F> {
        const KIND: &'static NodeKind =
            &NodeKind { run: run_boxed::<F>, discard: discard_boxed::<F> };
    }
    let boxed = Box::new(Boxed { node: Node::new(Kind::<F>::KIND), run });
    // SAFETY: a box is not null; `node` is the first field of the `repr(C)` struct.
    unsafe { NonNull::new_unchecked(Box::into_raw(boxed).cast::<Node>()) }
}

/// # Safety
/// As `NodeKind::run`: the node is a `Boxed<F>` made by `boxed`.
unsafe fn run_boxed<F: FnOnce(Runner<'_>) -> bool>(
    node: NonNull<Node>,
    runner: Runner<'_>,
) -> bool {
    // SAFETY: boxed with this type, and run or discarded once.
    let boxed = unsafe { Box::from_raw(node.cast::<Boxed<F>>().as_ptr()) };
    (boxed.run)(runner)
}

/// # Safety
/// As `NodeKind::discard`: the node is a `Boxed<F>` made by `boxed`.
unsafe fn discard_boxed<F>(node: NonNull<Node>) {
    // SAFETY: boxed with this type, and run or discarded once.
    drop(unsafe { Box::from_raw(node.cast::<Boxed<F>>().as_ptr()) });
}

/// A FIFO of nodes, for the home thread.
pub(crate) struct LocalList {
    head: Cell<*mut Node>,
    tail: Cell<*mut Node>,
}

impl LocalList {
    pub(crate) const fn new() -> LocalList {
        LocalList { head: Cell::new(ptr::null_mut()), tail: Cell::new(ptr::null_mut()) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// # Safety
    /// The module's rule: the node stays alive and in place until it is taken out.
    #[inline]
    pub(crate) unsafe fn push(&self, node: NonNull<Node>) {
        // SAFETY: alive by contract, and on no other list, so its link is ours.
        unsafe { node.as_ref().set_next(ptr::null_mut()) };
        match NonNull::new(self.tail.get()) {
            None => self.head.set(node.as_ptr()),
            // SAFETY: the tail is on this list, so it is alive.
            Some(tail) => unsafe { tail.as_ref().set_next(node.as_ptr()) },
        }
        self.tail.set(node.as_ptr());
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<NonNull<Node>> {
        let node = NonNull::new(self.head.get())?;
        // SAFETY: what is on the list is alive.
        let next = unsafe { node.as_ref().next() };
        self.head.set(next);
        if next.is_null() {
            self.tail.set(ptr::null_mut());
        }
        Some(node)
    }

    /// The one that [`pop`](Self::pop) would take.
    pub(crate) fn first(&self) -> Option<NonNull<Node>> {
        NonNull::new(self.head.get())
    }

    /// Moves everything from `other` to the end of this list.
    #[inline]
    pub(crate) fn append(&self, other: &LocalList) {
        let Some(first) = NonNull::new(other.head.replace(ptr::null_mut())) else { return };
        let last = other.tail.replace(ptr::null_mut());
        match NonNull::new(self.tail.get()) {
            None => self.head.set(first.as_ptr()),
            // SAFETY: the tail is on this list, so it is alive.
            Some(tail) => unsafe { tail.as_ref().set_next(first.as_ptr()) },
        }
        self.tail.set(last);
    }

    /// The context is gone: discards all that is here, whatever panics.
    pub(crate) fn discard_all(&self, context: &str) {
        struct Discard(NonNull<Node>);
        impl Drop for Discard {
            fn drop(&mut self) {
                // SAFETY: just taken from a list that is served no more.
                unsafe { Node::discard(self.0) };
            }
        }
        while let Some(node) = self.pop() {
            drop_reporting(context, Discard(node));
        }
    }

    /// Takes `node` out if it is here. Walks the list: for the rare cancellation only.
    pub(crate) fn remove(&self, node: NonNull<Node>) -> bool {
        self.take_where(|head| head == node).is_some()
    }

    /// Takes the first node of a kind out. Walks the list: for the rare cancellation only.
    pub(crate) fn take_kind(&self, kind: &'static NodeKind) -> Option<NonNull<Node>> {
        // SAFETY: what is on the list is alive.
        self.take_where(|head| ptr::eq(unsafe { head.as_ref() }.kind, kind))
    }

    fn take_where(&self, is_wanted: impl Fn(NonNull<Node>) -> bool) -> Option<NonNull<Node>> {
        let keep = LocalList::new();
        let mut found = None;
        while let Some(head) = self.pop() {
            if found.is_none() && is_wanted(head) {
                found = Some(head);
            } else {
                // SAFETY: it was on this list, so the rule holds for it; it only changes lists.
                unsafe { keep.push(head) };
            }
        }
        self.append(&keep);
        found
    }
}

/// A list that any thread pushes to and the home thread empties.
pub(crate) struct RemoteList {
    /// The most recently pushed node; each links to the one pushed before it.
    newest: AtomicPtr<Node>,
}

impl RemoteList {
    pub(crate) fn new() -> RemoteList {
        RemoteList { newest: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Sequentially consistent, so that the sleep protocol in `home.rs` may rely on it.
    pub(crate) fn is_empty(&self) -> bool {
        self.newest.load(Ordering::SeqCst).is_null()
    }

    /// Pushes from any thread. The node may be run and freed before this returns.
    ///
    /// # Safety
    /// The module's rule: the node stays alive and in place until it is taken out.
    pub(crate) unsafe fn push(&self, node: NonNull<Node>) {
        let mut newest = self.newest.load(Ordering::Relaxed);
        loop {
            // SAFETY: alive by contract; not yet visible to the home thread.
            unsafe { node.as_ref().set_next(newest) };
            match self.newest.compare_exchange_weak(
                newest,
                node.as_ptr(),
                // Release: all that was written before the push is seen by the thread that takes the node.
                // SeqCst on top: see `is_empty`.
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => newest = now,
            }
        }
    }

    /// Takes everything and appends it to `target`, oldest first.
    #[inline]
    pub(crate) fn take_all(&self, target: &LocalList) {
        if self.newest.load(Ordering::Relaxed).is_null() {
            return;
        }
        let mut newest = self.newest.swap(ptr::null_mut(), Ordering::Acquire);
        // Links lead from new to old; turn them round.
        let mut oldest: *mut Node = ptr::null_mut();
        while let Some(node) = NonNull::new(newest) {
            // SAFETY: on the list until now, so alive; and ours since the swap.
            unsafe {
                newest = node.as_ref().next();
                node.as_ref().set_next(oldest);
            }
            oldest = node.as_ptr();
        }
        while let Some(node) = NonNull::new(oldest) {
            // SAFETY: as above; `push` overwrites the link, so it is read first.
            unsafe {
                oldest = node.as_ref().next();
                target.push(node);
            }
        }
    }
}
