//! The blocking door: requests that poll the loop until they are done, for set-up code and tests.

use std::io;

use coblk_aio::{AioContext, IoVector, IoVectorMut};

use crate::backend::BlockBackend;
use crate::driver::extent::Extent;
use crate::driver::flags::{WriteFlags, ZeroFlags};

/// The blocking door. Each call polls `ctx`, the backend's own, until the request has completed;
/// callbacks of other work run meanwhile.
///
/// # Panics
/// If called inside a coroutine, which has the `co_` door.
impl BlockBackend {
    /// Fills `target` from `offset` bytes on.
    pub fn preadv(
        &self,
        ctx: &AioContext,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        ctx.run(|co| self.co_preadv(co, offset, target))
    }

    /// Writes `source` at `offset` bytes.
    pub fn pwritev(
        &self,
        ctx: &AioContext,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        ctx.run(|co| self.co_pwritev(co, offset, source, flags))
    }

    /// Makes all writes durable that completed before.
    pub fn flush(&self, ctx: &AioContext) -> io::Result<()> {
        ctx.run(|co| self.co_flush(co))
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn pwrite_zeroes(
        &self,
        ctx: &AioContext,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        ctx.run(|co| self.co_pwrite_zeroes(co, offset, bytes, flags))
    }

    /// Deallocates `bytes` bytes from `offset` on; a hint.
    pub fn pdiscard(&self, ctx: &AioContext, offset: u64, bytes: u64) -> io::Result<()> {
        ctx.run(|co| self.co_pdiscard(co, offset, bytes))
    }

    /// Describes the bytes from `offset` on; see [`co_block_status`](Self::co_block_status).
    pub fn block_status(&self, ctx: &AioContext, offset: u64, bytes: u64) -> io::Result<Extent> {
        ctx.run(|co| self.co_block_status(co, offset, bytes))
    }

    /// Changes the length to `length` bytes; see [`co_truncate`](Self::co_truncate).
    pub fn truncate(&self, ctx: &AioContext, length: u64) -> io::Result<()> {
        ctx.run(|co| self.co_truncate(co, length))
    }
}
