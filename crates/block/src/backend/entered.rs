//! [`Entered`]: one count at the gate for several operations.
//!
//! A request counts itself, and waits at a closed gate first. A user that makes several requests
//! while it holds something that others wait for, as a copy holds a range, must not wait there: the
//! drain waits for the others, the others for the range, and the copy for the drain. So it enters
//! once, before it takes anything.

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};

use crate::backend::BlockBackend;
use crate::backend::root::Request;
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::graph::chain::{self, Base};

/// A count at the gate of a backend's node: a drain waits until it is dropped, and operations through it
/// do not wait for drains. Home thread of the backend.
///
/// If the backend stops on errors, an operation that is held gives the count up, and takes it again
/// when it goes on, after drains. A user that must not wait has a backend that reports errors.
#[must_use = "a drain waits for as long as it lives"]
pub struct Entered {
    backend: BlockBackend,
    /// `None` after an operation was held and the medium was taken out.
    request: Option<Request>,
}

impl BlockBackend {
    /// Counts in at the gate, after drains have ended.
    ///
    /// # Errors
    /// ENOMEDIUM without a medium; EPERM if the node is inactive.
    pub fn co_enter(&self, co: &Co<'_>) -> io::Result<Entered> {
        let request = self.begin_request(co).ok_or_else(|| self.slot().refusal())?;
        Ok(Entered { backend: self.clone(), request: Some(request) })
    }

    /// [`co_enter`](Self::co_enter) without waiting: `None` while the node is drained.
    ///
    /// # Errors
    /// As of [`co_enter`](Self::co_enter).
    pub fn try_enter(&self) -> io::Result<Option<Entered>> {
        let request = self.slot().try_enter()?;
        Ok(request.map(|request| Entered { backend: self.clone(), request: Some(request) }))
    }

    /// Counts in at two backends of one context, or at none if a node of theirs is drained: for a
    /// copy, which reads from one and writes to the other.
    ///
    /// # Errors
    /// As of [`co_enter`](Self::co_enter), for either.
    pub fn try_enter_both(&self, other: &BlockBackend) -> io::Result<Option<(Entered, Entered)>> {
        let Some(first) = self.try_enter()? else { return Ok(None) };
        Ok(other.try_enter()?.map(|second| (first, second)))
    }

    /// [`try_enter_both`](Self::try_enter_both), after drains have ended. Waits for one while it is counted
    /// in at neither, so drains of the two wait for each other's ends in no order.
    ///
    /// # Errors
    /// As of [`co_enter`](Self::co_enter), for either.
    pub fn co_enter_both(
        &self,
        co: &Co<'_>,
        other: &BlockBackend,
    ) -> io::Result<(Entered, Entered)> {
        loop {
            drop(self.co_enter(co)?);
            drop(other.co_enter(co)?);
            if let Some(both) = self.try_enter_both(other)? {
                return Ok(both);
            }
        }
    }
}

/// Requests, as those of [`BlockBackend`].
impl Entered {
    /// The backend.
    pub fn backend(&self) -> &BlockBackend {
        &self.backend
    }

    /// Fills `target` from `offset` bytes on.
    pub fn co_preadv(
        &mut self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        self.backend.preadv_entered(co, &mut self.request, offset, target, ReadFlags::empty())
    }

    /// Writes `source` at `offset` bytes.
    pub fn co_pwritev(
        &mut self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.backend.pwritev_entered(co, &mut self.request, offset, source, flags)
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&mut self, co: &Co<'_>) -> io::Result<()> {
        self.backend.flush_entered(co, &mut self.request)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &mut self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.backend.pwrite_zeroes_entered(co, &mut self.request, offset, bytes, flags)
    }

    /// Deallocates `bytes` bytes from `offset` on; a hint.
    pub fn co_pdiscard(&mut self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.backend.pdiscard_entered(co, &mut self.request, offset, bytes)
    }

    /// Describes the bytes from `offset` on; see [`BlockBackend::co_block_status`].
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let request = self.request.as_ref().ok_or_else(|| self.backend.slot().refusal())?;
        let node = &request.medium().node;
        chain::co_status_above(node, co, Base::NONE, offset, bytes).map(|found| found.extent)
    }
}
