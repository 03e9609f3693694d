//! Requests: one asynchronous call of librbd each, in the frame of the coroutine that waits for it.
//!
//! # Why a request may live on the coroutine's stack
//!
//! librbd has three things of it: the buffers, the list of their ranges, and the [`Request`] that its
//! callback is given. The first two are borrowed by the caller for the length of the call; the third is a
//! local. So all that is to be shown is that the frame stays until librbd has called back:
//!
//! * Normally the frame is left after `state` has become `DONE`, which the callback sets, and after which it
//!   touches nothing of the request.
//! * If the coroutine is unwound, because its context ends, [`UntilDone`] waits for that on the way. Nothing
//!   can forget it: it is a local. librbd has no way to take a request back, so this may take as long as the
//!   cluster does.
//! * A call that returns an error has not kept the completion, and never calls back.
//!
//! ```text
//!              the coroutine is about to suspend
//!   SUBMITTED -----------------------------------> WAITING
//!       |                                             |
//!       | called back                                 | called back: takes the waker first
//!       v                                             v
//!     DONE: it need not suspend                     DONE, then wakes
//! ```

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use coblk_aio::{Co, CoWaker};

use super::api::{Api, Handle};
use super::checked;

const SUBMITTED: u8 = 0;
const WAITING: u8 = 1;
const DONE: u8 = 2;

/// Between two looks at a request whose coroutine is being unwound.
const PAUSE: Duration = Duration::from_millis(1);

struct Request {
    api: &'static Api,
    state: AtomicU8,
    /// The callback's once `state` is `WAITING`, the coroutine's before.
    waker: UnsafeCell<Option<CoWaker>>,
    /// Written by the callback, read after `DONE`.
    result: UnsafeCell<i64>,
}

/// What librbd calls at the end of a request, on any thread of its own or within the call that began it.
///
/// # Safety
/// `completion` is the one that the request was begun with, whose argument is that [`Request`]; called once.
unsafe extern "C" fn completed(completion: Handle, request: *mut c_void) {
    // SAFETY: the frame with the request stays until `state` is `DONE`, and this is not used afterwards.
    let request = unsafe { &*request.cast::<Request>() };
    // SAFETY: the completion is ours until it is released, here. The result is ours until `DONE`.
    unsafe {
        *request.result.get() = (request.api.rbd_aio_get_return_value)(completion) as i64;
        (request.api.rbd_aio_release)(completion);
    }
    let done = request.state.compare_exchange(SUBMITTED, DONE, Ordering::AcqRel, Ordering::Acquire);
    if done.is_ok() {
        return;
    }
    // SAFETY: `WAITING`: the coroutine has left it to this.
    let waker = unsafe { (*request.waker.get()).take() };
    request.state.store(DONE, Ordering::Release);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Keeps a frame until librbd has called back.
struct UntilDone<'a>(&'a Request);

impl Drop for UntilDone<'_> {
    #[inline]
    fn drop(&mut self) {
        while self.0.state.load(Ordering::Acquire) != DONE {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Begins a request by `start`, which is given its completion, and suspends until its end. Returns its result.
///
/// # Safety
/// `start` makes one call of librbd that takes the completion, on an image that is not closed before this
/// returns, and returns its result. What that call is given stays valid until this returns or unwinds.
///
/// # Errors
/// Those of librbd.
#[inline]
pub(super) unsafe fn co_run(
    co: &Co<'_>,
    api: &'static Api,
    start: impl FnOnce(Handle) -> c_int,
) -> io::Result<u64> {
    let request = Request {
        api,
        state: AtomicU8::new(SUBMITTED),
        waker: UnsafeCell::new(None),
        result: UnsafeCell::new(0),
    };
    let mut completion: Handle = ptr::null_mut();
    let argument = (&raw const request).cast_mut().cast::<c_void>();
    // SAFETY: a function of this type, and a place for the handle. The argument is only passed on.
    checked(unsafe { (api.rbd_aio_create_completion)(argument, completed, &raw mut completion) })?;
    if let Err(error) = checked(start(completion)) {
        // SAFETY: librbd has not kept it, by the rule of its calls.
        unsafe { (api.rbd_aio_release)(completion) };
        return Err(error);
    }
    let until_done = UntilDone(&request);
    if request.state.load(Ordering::Acquire) == SUBMITTED {
        co.suspend_for("librbd", |waker| wait(co, &request, waker));
    }
    drop(until_done);
    // SAFETY: `DONE`: the callback has written it, and is through with the request.
    match unsafe { *request.result.get() } {
        bytes @ 0.. => Ok(bytes as u64),
        errno => Err(io::Error::from_raw_os_error(-errno as i32)),
    }
}

/// Leaves the waker to the callback. Where that has come in between, the loop wakes the coroutine.
#[inline]
fn wait(co: &Co<'_>, request: &Request, waker: CoWaker) {
    // SAFETY: not `WAITING` yet: the callback does not look at it.
    unsafe { *request.waker.get() = Some(waker) };
    let left =
        request.state.compare_exchange(SUBMITTED, WAITING, Ordering::AcqRel, Ordering::Acquire);
    if left.is_err() {
        // SAFETY: `DONE`, and it was not `WAITING` before, so the callback has not looked at it.
        if let Some(waker) = unsafe { (*request.waker.get()).take() } {
            co.context().handle().schedule(|_| waker.wake());
        }
    }
}
