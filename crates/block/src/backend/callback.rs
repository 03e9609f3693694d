//! The callback door: requests that own their buffer and end in a callback.
//!
//! Each request is a coroutine that keeps buffer and callback in its frame; nothing is allocated.

use std::io;

use coblk_aio::{AioContext, Co, IoBuffer, trace_event};

use crate::backend::BlockBackend;
use crate::backend::root::Request;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};

/// The callback door. A callback runs on the home thread, inside the request's coroutine, never
/// before its submitting call has returned, also when the request fails at once; a drain waits for
/// it (contract: C75). It gets the buffer back.
///
/// A request that panics fails with EIO and is logged. One for which there is no memory for a
/// coroutine's stack fails with ENOMEM, in a callback of its own.
impl BlockBackend {
    /// Fills `buffer` from `offset` bytes on.
    #[inline(always)]
    pub fn aio_preadv<B: IoBuffer>(
        &self,
        ctx: &AioContext,
        offset: u64,
        buffer: B,
        callback: impl FnOnce(&AioContext, io::Result<()>, B) + 'static,
    ) {
        trace_event!("blk_aio_preadv", backend = self.name(), offset);
        if let Err(error) = ctx.ensure_stack() {
            return ctx.schedule(move |ctx| callback(ctx, Err(error), buffer));
        }
        let transfer = Transfer { buffer, offset, callback };
        self.submit(ctx, "blk_aio_preadv", move |backend, co, entered| {
            let Transfer { mut buffer, offset, callback } = { transfer };
            let result = fail_on_panic(co, || {
                let target = &mut buffer.io_vector_mut();
                backend.preadv_entered(co, entered, offset, target, ReadFlags::empty())
            });
            before_callback(co);
            callback(co.context(), result, buffer);
        });
    }

    /// Writes `buffer` at `offset` bytes.
    #[inline(always)]
    pub fn aio_pwritev<B: IoBuffer>(
        &self,
        ctx: &AioContext,
        offset: u64,
        buffer: B,
        flags: WriteFlags,
        callback: impl FnOnce(&AioContext, io::Result<()>, B) + 'static,
    ) {
        trace_event!("blk_aio_pwritev", backend = self.name(), offset);
        if let Err(error) = ctx.ensure_stack() {
            return ctx.schedule(move |ctx| callback(ctx, Err(error), buffer));
        }
        let transfer = Transfer { buffer, offset, callback };
        self.submit(ctx, "blk_aio_pwritev", move |backend, co, entered| {
            let Transfer { buffer, offset, callback } = { transfer };
            let result = fail_on_panic(co, || {
                backend.pwritev_entered(co, entered, offset, &buffer.io_vector(), flags)
            });
            before_callback(co);
            callback(co.context(), result, buffer);
        });
    }

    /// Makes all writes durable that completed before.
    pub fn aio_flush(
        &self,
        ctx: &AioContext,
        callback: impl FnOnce(&AioContext, io::Result<()>) + 'static,
    ) {
        trace_event!("blk_aio_flush", backend = self.name());
        self.submit_plain(ctx, "blk_aio_flush", callback, move |backend, co, entered| {
            backend.flush_entered(co, entered)
        });
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn aio_pwrite_zeroes(
        &self,
        ctx: &AioContext,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
        callback: impl FnOnce(&AioContext, io::Result<()>) + 'static,
    ) {
        trace_event!("blk_aio_pwrite_zeroes", backend = self.name(), offset, bytes);
        self.submit_plain(ctx, "blk_aio_pwrite_zeroes", callback, move |backend, co, entered| {
            backend.pwrite_zeroes_entered(co, entered, offset, bytes, flags)
        });
    }

    /// Deallocates `bytes` bytes from `offset` on; a hint.
    pub fn aio_pdiscard(
        &self,
        ctx: &AioContext,
        offset: u64,
        bytes: u64,
        callback: impl FnOnce(&AioContext, io::Result<()>) + 'static,
    ) {
        trace_event!("blk_aio_pdiscard", backend = self.name(), offset, bytes);
        self.submit_plain(ctx, "blk_aio_pdiscard", callback, move |backend, co, entered| {
            backend.pdiscard_entered(co, entered, offset, bytes)
        });
    }

    /// Submits a request without a buffer.
    fn submit_plain(
        &self,
        ctx: &AioContext,
        name: &'static str,
        callback: impl FnOnce(&AioContext, io::Result<()>) + 'static,
        request: impl Fn(&BlockBackend, &Co<'_>, &mut Option<Request>) -> io::Result<()> + 'static,
    ) {
        if let Err(error) = ctx.ensure_stack() {
            return ctx.schedule(move |ctx| callback(ctx, Err(error)));
        }
        self.submit(ctx, name, move |backend, co, entered| {
            let result = fail_on_panic(co, || request(backend, co, entered));
            before_callback(co);
            callback(co.context(), result);
        });
    }

    // Always inlined, like reads and writes: a callback that submits the next request switches
    // stacks in here, and the processor predicts the return of each frame around a switch for the
    // other stack, and wrongly.
    #[inline(always)]
    fn submit(
        &self,
        ctx: &AioContext,
        name: &'static str,
        request: impl FnOnce(&BlockBackend, &Co<'_>, &mut Option<Request>) + 'static,
    ) {
        let backend = self.clone();
        ctx.spawn(name, move |co| {
            // Counted until the callback has returned.
            let mut entered = backend.begin_request(co);
            request(&backend, co, &mut entered);
        });
    }
}

/// The state that a transfer takes along to its coroutine.
///
/// It is moved there and back in pieces of 16 bytes. Laid out like this no field that is moved on
/// lies across two of them, which would make the processor wait until both have been written.
#[repr(C, align(16))]
struct Transfer<B, C> {
    buffer: B,
    offset: u64,
    callback: C,
}

/// Runs a request; a panic in it becomes EIO (design decision D11).
#[inline]
fn fail_on_panic(co: &Co<'_>, request: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    co.catch_unwind(request).unwrap_or_else(|_| {
        tracing::error!(coroutine = co.name(), "request panicked; failed with EIO");
        Err(io::Error::from_raw_os_error(libc::EIO))
    })
}

/// Waits until the submitter has gone on.
// Always inlined, as `submit`: it is small but for the switch that it makes, and a frame of its own around
// that costs 25 ns.
#[inline(always)]
fn before_callback(co: &Co<'_>) {
    if !co.has_suspended() {
        co.yield_now();
    }
    trace_event!("blk_aio_complete", coroutine = co.name());
}
