//! The event loop of coblk: one thread, and everything that runs on it.
//!
//! * [`AioContext`] is the loop: bottom halves, timers, descriptor handlers, coroutines.
//! * [`AioHandle`] and [`RemoteBottomHalf`] put work on it from other threads.
//! * [`Co`] is the right to suspend, [`CoWaker`] the way back.
//! * [`ThreadPool`] makes blocking calls on worker threads.
//! * [`sync`] has locks that suspend a coroutine and not its thread.
//! * [`IoVector`] and [`IoVectorMut`] are scatter-gather lists.
//!
//! Which thread may call what is in the types: what is not `Send` belongs to the home thread.
//!
//! # Unsafe code
//!
//! is fenced in `node` (intrusive lists), `bottom_half`, `co` (tasks and wakers), `context` (its
//! own address), `thread_pool` (job hand-off), `sync` (data behind locks), `io_vector` and `sys` (system calls). Each of these
//! begins with the argument why it is sound.

mod atomic;
mod bottom_half;
mod co;
mod context;
mod event_notifier;
mod fd_handler;
mod handle;
mod io_vector;
#[cfg(all(test, loom))]
mod models;
mod node;
mod poll;
mod shared;
pub mod sync;
pub mod sys;
mod thread_pool;
mod timer;
mod trace;

pub use bottom_half::{BottomHalf, RemoteBottomHalf};
pub use co::{Co, CoWaker};
pub use context::{AioContext, AioContextBuilder};
pub use event_notifier::EventNotifier;
pub use fd_handler::{FdInterest, Readiness};
pub use handle::AioHandle;
pub use io_vector::{AlignedBuffer, IoBuffer, IoVector, IoVectorMut};
pub use thread_pool::{AioJob, DEFAULT_MAX_THREADS, ThreadPool, ThreadPoolLimitsError};
pub use timer::Timer;

#[doc(hidden)]
pub use tracing as __tracing;
