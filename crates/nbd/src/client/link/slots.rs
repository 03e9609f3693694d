//! [`Slots`]: the requests of a link that are not answered.

use coblk_aio::CoWaker;
use smallvec::SmallVec;

use super::receive::MAX_COPIED;
use crate::protocol::CMD_READ;
use crate::protocol::request::Request;

/// Requests of one link in flight; others wait. A server that takes fewer leaves the rest in the socket.
pub const MAX_REQUESTS: usize = 64;

/// One request, as its answers are checked by it.
#[derive(Clone, Copy)]
pub struct Asked {
    pub cookie: u64,
    pub command: u16,
    /// A read whose data is not copied.
    pub is_long_read: bool,
}

struct Slot {
    asked: Asked,
    /// While its coroutine waits.
    waker: Option<CoWaker>,
}

pub struct Slots {
    slots: [Option<Slot>; MAX_REQUESTS],
    /// A bit for each free one.
    free: u64,
    /// How many requests there were.
    serial: u64,
    long_reads: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { slots: [const { None }; MAX_REQUESTS], free: u64::MAX, serial: 0, long_reads: 0 }
    }
}

impl Slots {
    pub fn len(&self) -> usize {
        self.free.count_zeros() as usize
    }

    /// Reads in flight whose data is not copied.
    pub fn long_reads(&self) -> usize {
        self.long_reads
    }

    pub fn is_full(&self) -> bool {
        self.free == 0
    }

    /// Gives a request a cookie that no other has had: its place, and a serial number. There is room.
    pub fn enter(&mut self, request: &mut Request) -> usize {
        let index = self.free.trailing_zeros() as usize % MAX_REQUESTS;
        self.free &= !(1 << index);
        self.serial += 1;
        request.cookie = self.serial * MAX_REQUESTS as u64 + index as u64;
        let is_long_read = request.command == CMD_READ && request.length > MAX_COPIED as u64;
        self.long_reads += usize::from(is_long_read);
        let asked = Asked { cookie: request.cookie, command: request.command, is_long_read };
        self.slots[index] = Some(Slot { asked, waker: None });
        index
    }

    pub fn leave(&mut self, index: usize) -> Option<CoWaker> {
        self.free |= 1 << index;
        let slot = self.slots[index].take()?;
        self.long_reads -= usize::from(slot.asked.is_long_read);
        slot.waker
    }

    /// The request with a cookie, and its place.
    pub fn find(&self, cookie: u64) -> Option<(usize, Asked)> {
        let index = (cookie % MAX_REQUESTS as u64) as usize;
        let asked = self.slots[index].as_ref()?.asked;
        (asked.cookie == cookie).then_some((index, asked))
    }

    /// The cookie of the newest request, in flight or not.
    pub fn newest_cookie(&self) -> u64 {
        self.serial * MAX_REQUESTS as u64 + (MAX_REQUESTS as u64 - 1)
    }

    /// Whether a request is in flight that is not newer than that with this cookie.
    pub fn has_one_up_to(&self, cookie: u64) -> bool {
        self.slots.iter().flatten().any(|slot| slot.asked.cookie <= cookie)
    }

    pub fn set_waker(&mut self, index: usize, waker: Option<CoWaker>) -> Option<CoWaker> {
        self.slots[index].as_mut().and_then(|slot| std::mem::replace(&mut slot.waker, waker))
    }

    pub fn take_waker(&mut self, index: usize) -> Option<CoWaker> {
        self.set_waker(index, None)
    }

    /// How to resume all that wait, oldest first.
    pub fn take_wakers(&mut self) -> SmallVec<[CoWaker; 4]> {
        let mut waiting: SmallVec<[(u64, CoWaker); 4]> = SmallVec::new();
        for slot in self.slots.iter_mut().flatten() {
            if let Some(waker) = slot.waker.take() {
                waiting.push((slot.asked.cookie, waker));
            }
        }
        waiting.sort_unstable_by_key(|(cookie, _)| *cookie);
        waiting.into_iter().map(|(_, waker)| waker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_requests_have_one_cookie() {
        let mut slots = Slots::default();
        let mut request = Request { flags: 0, command: 0, cookie: 0, offset: 0, length: 1 };
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..1000 {
            let index = slots.enter(&mut request);
            assert!(seen.insert(request.cookie));
            assert_eq!(slots.find(request.cookie).map(|(index, _)| index), Some(index));
            let old = request.cookie;
            if round % 3 > 0 {
                slots.leave(index);
                assert!(slots.find(old).is_none());
            }
            if slots.is_full() {
                (0..MAX_REQUESTS).for_each(|index| drop(slots.leave(index)));
            }
        }
    }
}
