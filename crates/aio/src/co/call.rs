//! Calls to other contexts: [`Co::call_at`].
//!
//! # Why a call may live on the caller's stack
//!
//! Function, result and the nodes that go to and fro are in the caller's frame, as with a worker's job
//! (`blocking.rs`). A frame is left normally when `back` has come home, the last that the other side does
//! with it. One that is unwound first sends `cancel` after the call, and leaves when both `back` and the
//! answer to that, `cancelled`, are home:
//!
//! ```text
//! caller's context                other context
//! ----------------                -------------
//! there  ---------------------->  a coroutine runs the function
//!        <----------------------  back: it has ended, or will not begin
//! cancel ---------------------->  takes `there` off its list, or unwinds that coroutine
//!        <----------------------  cancelled
//! ```
//!
//! Each node is sent once. A context that is gone discards what it is sent, and that answers as well. Two
//! threads may wait for each other so; each serves `cancel` while it waits (`context/here.rs`).

use std::cell::{Cell, UnsafeCell};
use std::mem::offset_of;
use std::panic::resume_unwind;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Co, Task};
use crate::context::{AioContext, AioHandle, wait_until};
use crate::home::Home;
use crate::join::JoinError;
use crate::panics::{self, Culprit, Payload};
use crate::run_list::{Node, NodeKind, Runner};
use crate::trace_event;

/// The part of a call that does not depend on what is called.
#[repr(C)]
struct Header {
    there: Node,
    back: Node,
    cancel: Node,
    cancelled: Node,
    /// The caller's context. It waits for the call, so this is valid until the last node is home.
    caller: *const Home,
    /// The task to resume.
    task: NonNull<Task>,
    /// The other context's thread only: its coroutine's, or 0.
    id: Cell<u64>,
    /// The caller's thread only: `back` has come home.
    is_back: Cell<bool>,
}

/// A call in the frame of the coroutine that waits for it.
#[repr(C)]
struct Call<F, R> {
    header: Header,
    name: &'static str,
    /// The other context's, once `there` is scheduled and until `back` is.
    function: UnsafeCell<Option<F>>,
    /// As the function.
    result: UnsafeCell<Result<Result<R, Payload>, JoinError>>,
}

static CANCEL: NodeKind = NodeKind { run: run_cancel, discard: discard_cancel };
static BACK: NodeKind = NodeKind { run: run_back, discard: discard_answer };
static CANCELLED: NodeKind = NodeKind { run: run_cancelled, discard: discard_answer };

impl Header {
    fn new(there: &'static NodeKind, co: &Co<'_>) -> Header {
        Header {
            there: Node::new(there),
            back: Node::new(&BACK),
            cancel: Node::new(&CANCEL),
            cancelled: Node::new(&CANCELLED),
            caller: Arc::as_ptr(co.context().inner().shared()),
            task: NonNull::from(co.task()),
            id: Cell::new(0),
            is_back: Cell::new(false),
        }
    }

    /// # Safety
    /// `header` is a live one; so for the node at that offset.
    unsafe fn node(header: NonNull<Header>, offset: usize) -> NonNull<Node> {
        // SAFETY: within the same object.
        unsafe { header.byte_add(offset) }.cast()
    }

    /// # Safety
    /// The node is that at this offset of a header.
    unsafe fn of(node: NonNull<Node>, offset: usize) -> NonNull<Header> {
        // SAFETY: within the same object, of which the pointer was made.
        unsafe { node.byte_sub(offset) }.cast()
    }

    /// Sends the node at this offset home. Neither header nor frame may be touched afterwards, unless
    /// another node is still to be sent.
    ///
    /// # Safety
    /// The header is alive, and the node is sent for the first time.
    unsafe fn send_home(header: NonNull<Header>, offset: usize) {
        // SAFETY: it is alive, and the caller's context, which holds an `Arc` of its home, waits.
        let (caller, node) = unsafe {
            let caller = header.as_ref().caller;
            Arc::increment_strong_count(caller);
            (Arc::from_raw(caller), Header::node(header, offset))
        };
        // SAFETY: the frame stays until the node has come home; it was on no list.
        unsafe { caller.schedule(node) };
    }
}

/// Owed to the caller: sends `back` when dropped.
struct Answer(NonNull<Header>);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the frame waits for this, and there is one answer a call.
        unsafe { Header::send_home(self.0, offset_of!(Header, back)) };
    }
}

/// Owed to a caller that is unwound: sends `cancelled` when dropped, which is the last that is done here.
struct Cancelled(NonNull<Header>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        // SAFETY: the frame waits for this, and sends one `cancel`.
        unsafe { Header::send_home(self.0, offset_of!(Header, cancelled)) };
    }
}

/// In the other context: runs the function in a coroutine.
///
/// # Safety
/// As `NodeKind::run`; the node is the first of a `Call<F, R>`.
unsafe fn run_there<F, R>(node: NonNull<Node>, runner: Runner<'_>) -> bool
where
    F: FnOnce(&Co<'_>) -> R + Send,
    R: Send,
{
    // SAFETY: as `NodeKind::run`: on a context's list, so that runs it.
    let ctx = unsafe { runner.get::<AioContext>() };
    let answer = Answer(node.cast());
    let call = node.cast::<Call<F, R>>();
    // SAFETY: the type by contract; the frame stays until it is answered. `function`, `result` and `id`
    // belong to this thread until then. No reference into the frame outlives its statement.
    let name = unsafe { call.as_ref().name };
    if let Err(error) = ctx.ensure_stack() {
        tracing::error!(coroutine = name, %error, "no stack for a call");
        // SAFETY: as above.
        unsafe { *call.as_ref().result.get() = Err(JoinError::NoMemory) };
        return true;
    }
    // SAFETY: as above. What the function borrows outlives the caller's frame, and to answer is the last
    // that the coroutine does, also if it is unwound.
    let coroutine = unsafe {
        ctx.create(name, move |co| {
            let answer = answer;
            call.as_ref().header.id.set(co.id());
            let function = (*call.as_ref().function.get()).take();
            if let Some(function) = function {
                let result = co.catch_unwind(|| function(co));
                *call.as_ref().result.get() = Ok(result);
            }
            drop(answer);
        })
    };
    panics::resume(&coroutine, ctx.inner().panics.policy);
    true
}

/// # Safety
/// As `NodeKind::discard`; the node is the first of a call.
unsafe fn discard_there(node: NonNull<Node>) {
    drop(Answer(node.cast()));
}

struct CallKind<F, R>(F, R);
impl<F: FnOnce(&Co<'_>) -> R + Send, R: Send> CallKind<F, R> {
    const THERE: &'static NodeKind = &NodeKind { run: run_there::<F, R>, discard: discard_there };
}

/// Back in the caller's context.
///
/// # Safety
/// As `NodeKind::run`; the node is the `back` of a call.
unsafe fn run_back(node: NonNull<Node>, _: Runner<'_>) -> bool {
    // SAFETY: the coroutine is suspended in `call_at`, so the call is alive. The reference is not used
    // after the resume, which ends the frame that it points into.
    let task = unsafe {
        let header = Header::of(node, offset_of!(Header, back)).as_ref();
        header.is_back.set(true);
        header.task
    };
    // SAFETY: its coroutine waits for this, so it is live.
    unsafe { Task::resume(task) };
    true
}

/// In the other context: the caller is being unwound.
///
/// # Safety
/// As `NodeKind::run`; the node is the `cancel` of a call.
unsafe fn run_cancel(node: NonNull<Node>, runner: Runner<'_>) -> bool {
    // SAFETY: as `NodeKind::run`: on a context's list, so that runs it.
    let ctx = unsafe { runner.get::<AioContext>() };
    // SAFETY: the frame waits for `cancelled`, also if it has been answered.
    let (header, there, id) = unsafe {
        let header = Header::of(node, offset_of!(Header, cancel));
        (header, Header::node(header, offset_of!(Header, there)), header.as_ref().id.get())
    };
    // Also if the coroutine's destructors panic.
    let _cancelled = Cancelled(header);
    if ctx.inner().queues.running.remove(there) {
        drop(Answer(header));
    } else {
        ctx.abort(id);
    }
    true
}

/// # Safety
/// As `NodeKind::discard`; the node is the `cancel` of a call.
unsafe fn discard_cancel(node: NonNull<Node>) {
    // SAFETY: the frame waits for `cancelled`.
    drop(Cancelled(unsafe { Header::of(node, offset_of!(Header, cancel)) }));
}

/// # Safety
/// None is needed: the frame that has sent `cancel` takes the node off its list itself.
unsafe fn run_cancelled(_: NonNull<Node>, _: Runner<'_>) -> bool {
    unreachable!("a call that was taken back has run");
}

/// # Safety
/// As `NodeKind::discard`.
unsafe fn discard_answer(_: NonNull<Node>) {
    // A context unwinds its coroutines, and so takes their calls off its lists, before it discards what
    // is left.
    unreachable!("a call outlived the coroutine that made it");
}

/// Serves what has been sent to a context of this thread to take calls back, and nothing else: that is kept
/// for its next bottom-half phase.
pub(crate) fn serve_cancels(ctx: &AioContext) {
    let inner = ctx.inner();
    inner.shared.take_remote(&inner.queues.running);
    while let Some(node) = inner.queues.running.take_kind(&CANCEL) {
        let culprit = Culprit::Other("a call that was taken back");
        panics::call_reporting(ctx.name(), culprit, || {
            // SAFETY: just taken from the list, on the context's thread.
            unsafe { Node::run(node, Runner::new(ctx)) };
        });
    }
}

/// Keeps a frame until the call in it is home.
struct WaitOnUnwind<'a> {
    header: NonNull<Header>,
    ctx: &'a AioContext,
    there: &'a Arc<Home>,
}

impl Drop for WaitOnUnwind<'_> {
    fn drop(&mut self) {
        // SAFETY: in the frame that this guard is in.
        if !unsafe { self.header.as_ref() }.is_back.get() {
            self.take_back();
        }
    }
}

impl WaitOnUnwind<'_> {
    #[cold]
    fn take_back(&self) {
        // SAFETY: in the frame that this guard is in. `cancel` is sent once: a frame is unwound once.
        let [back, cancelled] = unsafe {
            self.there.schedule(Header::node(self.header, offset_of!(Header, cancel)));
            [offset_of!(Header, back), offset_of!(Header, cancelled)]
                .map(|offset| Header::node(self.header, offset))
        };
        let inner = self.ctx.inner();
        let running = &inner.queues.running;
        let (mut is_back, mut is_cancelled) = (false, false);
        wait_until(|| {
            inner.shared.take_remote(running);
            is_back |= running.remove(back);
            is_cancelled |= running.remove(cancelled);
            is_back && is_cancelled
        });
    }
}

impl Co<'_> {
    /// Runs `function` in a coroutine of another context, called `name`, while this one is suspended, and
    /// returns what it returns. Allocates nothing, unless that context has no idle stack. It costs two
    /// wakes: some tens of microseconds if the other loop sleeps. In the coroutine's own context the
    /// function is called at once.
    ///
    /// A panic of `function` goes on here. If this coroutine is unwound meanwhile, that unwinds the other
    /// one too, and waits until it has ended: for ever if it is in a context that is not polled.
    ///
    /// ```
    /// use coblk_aio::{AioContext, IoThread};
    ///
    /// let thread = IoThread::new("home")?;
    /// let ctx = AioContext::new()?;
    /// let text = String::from("lent");
    /// let answer = ctx.run(|co| {
    ///     co.call_at(thread.handle(), "ask", |co| format!("{text} to {}", co.context().name()))
    /// });
    /// assert_eq!(answer?, "lent to home");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`JoinError::ContextGone`] if that context has ended, or ends first;
    /// [`JoinError::NoMemory`] if there is no memory for a stack there.
    pub fn call_at<R: Send>(
        &self,
        home: &AioHandle,
        name: &'static str,
        function: impl FnOnce(&Co<'_>) -> R + Send,
    ) -> Result<R, JoinError> {
        if Arc::ptr_eq(home.shared(), self.context().inner().shared()) {
            return Ok(function(self));
        }
        self.cross(home.shared(), name, function)
    }

    fn cross<F, R>(
        &self,
        there: &Arc<Home>,
        name: &'static str,
        function: F,
    ) -> Result<R, JoinError>
    where
        F: FnOnce(&Co<'_>) -> R + Send,
        R: Send,
    {
        let call = Call {
            header: Header::new(CallKind::<F, R>::THERE, self),
            name,
            function: UnsafeCell::new(Some(function)),
            result: UnsafeCell::new(Err(JoinError::ContextGone)),
        };
        trace_event!("co_call_at", coroutine = name, context = %there.name);
        let header = NonNull::from(&call).cast::<Header>();
        // SAFETY: the guard keeps the call in place until its nodes are home; each was made just now.
        unsafe { there.schedule(Header::node(header, offset_of!(Header, there))) };
        let guard = WaitOnUnwind { header, ctx: self.context(), there };
        while !call.header.is_back.get() {
            self.suspend("another context");
        }
        drop(guard);
        match call.result.into_inner()? {
            Ok(value) => Ok(value),
            Err(panic) => resume_unwind(panic),
        }
    }
}
