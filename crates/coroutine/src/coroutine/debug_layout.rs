//! Where a debugger finds what it shows of a coroutine; see `docs/debugging.md`.

use super::control::Control;
use crate::stack::Stack;
use crate::switch::Context;

/// Offsets from a coroutine's control block, to which its handle is a pointer; in bytes. For the
/// event loop's map for debuggers, and no part of the stable interface.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ControlLayout {
    /// One byte, a [`CoroutineState`](crate::CoroutineState).
    pub state: u32,
    /// 64 bits.
    pub id: u32,
    /// A `&'static str`.
    pub name: u32,
    /// The address of the stack's lowest byte.
    pub stack_bottom: u32,
    /// From there to its end, in bytes: one word.
    pub stack_length: u32,
    /// Which backend switches stacks, 1: corosensei, 2: ucontext.
    pub backend: u32,
    /// What the backend saves: corosensei a stack pointer in one of these words, ucontext a
    /// `ucontext_t` at the beginning.
    pub saved: u32,
    /// How long that is.
    pub saved_bytes: u32,
}

impl ControlLayout {
    /// That of this build.
    pub const THIS: ControlLayout = ControlLayout {
        state: Control::STATE_OFFSET as u32,
        id: Control::ID_OFFSET as u32,
        name: Control::NAME_OFFSET as u32,
        stack_bottom: (Control::STACK_OFFSET + Stack::BOTTOM_OFFSET) as u32,
        stack_length: (Control::STACK_OFFSET + Stack::LENGTH_OFFSET) as u32,
        backend: Context::BACKEND,
        saved: (Control::CONTEXT_OFFSET + Context::SAVED_OFFSET) as u32,
        saved_bytes: (size_of::<Context>() - Context::SAVED_OFFSET) as u32,
    };
}
