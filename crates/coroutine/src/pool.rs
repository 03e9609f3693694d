//! Control blocks, with their stacks, that wait for their next run.

use std::cell::Cell;
use std::io;
use std::ptr::{self, NonNull};

use crate::control::Control;

/// A block that runs nothing, and an id for its next run.
#[inline]
pub(crate) fn acquire() -> io::Result<(NonNull<Control>, u64)> {
    LOCAL.with(|local| {
        let id = local.next_id.get();
        local.next_id.set(id + 1);
        match NonNull::new(local.head.get().cast_mut()) {
            Some(control) => {
                // SAFETY: blocks in the pool are valid.
                local.head.set(unsafe { control.as_ref() }.next());
                Ok((control, id))
            }
            None => Ok((Control::allocate()?, id)),
        }
    })
}

/// Takes back a block.
///
/// # Safety
/// It has terminated, and nobody points to it any more.
#[inline]
pub(crate) unsafe fn release(control: NonNull<Control>) {
    LOCAL.with(|local| {
        // SAFETY: by the caller it is valid.
        unsafe { control.as_ref() }.set_next(local.head.get());
        local.head.set(control.as_ptr());
    });
}

struct Local {
    head: Cell<*const Control>,
    next_id: Cell<u64>,
}

thread_local! {
    static LOCAL: Local = const { Local { head: Cell::new(ptr::null()), next_id: Cell::new(1) } };
}
