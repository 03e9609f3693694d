//! What the messages of the rings say of packed ones: more of [`Session`] and [`Vring`].
//!
//! A place in a packed ring is an index with a wrap counter in bit 15. SET_VRING_BASE and GET_VRING_BASE have
//! two of them: where the device takes the next descriptor, and above it where it marks the next one as used.
//! Some front ends leave the second one out, as it is the same if all that was taken was answered.

use coblk_virtio_blk::{PACKED_START, StoppedAt, feature};
use vhost::vhost_user::{Error, Result};

use crate::memory::Shown;
use crate::session::Session;
use crate::vring::Vring;

impl Shown {
    pub(crate) fn is_packed(&self) -> bool {
        self.packed == Some(true)
    }
}

impl Vring {
    /// Where a front end says that the queue begins.
    pub(crate) fn stopped_at(&self, base: u32, shown: &Shown) -> Result<StoppedAt> {
        let (next_index, high) = (base as u16, (base >> 16) as u16);
        if !shown.is_packed() {
            return match high {
                0 => Ok(StoppedAt { next_index, next_used: next_index }),
                _ => Err(Error::InvalidOperation("no queue can begin there")),
            };
        }
        let next_used = match (high, self.left_at) {
            // Where it was left, as a front end says it that leaves the second place out.
            (0, Some(left_at)) if left_at as u16 == next_index => (left_at >> 16) as u16,
            (0, _) => next_index,
            _ => high,
        };
        if next_used != next_index && shown.inflight.is_none() {
            let unknown = "requests in flight in a packed queue, without a log of them";
            return Err(Error::InvalidOperation(unknown));
        }
        Ok(StoppedAt { next_index, next_used })
    }

    /// Where a front end is told that the queue goes on.
    pub(crate) fn base_for_front_end(&self, shown: &Shown) -> u32 {
        if shown.is_packed() {
            return self.packed_place();
        }
        self.base.map_or(0, |base| u32::from(base.next_index))
    }

    fn packed_place(&self) -> u32 {
        let start = StoppedAt { next_index: PACKED_START, next_used: PACKED_START };
        let StoppedAt { next_index, next_used } = self.base.unwrap_or(start);
        u32::from(next_index) | u32::from(next_used) << 16
    }

    /// What a new ring differs in from the one before: the used index. A packed one has none in memory, so
    /// that it is known by what the front end says. With requests in flight both places count: a new ring may
    /// begin where the device has come to in the old one.
    pub(crate) fn place(&self, shown: &Shown, used_ring: u64) -> Result<u32> {
        match shown.is_packed() {
            true => Ok(self.packed_place()),
            false => shown.memory.used_index(used_ring).map(u32::from),
        }
    }
}

impl Session {
    /// The front end has accepted these features.
    pub(crate) fn choose_rings(&mut self, features: u64) -> Result<()> {
        let packed = Some(features & feature::RING_PACKED != 0);
        if self.shown.is_packed() != (packed == Some(true))
            && self.vrings.iter().any(Vring::is_running)
        {
            return Err(Error::InvalidOperation("a queue that runs stays split or packed"));
        }
        self.shown.packed = packed;
        Ok(())
    }
}
