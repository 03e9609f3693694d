//! The jump from one stack to another: what a switch backend must supply.
//!
//! A backend is a module with one type, `Context`: a stack that runs one function, which never
//! returns.
//!
//! - `unsafe fn new(stack: StackRange, entry: Entry, arg: *const ()) -> Context` prepares
//!   `entry(arg)` to run on that stack. Nothing runs yet. The context may be moved until its first
//!   `resume`.
//! - `unsafe fn resume(&self)` goes to the context: to `entry` the first time, back from its
//!   `suspend` afterwards. Returns when the context calls `suspend`. Never unwinds.
//! - `unsafe fn suspend(&self)` is called on the context's own stack, and goes back to the `resume`
//!   that came last. Returns at the next `resume`.
//! - `const BACKEND: u32` and `const SAVED_OFFSET: usize` tell a debugger where a suspended context
//!   keeps its registers; see `coroutine/debug_layout.rs`.
//! - Dropping a `Context` forgets its frames; nothing runs, and nothing on its stack is touched.
//!
//! # Safety terms
//!
//! The caller of these functions answers for:
//!
//! - `new`: the stack is mapped, writable, aligned to 16 bytes at its base, and used by nothing else
//!   for as long as the context is resumed; `arg` is what `entry` asks for; `entry` neither returns nor unwinds.
//! - `resume`: the context is not running, nor waiting for one that it resumed. It is called on the
//!   thread that the context's frames belong to. A context whose frames hold nothing that belongs
//!   to a thread may change threads while it is suspended.
//! - `suspend`: this context runs now.
//!
//! In return a backend keeps all registers that the platform's calling convention asks a callee to
//! keep, and lets a panic be thrown and caught on the context's stack. It needs no unwinding of its
//! own: to unwind a context's frames this crate resumes it, and has the suspended function throw.

#[cfg(not(coblk_ucontext))]
mod corosensei;
#[cfg(coblk_ucontext)]
mod ucontext;

#[cfg(not(coblk_ucontext))]
pub(crate) use corosensei::Context;
#[cfg(coblk_ucontext)]
pub(crate) use ucontext::Context;

/// What a context runs. It must neither return nor unwind.
pub(crate) type Entry = unsafe fn(*const ()) -> !;
