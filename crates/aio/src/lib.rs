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
//! is fenced in `node` (intrusive lists), `bottom_half`, `co` (tasks and wakers), `context` (its
//! own address), `debugger` (the section it lies in), `thread_pool` (job hand-off),
//! `ring` (requests the kernel looks at), `sync` (data behind locks), `io_vector`, `volatile` (memory that
//! guests share) and `sys` (system calls). Each of these begins with the argument why it is sound.
//! `handle`, `poll`, `shared`, `simulation` and the `models` for loom only push nodes to those lists and
//! run what they take off.

#[cfg(not(target_os = "linux"))]
compile_error!("coblk is for Linux: it needs epoll, eventfd and madvise as they are there");

mod atomic;
mod bottom_half;
mod co;
mod context;
mod debugger;
mod event_notifier;
mod fd_handler;
mod future;
mod handle;
mod io_thread;
mod io_vector;
#[cfg(all(test, loom))]
mod models;
pub mod net;
mod node;
mod panics;
mod plug;
mod poll;
mod polling;
mod ring;
mod shared;
mod simulation;
pub mod sync;
pub mod sys;
mod thread_pool;
mod timer;
mod trace;
mod turn;
mod volatile;

pub use bottom_half::{BottomHalf, RemoteBottomHalf};
pub use co::{Co, CoWaker, CoroutineInfo, NoteInfo, Wanted};
pub use context::{AioContext, AioContextBuilder};
pub use event_notifier::EventNotifier;
pub use fd_handler::{EventHandler, FdHandler, FdInterest, Readiness};
pub use future::{SpawnError, Spawned};
pub use handle::AioHandle;
pub use io_thread::IoThread;
pub use io_vector::{AlignedBuffer, IoBuffer, IoVector, IoVectorMut};
pub use panics::PanicPolicy;
pub use plug::Plug;
pub use polling::{BusyPoll, DEFAULT_POLL_MAX};
pub use ring::{RingFd, RingFile, WaitMode};
pub use simulation::{Simulation, SimulationOptions};
pub use thread_pool::{AioJob, DEFAULT_MAX_THREADS, PoolShare, ThreadPool, ThreadPoolLimitsError};
pub use timer::Timer;

#[doc(hidden)]
pub use tracing as __tracing;
