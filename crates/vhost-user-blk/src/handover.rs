//! Queues that stop: more of [`Session`].
//!
//! A front end that hands a queue to another back end together with the log of requests in flight need not
//! wait for them. What the device still has in its hands comes back, and stays in the log: held requests, and
//! those that go on in pieces. What the storage works on ends first, as it might write to the guest's memory.
//!
//! * With GET_VRING_BASE_INFLIGHT alone each GET_VRING_BASE does so.
//! * With GET_VRING_BASE_SKIP_DRAIN too the message of that name does, and GET_VRING_BASE waits.

use std::io::Write;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Error, Result};

use crate::messages::{self, REPLY, VERSION, bytes_of};
use crate::session::Session;

/// A protocol feature that the vhost crate has no name for.
pub(crate) const GET_VRING_BASE_SKIP_DRAIN: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::from_bits_retain(1 << 23);

impl Session {
    /// Stops a queue. Returns where it goes on.
    pub(crate) fn stop_vring(&mut self, index: u32, without_drain: bool) -> Result<u32> {
        let (vring, shown) = self.vring_and_shown(index)?;
        match without_drain {
            true => vring.stop_without_drain(shown)?,
            false => vring.stop(shown)?,
        }
        vring.kick = None;
        Ok(vring.base_for_front_end(shown))
    }

    /// Whether GET_VRING_BASE leaves requests in flight.
    pub(crate) fn stops_without_drain(&self) -> bool {
        let inflight = VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self.protocol.contains(inflight) && !self.protocol.contains(GET_VRING_BASE_SKIP_DRAIN)
    }

    /// Answers GET_VRING_BASE_SKIP_DRAIN.
    pub(crate) fn stop_without_drain(&mut self, index: u32) -> Result<()> {
        let needed = GET_VRING_BASE_SKIP_DRAIN
            | VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        if !self.protocol.contains(needed) {
            return Err(Error::InvalidOperation("a stop without a drain that was not negotiated"));
        }
        let base = self.stop_vring(index, true)?;
        let request = messages::GET_VRING_BASE_SKIP_DRAIN;
        let answer = bytes_of([request, VERSION | REPLY, 8, index, base]);
        (&self.socket).write_all(&answer).map_err(Error::SocketError)
    }
}
