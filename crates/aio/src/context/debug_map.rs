//! What a debugger needs to find the contexts of a process and their coroutines.
//!
//! [`MAP`] is read from outside, by `docs/gdb/coblk.py`, in a live process or in a core file. It
//! lies in a section of its own, which is found without symbols, and it says where fields are, so a
//! build without type information will do (releases have line tables only), and no layout is spelled
//! out twice. What it costs is one lock when a context is made and one when it ends.
//!
//! No pointer is followed here: addresses are only written down, and only the debugger follows them.
//! What is unsafe is to say in which section the map lies.

use std::mem::offset_of;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use coblk_coroutine::ControlLayout;

use super::Inner;
use crate::co::{Task, TaskLayout};
use crate::loom::lock;

/// Read by a debugger. A change of any field takes a new number in `title`, here and there.
#[repr(C)]
struct Map {
    /// Two words. Which of them is the length, and not the address, is seen by its value.
    title: &'static str,
    contexts: AtomicPtr<Entry>,
    count: AtomicUsize,
    context: ContextLayout,
    task: TaskLayout,
    control: ControlLayout,
}

/// One context.
#[repr(C)]
struct Entry {
    /// Address of the [`Inner`].
    inner: usize,
    /// UTF-8.
    name: usize,
    name_bytes: usize,
}

/// Offsets from a context, in bytes.
#[repr(C)]
struct ContextLayout {
    /// Its own address, by which it is recognised.
    me: u32,
    /// The first task of the list of live ones, or null.
    first_task: u32,
}

// SAFETY: the section has no other user, so its kind is that of this static, which is written to. What
// other copies of this crate put there lies beside it.
#[unsafe(link_section = ".coblk_map")]
#[used]
static MAP: Map = Map {
    title: "coblk map 1",
    contexts: AtomicPtr::new(std::ptr::null_mut()),
    count: AtomicUsize::new(0),
    context: ContextLayout {
        me: offset_of!(Inner, me) as u32,
        first_task: Inner::FIRST_TASK_OFFSET as u32,
    },
    task: Task::LAYOUT,
    control: ControlLayout::THIS,
};

/// What `MAP.contexts` points to. The lock is for us; a debugger looks without.
static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// A context has been made, at that address and for as long as it is not
/// [`unregistered`](unregister); so is its name.
pub(crate) fn register(inner: usize, name: &str) {
    let entry = Entry { inner, name: name.as_ptr().addr(), name_bytes: name.len() };
    change(|entries| entries.push(entry));
}

/// A context is about to be freed.
pub(crate) fn unregister(inner: usize) {
    change(|entries| entries.retain(|entry| entry.inner != inner));
}

fn change(what: impl FnOnce(&mut Vec<Entry>)) {
    let mut entries = lock(&ENTRIES);
    // A debugger that stops us in here sees no context rather than a wrong one.
    MAP.count.store(0, Ordering::SeqCst);
    what(&mut entries);
    MAP.contexts.store(entries.as_mut_ptr(), Ordering::SeqCst);
    MAP.count.store(entries.len(), Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AioContext;

    fn names() -> Vec<String> {
        let entries = ENTRIES.lock().unwrap();
        assert_eq!(MAP.count.load(Ordering::SeqCst), entries.len());
        assert_eq!(MAP.contexts.load(Ordering::SeqCst).cast_const(), entries.as_ptr());
        entries.iter().map(|entry| format!("{} {}", entry.inner, entry.name_bytes)).collect()
    }

    #[test]
    fn a_context_is_on_the_map_while_it_lives() {
        // A name so long that no neighbour's context is mistaken for it.
        let name = "n".repeat(1234);
        let ours = || names().into_iter().filter(|it| it.ends_with(" 1234")).count();
        let ctx = AioContext::test_builder().name(&name).build().unwrap();
        assert_eq!(ours(), 1);
        let moved = Box::new(ctx);
        assert_eq!(ours(), 1);
        drop(moved);
        assert_eq!(ours(), 0);
    }
}
