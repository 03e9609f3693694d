//! The event loop of coblk: one thread, and everything that runs on it.
//!
//! * [`AioContext`] is the loop: bottom halves, timers, descriptor handlers, coroutines.
//! * [`AioHandle`] and [`RemoteBottomHalf`] put work on it from other threads.
//! * [`Co`] is the right to suspend, [`CoWaker`] the way back.
//! * [`ThreadPool`] makes blocking calls on worker threads.
//! * [`sync`] has locks that suspend a coroutine and not its thread.
//! * [`net`] has sockets: addresses, listening, accepting, connecting.
//! * [`IoVector`] and [`IoVectorMut`] are scatter-gather lists.
//!
//! Which thread may call what is in the types: what is not `Send` belongs to the home thread.
//!
//! # Unsafe code
//!
//! is fenced in `run_list` (intrusive lists), `co` (tasks, wakers, and what lies in a coroutine's frame: jobs
//! and requests), `context` (its own address, bottom halves, the section that debuggers read), `thread_pool`
//! (job hand-off), `ring` (requests the kernel looks at), `sync` (data behind locks), `io_vector` (ranges, and
//! memory that guests share) and `sys` (system calls). Each of these begins with the argument why it is sound.
//! `home`, `simulation` and the `models` for loom only push nodes to those lists and run what they take off.

#![warn(missing_debug_implementations)]

#[cfg(not(target_os = "linux"))]
compile_error!("coblk is for Linux: it needs epoll, eventfd and madvise as they are there");

mod co;
mod context;
mod event_notifier;
mod home;
mod io_thread;
mod io_vector;
mod join;
mod loom;
#[cfg(all(test, loom))]
mod models;
pub mod net;
mod panics;
mod ring;
mod run_list;
mod simulation;
pub mod sync;
pub mod sys;
mod thread_pool;
mod trace;
mod waiting;

pub use co::{AioJob, Co, CoWaker, CoroutineInfo, NoteInfo, PoolShare, Wanted};
pub use context::{
    AioContext, AioContextBuilder, AioHandle, Batch, BottomHalf, BusyPoll, EventHandler, FdHandler,
    FdInterest, MAX_CONTEXTS, PerContext, PollParams, Readiness, RemoteBottomHalf, Timer, Wait,
    WaitStats,
};
pub use event_notifier::EventNotifier;
pub use io_thread::IoThread;
pub use io_vector::{AlignedBuffer, IoBuffer, IoVector, IoVectorMut};
pub use join::{JoinError, JoinHandle};
pub use panics::PanicPolicy;
pub use ring::{RingFd, RingFile, WaitMode};
pub use simulation::{Simulation, SimulationOptions};
pub use thread_pool::{DEFAULT_MAX_THREADS, ThreadPool, ThreadPoolLimitsError};

#[doc(hidden)]
pub use tracing as __tracing;
