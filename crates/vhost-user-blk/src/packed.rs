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

    /// Where a front end says that a queue begins.
    pub(crate) fn stopped_at(&self, base: u32) -> Result<StoppedAt> {
        let (next_index, high) = (base as u16, (base >> 16) as u16);
        if !self.is_packed() {
            return match high {
                0 => Ok(StoppedAt { next_index, next_used: next_index }),
                _ => Err(Error::InvalidOperation("no queue can begin there")),
            };
        }
        let next_used = if high == 0 { next_index } else { high };
        if next_used != next_index && self.inflight.is_none() {
            let unknown = "requests in flight in a packed queue, without a log of them";
            return Err(Error::InvalidOperation(unknown));
        }
        Ok(StoppedAt { next_index, next_used })
    }
}

impl Vring {
    /// Where a front end is told that the queue goes on.
    pub(crate) fn base_for_front_end(&self, shown: &Shown) -> u32 {
        let start = if shown.is_packed() { PACKED_START } else { 0 };
        let start = StoppedAt { next_index: start, next_used: start };
        let StoppedAt { next_index, next_used } = self.base.unwrap_or(start);
        let high = if shown.is_packed() { next_used } else { 0 };
        u32::from(next_index) | u32::from(high) << 16
    }

    /// What a new ring differs in from the one before: the used index. A packed one has none in memory, so
    /// that it is known by what the front end says.
    pub(crate) fn place(&self, shown: &Shown, used_ring: u64) -> Result<u16> {
        match shown.is_packed() {
            true => Ok(self.base.map_or(PACKED_START, |base| base.next_index)),
            false => shown.memory.used_index(used_ring),
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
