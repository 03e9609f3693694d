//! Stackful coroutines for block I/O: pooled stacks, wake queues, QEMU's enter and yield.
//!
//! A [`Coroutine`] runs a closure on a stack of its own. [`Coroutine::resume`] runs it until it suspends or
//! terminates; [`Suspender::suspend`], called by the closure itself however deep in its calls, goes back to whoever
//! resumed it. Code that may suspend takes the [`Suspender`] as a parameter, so which code may is visible in its
//! signature.
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
//! A coroutine stays on the thread that created it: neither its handle nor its suspender can be sent to another one.
//! What crosses threads is a wake-up, and that is the business of the event loop above this crate.
//!
//! # Where unsafe code is
//!
//! In `switch/` (the jump from stack to stack), in `stack/` (the memory), in `control.rs` and `entry.rs` (the block
//! that handles point to, the closure it runs) and in `pool.rs`. The other files are safe code, but for
//! [`Coroutine::new_unchecked`], whose contract is its caller's.

mod control;
mod coroutine;
mod current;
mod entry;
mod pool;
mod stack;
mod suspender;
mod switch;
mod wake_queue;

pub use coroutine::{Coroutine, CoroutineState};
pub use current::{current, in_coroutine};
pub use entry::is_forced_unwind;
pub use suspender::Suspender;
