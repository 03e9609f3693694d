//! Files that rings know by a number, so that the kernel looks up no descriptor for a request.
//!
//! A [`RingFile`] has a number of its own among those of the process, and that is its slot in each
//! ring. A ring takes it in when it first meets it, and gives it back when the file goes: at once
//! on the ring's own thread, and from elsewhere in the next turn of the ring's loop.
//!
//! Numbers are used again; tickets never are. A slot's ticket says whose it is, so a file that comes
//! before the last one with its number was given back takes the slot over, and that one's return
//! then finds another ticket there and leaves it alone.
//!
//! A request borrows its file until it has completed, so the file does not go, and its slot does not
//! change hands, while a request is queued or with the kernel.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::{self, Rc};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use slab::Slab;

use super::Ring;
use crate::home::Home;
use crate::loom::lock;
use crate::run_list;

/// Slots of a ring. The first number that the kernel grants: it wants no more than the process may
/// have descriptors.
const SLOTS: [u32; 2] = [1024, 64];

/// The ticket in an empty slot.
const NOBODY: u64 = 0;

/// The numbers in use.
static NUMBERS: Mutex<Slab<()>> = Mutex::new(Slab::new());

thread_local! {
    /// The rings of this thread.
    static RINGS: RefCell<Vec<rc::Weak<Ring>>> = const { RefCell::new(Vec::new()) };
}

/// A file for requests to rings ([`Co::ring_preadv`](crate::Co::ring_preadv)). Each ring that it is
/// used on registers it, if it has a slot left, and the kernel then finds it without looking up,
/// and counting references to, a descriptor. Without a slot requests use the descriptor.
///
/// Any thread may have and drop it. What a ring has registered stays open in the kernel until that
/// ring gives it back: when this is dropped on the ring's thread, at once; when on another, in the
/// next turn of the ring's loop. Of a process that was killed it may take the kernel some 100 ms.
pub struct RingFile {
    file: File,
    number: usize,
    ticket: u64,
    /// The contexts whose rings have taken it in. Nothing of one that has ended is kept for it.
    homes: Mutex<Vec<Weak<Home>>>,
}

impl RingFile {
    /// A file that no ring has met.
    pub fn new(file: File) -> RingFile {
        static NEXT_TICKET: AtomicU64 = AtomicU64::new(NOBODY + 1);
        RingFile {
            file,
            number: lock(&NUMBERS).insert(()),
            ticket: NEXT_TICKET.fetch_add(1, Ordering::Relaxed),
            homes: Mutex::default(),
        }
    }
}

impl fmt::Debug for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RingFile").field(&self.file).finish()
    }
}

impl AsFd for RingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for RingFile {
    fn drop(&mut self) {
        let (number, ticket) = (self.number, self.ticket);
        let homes = std::mem::take(&mut *lock(&self.homes));
        let homes = homes.iter().filter_map(Weak::upgrade);
        // In a forked process a ring is the parent's as well.
        for home in homes.filter(|home| home.is_own_process()) {
            if home.is_home_thread() {
                unregister_here(number, ticket);
            } else {
                let node = run_list::boxed(move |_| {
                    unregister_here(number, ticket);
                    true
                });
                // SAFETY: a new node, which the list owns from here on; its closure is `Send`.
                unsafe { home.schedule(node) };
            }
        }
        lock(&NUMBERS).remove(number);
    }
}

/// Gives a file back, on whichever ring of this thread has it.
fn unregister_here(number: usize, ticket: u64) {
    // At the end of a thread the list may be gone before the file.
    let _ = RINGS.try_with(|rings| {
        rings
            .borrow()
            .iter()
            .filter_map(rc::Weak::upgrade)
            .for_each(|it| it.unregister(number, ticket));
    });
}

/// What a request to a ring is made on.
#[derive(Clone, Copy, Debug)]
pub enum RingFd<'a> {
    /// A descriptor.
    Plain(BorrowedFd<'a>),
    /// A file that the ring may know by a number.
    Registered(&'a RingFile),
}

impl<'a> From<BorrowedFd<'a>> for RingFd<'a> {
    fn from(fd: BorrowedFd<'a>) -> RingFd<'a> {
        RingFd::Plain(fd)
    }
}

impl<'a> From<&'a RingFile> for RingFd<'a> {
    fn from(file: &'a RingFile) -> RingFd<'a> {
        RingFd::Registered(file)
    }
}

impl<'a> RingFd<'a> {
    /// The descriptor, for callers without a ring.
    pub(crate) fn plain(self) -> BorrowedFd<'a> {
        match self {
            RingFd::Plain(fd) => fd,
            RingFd::Registered(file) => file.as_fd(),
        }
    }
}

/// The slots of one ring.
#[derive(Default)]
pub(super) struct Slots {
    /// By slot, the ticket of the file in it. Made for the first file; empty if the kernel has none
    /// to give.
    tickets: OnceCell<Box<[Cell<u64>]>>,
    /// The kernel has refused a file; it is not asked again.
    refused: Cell<bool>,
}

impl Slots {
    #[inline]
    fn slot(&self, file: &RingFile) -> Option<u32> {
        let ticket = self.tickets.get()?.get(file.number)?;
        (ticket.get() == file.ticket).then_some(file.number as u32)
    }
}

impl Ring {
    /// From here on files that go are given back.
    pub(super) fn register_on_thread(ring: &Rc<Ring>) {
        RINGS.with_borrow_mut(|rings| {
            rings.retain(|it| it.strong_count() > 0);
            rings.push(Rc::downgrade(ring));
        });
    }

    /// The slot of a file, which stays its own for as long as it is borrowed. Without one the
    /// descriptor does.
    #[inline]
    pub(crate) fn slot(&self, file: &RingFile, home: &Arc<Home>) -> Option<u32> {
        self.slots.slot(file).or_else(|| self.register(file, home))
    }

    #[cold]
    fn register(&self, file: &RingFile, home: &Arc<Home>) -> Option<u32> {
        if self.slots.refused.get() {
            return None;
        }
        let tickets = self.slots.tickets.get_or_init(|| self.new_slots());
        let place = tickets.get(file.number)?;
        // Before the kernel has it: whatever happens, the drop of the file comes by here.
        let mut homes = lock(&file.homes);
        homes.retain(|home| home.strong_count() > 0);
        homes.push(Arc::downgrade(home));
        drop(homes);
        let slot = file.number as u32;
        let uring = self.uring.borrow();
        match uring.submitter().register_files_update(slot, &[file.as_fd().as_raw_fd()]) {
            Ok(_) => {
                place.set(file.ticket);
                Some(slot)
            }
            Err(error) => {
                tracing::debug!(%error, "io_uring: no more files are registered");
                self.slots.refused.set(true);
                None
            }
        }
    }

    fn new_slots(&self) -> Box<[Cell<u64>]> {
        let uring = self.uring.borrow();
        let granted = |slots: &u32| {
            let answer = uring.submitter().register_files_sparse(*slots);
            let told = |error: &_| tracing::debug!(slots, %error, "io_uring: no slots for files");
            answer.inspect_err(told).is_ok()
        };
        let slots = SLOTS.into_iter().find(granted).unwrap_or(0);
        (0..slots).map(|_| Cell::new(NOBODY)).collect()
    }

    /// The file is going. Without effect if it is not here.
    fn unregister(&self, number: usize, ticket: u64) {
        let Some(place) = self.slots.tickets.get().and_then(|tickets| tickets.get(number)) else {
            return;
        };
        if place.get() != ticket {
            return;
        }
        place.set(NOBODY);
        let empty = self.uring.borrow().submitter().register_files_update(number as u32, &[-1]);
        if let Err(error) = empty {
            // It stays open until the slot's next file, or the ring's end.
            tracing::warn!(%error, "io_uring: a file is not given back");
        }
    }

    /// Gives all files back. The kernel would, but in its own time.
    pub(super) fn unregister_all(&self) {
        if self.slots.tickets.get().is_some_and(|tickets| !tickets.is_empty())
            && let Err(error) = self.uring.borrow().submitter().unregister_files()
        {
            tracing::warn!(%error, "io_uring: files are not given back");
        }
    }
}

#[cfg(test)]
mod tests;
