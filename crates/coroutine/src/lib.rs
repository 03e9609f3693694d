//! Stackful coroutines for block I/O: pooled stacks, wake queues, QEMU's enter and yield.
//!
//! A [`Coroutine`] runs a closure on a stack of its own. [`Coroutine::resume`] runs it until it
//! suspends or terminates; [`Suspender::suspend`], called by the closure itself however deep in its
//! calls, goes back to the resumer. Code that may suspend takes the [`Suspender`] as a
//! parameter, so which code may is visible in its signature.
//!
//! ```
//! use coblk_coroutine::{Coroutine, CoroutineState};
//!
//! let greeter = Coroutine::new("greeter", |suspender| {
//!     println!("hello");
//!     suspender.suspend();
//!     println!("world");
//! });
//! // Nothing has run yet.
//! assert_eq!(greeter.state(), CoroutineState::Created);
//! assert_eq!(greeter.resume(), CoroutineState::Suspended); // prints "hello"
//! assert_eq!(greeter.resume(), CoroutineState::Terminated); // prints "world"
//! ```
//!
//! # Threads
//!
//! A coroutine stays on the thread that created it: neither its handle nor its suspender can be
//! sent to another one. What crosses threads is a wake-up, and that is the business of the event
//! loop above this crate.
//!
//! # Stacks
//!
//! A stack is a megabyte of address space ([`configure_stacks`]) of which only what is touched
//! costs memory: a suspended coroutine with shallow frames is one page, in which its control block
//! lies too. When a coroutine has ended its stack is kept for the next one, in a pool that is
//! bounded ([`set_pool_limit`]) and can be emptied ([`trim_pool`]). A coroutine that runs out of
//! stack ends the process, with a line on standard error that names it; for that a handler for
//! SIGSEGV is installed with the first coroutine, which passes on all other faults.
//!
//! # Panics
//!
//! A panic in a coroutine goes on in its resumer, and the stack is used again. A coroutine that is
//! dropped while it is suspended is unwound, so its destructors run ([`Coroutine::unwind`]). Both
//! need `panic = "unwind"`.
//!
//! So a coroutine must not be suspended below a frame that cannot be unwound, such as one of C that
//! has called back.
//!
//! While a destructor is suspended that runs because of a panic, [`std::thread::panicking`] is true
//! for whatever else runs on that thread.
//!
//! # Where unsafe code is
//!
//! - `switch/`: the jump from stack to stack
//! - `stack/`: memory, guard pages, the signal handler
//! - `coroutine/`: in `control.rs` and `entry.rs` the block that handles point to, and the closure it
//!   runs; in the other files only where a pointer to a block becomes a reference or a handle
//! - `pool/`: ownership of idle blocks

#![warn(missing_debug_implementations)]

#[cfg(not(target_os = "linux"))]
compile_error!("coblk is for Linux: it needs epoll, eventfd and madvise as they are there");

mod coroutine;
mod pool;
mod stack;
mod switch;

#[doc(hidden)]
pub use coroutine::ControlLayout;
pub use coroutine::{
    Coroutine, CoroutineState, Suspender, current, in_coroutine, is_forced_unwind, outside,
    serve_woken,
};
pub use pool::{
    PoolStats, creation_mark, ensure_stack, has_idle_memory, pool_stats, release_idle_memory,
    set_pool_limit, trim_pool,
};
pub use stack::{GuardKind, StackConfig, StackConfigError, configure_stacks};
