//! [`Memory`]: where payloads lie, and how much of it clients may hold.
//!
//! A small buffer is always to be had: each client has few requests in flight, so that is bounded.
//! Larger ones come out of an amount that all clients share, in all contexts ([`Budget`]). No client
//! waits for a part of it: one may hold half of what the others leave, and a payload that does not fit
//! goes in pieces (`pieces.rs`). So however many clients never take their replies, there is something
//! left for the next one, and a client that gets nothing more is slower but goes on.
//!
//! Buffers are used again. One that another client had is zeroed first: a driver may leave a buffer, or
//! a part of it, as it was (`null` without `read-zeroes` does), and its old contents then go to the
//! client as data. Buffers that a client has had itself come first, so that this costs a client alone
//! nothing. Each context has buffers of its own; all of them together keep no more than one would, and one
//! whose last client has gone keeps none.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::AlignedBuffer;

use crate::server::budget::Budget;

/// Address alignment, enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;
/// Buffers up to this length are not counted.
pub const SMALL: usize = 32 << 10;
/// Length of the pieces of a payload for which there is no room.
pub const PIECE: usize = 256 << 10;
/// Sizes are powers of two from 4 KiB to 32 MiB.
const CLASSES: usize = 14;
/// How many idle buffers are looked at for one that the client has had before.
const MAX_LOOKED_AT: usize = 64;

pub struct Memory {
    /// What larger buffers may still take, here and in other contexts.
    budget: Arc<Budget>,
    idle: RefCell<[Vec<Idle>; CLASSES]>,
    idle_bytes: Cell<usize>,
    /// Number of the next client.
    next: Cell<u64>,
    /// Called when a client got none.
    on_shortage: Box<dyn Fn()>,
}

/// A buffer that is not in use.
struct Idle {
    storage: AlignedBuffer,
    /// The client whose bytes are in it.
    client: u64,
}

/// What one client has of the memory. Copies are of the same client.
#[derive(Clone)]
pub struct Share(Rc<Holder>);

struct Holder {
    number: u64,
    /// Bytes of shared memory.
    held: Cell<usize>,
}

impl Share {
    /// Bytes of shared memory that the client holds.
    pub fn held(&self) -> usize {
        self.0.held.get()
    }
}

impl Memory {
    /// `on_shortage` is called each time a client gets none.
    pub fn new(budget: &Arc<Budget>, on_shortage: impl Fn() + 'static) -> Rc<Memory> {
        Rc::new(Memory {
            budget: Arc::clone(budget),
            idle: RefCell::default(),
            idle_bytes: Cell::new(0),
            next: Cell::new(0),
            on_shortage: Box::new(on_shortage),
        })
    }

    /// The share of a new client.
    pub fn share(&self) -> Share {
        let number = self.next.replace(self.next.get() + 1);
        Share(Rc::new(Holder { number, held: Cell::new(0) }))
    }

    /// A buffer of `len` bytes, at most 32 MiB. In it are zeroes, or bytes that this client has sent
    /// or been sent before. `None` if that is more than the client's share.
    ///
    /// # Errors
    /// If the system has no memory.
    pub fn take(self: &Rc<Self>, share: &Share, len: usize) -> io::Result<Option<Buffer>> {
        let size = ALIGNMENT << class_of(len);
        let counted = if size > SMALL { size } else { 0 };
        if counted > 0 && !self.budget.take(share.held(), counted) {
            (self.on_shortage)();
            return Ok(None);
        }
        let buffer = self.make(share, len, counted);
        if buffer.is_err() {
            self.budget.give_back(counted);
        }
        buffer.map(Some)
    }

    /// A buffer that is always to be had: up to [`SMALL`] for a request, and one of [`PIECE`] for a
    /// client.
    ///
    /// # Errors
    /// If the system has no memory.
    pub fn uncounted(self: &Rc<Self>, share: &Share, len: usize) -> io::Result<Buffer> {
        self.make(share, len, 0)
    }

    /// Lets unused buffers go that other contexts may have in their place.
    pub fn trim(&self) {
        self.let_go(|bytes| !self.budget.may_keep(bytes));
    }

    /// Lets all unused buffers go.
    pub fn clear(&self) {
        self.let_go(|_| true);
    }

    #[cfg(test)]
    pub fn idle_bytes(&self) -> usize {
        self.idle_bytes.get()
    }

    /// As long as there are too many bytes. Buffers of all sizes, the largest first.
    fn let_go(&self, are_too_many: impl Fn(usize) -> bool) {
        let mut idle = self.idle.borrow_mut();
        for class in idle.iter_mut().rev() {
            while are_too_many(self.idle_bytes.get())
                && let Some(idle) = class.pop()
            {
                self.idle_bytes.set(self.idle_bytes.get() - idle.storage.len());
            }
        }
    }

    /// The caller has taken `counted` of the budget.
    fn make(self: &Rc<Self>, share: &Share, len: usize, counted: usize) -> io::Result<Buffer> {
        let size = ALIGNMENT << class_of(len);
        let storage = match self.reuse(share.0.number, size) {
            Some(storage) => storage,
            None => AlignedBuffer::new(size, ALIGNMENT)?,
        };
        // The buffer's drop gives the share back.
        share.0.held.set(share.held() + counted);
        let storage = Some(storage);
        Ok(Buffer { memory: Rc::clone(self), share: share.clone(), counted, len, storage })
    }

    /// An idle buffer of this size: one that the client had, or the one that is idle for longest.
    fn reuse(&self, client: u64, size: usize) -> Option<AlignedBuffer> {
        let idle = &mut self.idle.borrow_mut()[class_of(size)];
        let recent = idle.len().saturating_sub(MAX_LOOKED_AT);
        let own = idle[recent..].iter().rposition(|idle| idle.client == client);
        let storage = match own {
            Some(place) => idle.remove(recent + place).storage,
            None if idle.is_empty() => return None,
            None => {
                let mut storage = idle.swap_remove(0).storage;
                // All of it: the client may get a longer part of it next time.
                storage.fill(0);
                storage
            }
        };
        self.idle_bytes.set(self.idle_bytes.get() - size);
        Some(storage)
    }
}

fn class_of(len: usize) -> usize {
    let pages = len.div_ceil(ALIGNMENT).max(1).next_power_of_two();
    pages.trailing_zeros() as usize
}

/// Memory for one payload. Dropping it gives it back.
pub struct Buffer {
    memory: Rc<Memory>,
    share: Share,
    counted: usize,
    len: usize,
    /// Unset only while it is dropped.
    storage: Option<AlignedBuffer>,
}

impl Buffer {
    /// Whether it takes of the memory that clients share.
    pub fn is_shared(&self) -> bool {
        self.counted > 0
    }

    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.storage.as_ref().map_or(&[], |memory| &memory[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.storage.as_mut().map_or(&mut [], |memory| &mut memory[..self.len])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Holder { number, held } = &*self.share.0;
        if let Some(storage) = self.storage.take() {
            let idle_bytes = self.memory.idle_bytes.get() + storage.len();
            if self.memory.budget.may_keep(idle_bytes) {
                self.memory.idle_bytes.set(idle_bytes);
                let class = class_of(storage.len());
                self.memory.idle.borrow_mut()[class].push(Idle { storage, client: *number });
            }
        }
        if self.counted > 0 {
            held.set(held.get() - self.counted);
            self.memory.budget.give_back(self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::budget::SHARED;

    #[test]
    fn every_payload_has_a_class() {
        assert_eq!([0, 1, 4096, 4097, 32 << 20].map(class_of), [0, 0, 0, 1, CLASSES - 1]);
    }

    #[test]
    fn a_client_gets_its_own_buffers_back_and_those_of_others_zeroed() {
        let memory = Memory::new(&Arc::default(), || ());
        let (one, other) = (memory.share(), memory.share());
        let take = |share: &Share, len| memory.take(share, len).unwrap().unwrap();
        let (mut first, mut second) = (take(&one, 4096), take(&other, 4096));
        first.fill(1);
        second.fill(2);
        let (at_first, at_second) = (first.as_ptr(), second.as_ptr());
        drop((first, second));
        // As they were, and not the one that was given back last.
        let (first, second) = (take(&one, 100), take(&other, 4096));
        assert_eq!((first.as_ptr(), second.as_ptr()), (at_first, at_second));
        assert!(*first == [1; 100] && *second == [2; 4096]);
        drop((first, second));
        // Of the other's, all is zeroed, and not just the part asked for.
        let (first, second) = (take(&one, 4096), take(&one, 100));
        assert_eq!((first.as_ptr(), second.as_ptr()), (at_first, at_second));
        assert!(*first == [1; 4096]);
        drop(second);
        assert!(*take(&one, 4096) == [0; 4096]);
    }

    #[test]
    fn a_share_is_half_of_what_is_left_and_comes_back() {
        let short = Rc::new(Cell::new(0));
        let told = Rc::clone(&short);
        let budget = Arc::default();
        let memory = Memory::new(&budget, move || told.set(told.get() + 1));
        let share = memory.share();
        let held = memory.take(&share, SHARED / 4).unwrap();
        assert!(held.is_some() && share.held() == SHARED / 4);
        assert!(memory.take(&share, SHARED / 4).unwrap().is_none());
        assert_eq!(short.get(), 1);
        assert!(memory.take(&share, SMALL).unwrap().is_some(), "small ones are not counted");
        drop(held);
        assert!(share.held() == 0 && budget.left() == SHARED);
    }

    #[test]
    fn unused_buffers_are_as_few_as_all_contexts_together_may_keep() {
        let budget = Arc::<Budget>::default();
        let memory = Memory::new(&budget, || ());
        let share = memory.share();
        let fill = || {
            let held = [16 << 20, 8 << 20, 8 << 20].map(|len| memory.take(&share, len).unwrap());
            assert!(held.iter().all(Option::is_some));
        };
        fill();
        assert_eq!(memory.idle_bytes.get(), 32 << 20);
        let ctx = coblk_aio::AioContext::for_test().unwrap();
        let others: Vec<_> = (0..2).map(|_| ctx.bottom_half("attend", |_| ())).collect();
        (0..).zip(&others).for_each(|(number, other)| budget.join(number, other.remote()));
        memory.trim();
        assert_eq!(memory.idle_bytes.get(), 16 << 20);
        fill();
        assert_eq!(memory.idle_bytes.get(), 16 << 20);
        budget.leave(0);
        fill();
        assert_eq!(memory.idle_bytes.get(), 32 << 20);
        memory.clear();
        assert_eq!(memory.idle_bytes.get(), 0);
    }
}
