//! The device's own copy of the chains that are in flight in a packed ring: [`Chains`].
//!
//! Used descriptors overwrite the ring in the order of completion, so the descriptors of a chain may be gone
//! before it is answered. The copy says how long a chain was, which is how far its answer moves both sides on,
//! and what it was, for requests that are served again. It is laid out as the log of requests in flight is,
//! with the same indices, so that a log is written and never read while the queue runs.

use crate::chain::Descriptor;

/// One descriptor, and the next one of its chain or of the free list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) descriptor: Descriptor,
    pub(crate) next: u16,
}

/// One buffer id: where its chain is, if it is in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// Descriptors; 0 if it is not in flight.
    pub(crate) count: u16,
}

/// Chains in flight, by buffer id.
#[derive(Clone, Debug)]
pub(crate) struct Chains {
    pub(crate) entries: Box<[Entry]>,
    heads: Box<[Head]>,
    /// The first entry that is free.
    pub(crate) free: u16,
    num_free: u16,
}

/// A chain that is being copied. It is in flight once it is [committed](Chains::commit).
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    head: Head,
    /// Where the next descriptor goes.
    at: u16,
}

impl Draft {
    pub(crate) fn count(&self) -> u16 {
        self.head.count
    }
}

impl Chains {
    /// None is in flight in a ring of `size` entries.
    pub(crate) fn new(size: u16) -> Chains {
        let descriptor = Descriptor::default();
        Chains {
            entries: (1..=size).map(|next| Entry { descriptor, next }).collect(),
            heads: vec![Head::default(); usize::from(size)].into(),
            free: 0,
            num_free: size,
        }
    }

    /// Descriptors that are not in flight.
    pub(crate) fn num_free(&self) -> u16 {
        self.num_free
    }

    #[inline]
    pub(crate) fn begin(&self) -> Draft {
        Draft { head: Head { first: self.free, ..Head::default() }, at: self.free }
    }

    /// Adds a descriptor; false if all are in flight.
    #[inline]
    #[must_use]
    pub(crate) fn push(&mut self, draft: &mut Draft, descriptor: Descriptor) -> bool {
        if draft.head.count >= self.num_free {
            return false;
        }
        let Some(entry) = self.entries.get_mut(usize::from(draft.at)) else { return false };
        entry.descriptor = descriptor;
        draft.head.last = draft.at;
        draft.head.count += 1;
        draft.at = entry.next;
        true
    }

    /// The chain is in flight from now on. The id is one that [`is_free`](Self::is_free).
    #[inline]
    pub(crate) fn commit(&mut self, draft: Draft, id: u16) {
        self.heads[usize::from(id)] = draft.head;
        self.free = draft.at;
        self.num_free -= draft.head.count;
    }

    /// Whether no chain with this id, which must be below the size, is in flight.
    #[inline]
    pub(crate) fn is_free(&self, id: u16) -> bool {
        self.heads[usize::from(id)].count == 0
    }

    /// The chain with this id, if it is in flight.
    #[inline]
    pub(crate) fn head(&self, id: u16) -> Option<Head> {
        self.heads.get(usize::from(id)).copied().filter(|head| head.count > 0)
    }

    /// The descriptors of a chain, with their indices.
    pub(crate) fn descriptors(&self, head: Head) -> impl Iterator<Item = (u16, Entry)> {
        let mut at = head.first;
        (0..head.count).map_while(move |_| {
            let (index, entry) = (at, *self.entries.get(usize::from(at))?);
            at = entry.next;
            Some((index, entry))
        })
    }

    /// A chain is not in flight any more. Returns how many descriptors it has had.
    #[inline]
    pub(crate) fn release(&mut self, id: u16) -> Option<Head> {
        let head = self.heads.get_mut(usize::from(id)).filter(|head| head.count > 0)?;
        let released = std::mem::take(head);
        self.entries[usize::from(released.last)].next = self.free;
        self.free = released.first;
        self.num_free += released.count;
        Some(released)
    }

    /// Takes a chain over from a log, which has checked that its entries are free and its id unused. The free
    /// list is what [`set_free`](Self::set_free) says afterwards.
    pub(super) fn adopt(&mut self, id: u16, head: Head) {
        self.heads[usize::from(id)] = head;
        self.num_free -= head.count;
    }

    pub(super) fn set_free(&mut self, free: u16) {
        self.free = free;
    }
}
