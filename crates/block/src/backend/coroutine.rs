//! Requests from coroutines.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut, trace_event};

use crate::accounting::RequestKind;
use crate::backend::error_policy::Attempt;
use crate::backend::root::{Medium, Request};
use crate::backend::{BlockBackend, ResizeError, in_flight};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::graph;
use crate::graph::chain::{self, Base, ChainExtent};
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// The coroutine door. All of it runs on the backend's home thread.
///
/// # Errors
/// of every request: ENOMEDIUM without a medium; EIO if the range is not within the length; EPERM
/// for a write to a read-only backend (contract: C74); and what the driver reports, with its errno.
impl BlockBackend {
    /// Fills `target` from `offset` bytes on.
    #[inline]
    pub fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
    ) -> io::Result<()> {
        self.co_preadv_with(co, offset, target, ReadFlags::empty())
    }

    /// [`co_preadv`](Self::co_preadv), with flags. ENOTSUP if the node cannot do what the flags ask
    /// for.
    #[inline]
    pub fn co_preadv_with(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.preadv_entered(co, &mut request, offset, target, flags)
    }

    /// Writes `source` at `offset` bytes.
    #[inline]
    pub fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pwritev_entered(co, &mut request, offset, source, flags)
    }

    /// [`co_preadv`](Self::co_preadv) to one slice.
    pub fn co_read(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.co_preadv(co, offset, &mut IoVectorMut::from(target))
    }

    /// [`co_pwritev`](Self::co_pwritev) of one slice, without flags.
    pub fn co_write(&self, co: &Co<'_>, offset: u64, source: &[u8]) -> io::Result<()> {
        self.co_pwritev(co, offset, &IoVector::from(source), WriteFlags::empty())
    }

    /// Makes all writes durable that completed before.
    pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.flush_entered(co, &mut request)
    }

    /// Makes `bytes` bytes from `offset` on read as zeroes.
    pub fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pwrite_zeroes_entered(co, &mut request, offset, bytes, flags)
    }

    /// Deallocates `bytes` bytes from `offset` on; a hint: the bytes are unspecified afterwards.
    pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let mut request = self.begin_request(co);
        self.pdiscard_entered(co, &mut request, offset, bytes)
    }

    /// Describes the bytes from `offset` on, without reading them: how many of them, at least one,
    /// are of one kind. Asking about no bytes gives none. Backing files are asked, too.
    pub fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.co_ask_chain(co, Base::NONE, offset, bytes).map(|found| found.extent)
    }

    /// Describes the bytes from `offset` on as the node and its backing files down to `base` have
    /// them, and tells which layer decides. `base` itself is not asked. See
    /// [`co_block_status`](Self::co_block_status).
    pub fn co_status_above(
        &self,
        co: &Co<'_>,
        base: Option<&BlockNode>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<ChainExtent> {
        let base = base.map_or(Base::NONE, |base| Base::new(base, false));
        self.co_ask_chain(co, base, offset, bytes)
    }

    /// Whether the node, or a backing file between it and `base`, has the bytes from `offset` on;
    /// `base` counts, too, if `include_base`. Also tells of how many bytes that is true.
    pub fn co_is_allocated_above(
        &self,
        co: &Co<'_>,
        base: &BlockNode,
        include_base: bool,
        offset: u64,
        bytes: u64,
    ) -> io::Result<(bool, u64)> {
        let found = self.co_ask_chain(co, Base::new(base, include_base), offset, bytes)?;
        Ok((found.extent.allocated, found.extent.bytes))
    }

    fn co_ask_chain(
        &self,
        co: &Co<'_>,
        base: Base<'_>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<ChainExtent> {
        let request = self.begin_request(co).ok_or_else(|| self.slot().refusal())?;
        trace_event!("blk_co_block_status", offset, bytes);
        chain::co_status_above(&request.medium().node, co, base, offset, bytes)
    }

    /// Changes the length to `length` bytes; new bytes read as zeroes.
    ///
    /// Making a device shorter drains it first, so that nothing is written beyond its new end: must
    /// not be called from a request's own callback then, as [`BlockNode::drain`].
    ///
    /// # Errors
    /// ENOTSUP if the driver cannot; EINVAL if it cannot be of this length, as a device has its own;
    /// EFBIG if `length` is beyond [`MAX_LENGTH`](crate::MAX_LENGTH); EPERM if another user of the
    /// node, or another process, does not share the permission to resize; ETIMEDOUT if it is to become
    /// shorter, and requests have not ended within [`WAIT_LIMIT`](crate::WAIT_LIMIT).
    pub fn co_truncate(&self, co: &Co<'_>, length: u64) -> io::Result<()> {
        self.co_truncate_with(co, length, Truncate::default())
    }

    /// [`co_truncate`](Self::co_truncate), in the way that `how` says. ENOTSUP, and a warning in
    /// the log, if the driver cannot do it in that way.
    pub fn co_truncate_with(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.co_resize(co, length, how).map_err(|error| self.resize_errno(error))
    }

    /// What the log is told in words, as an errno.
    fn resize_errno(&self, error: ResizeError) -> io::Error {
        match error {
            // A driver that says why in words.
            ResizeError::Io(error) if error.raw_os_error().is_none() => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                let unsupported = error.kind() == io::ErrorKind::Unsupported;
                let errno = if unsupported { libc::ENOTSUP } else { libc::EINVAL };
                io::Error::from_raw_os_error(errno)
            }
            ResizeError::Io(error) => error,
            ResizeError::Permission(error) => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                io::Error::from_raw_os_error(libc::EPERM)
            }
            ResizeError::Graph(error) => {
                tracing::warn!(backend = self.name(), %error, "cannot change the length");
                io::Error::from_raw_os_error(libc::ETIMEDOUT)
            }
        }
    }

    /// Makes the device at least `length` bytes long, in the way that `how` says. Unlike
    /// [`co_truncate_with`](Self::co_truncate_with) it never makes it shorter, however often it grows
    /// meanwhile, from any context. Without effect if it is long enough.
    ///
    /// # Errors
    /// As of [`co_truncate_with`](Self::co_truncate_with).
    pub fn co_grow_with(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        while length > self.length()? {
            trace_event!("blk_co_truncate", length);
            self.writable_medium()?;
            let _resize =
                self.inner.slot.resize().map_err(|error| self.resize_errno(error.into()))?;
            let _request = self.begin_request(co).ok_or_else(|| self.slot().refusal())?;
            let grown = self.writable_medium()?.node.co_grow(co, length, how);
            if grown.map_err(|error| self.resize_errno(error.into()))? {
                break;
            }
        }
        Ok(())
    }

    /// [`co_truncate`](Self::co_truncate), that names the user that does not agree.
    pub(crate) fn co_resize(
        &self,
        co: &Co<'_>,
        length: u64,
        how: Truncate,
    ) -> Result<(), ResizeError> {
        trace_event!("blk_co_truncate", length);
        let medium = self.writable_medium()?;
        let _resize = self.inner.slot.resize()?;
        if length >= medium.node.length() {
            let _request = self.begin_request(co).ok_or_else(|| self.slot().refusal())?;
            if self.writable_medium()?.node.co_grow(co, length, how)? {
                return Ok(());
            }
        }
        self.co_shrink(co, length, how)
    }

    /// In a drained section, in which it counts itself in: a drain that begins meanwhile waits. The node
    /// that stores the bytes is drained, as it may have other users, which write too.
    fn co_shrink(&self, co: &Co<'_>, length: u64, how: Truncate) -> Result<(), ResizeError> {
        let node = self.node().map(storage_of);
        let _drained = node.map(|node| graph::co_drain_for_change(co, &node)).transpose()?;
        // The node must not be replaced meanwhile.
        let _change = graph::lock_changes(co)?;
        let medium = self.writable_medium()?;
        if let Some(error) = medium.node.gate.refusal() {
            return Err(error.into());
        }
        let _request = Request::count_in(Rc::clone(&medium));
        Ok(medium.node.co_truncate(co, length, how)?)
    }
}

/// The requests themselves, for callers that hold a [`Request`]. It is given up while
/// the request is held (`error_policy.rs`).
impl BlockBackend {
    #[inline]
    pub(crate) fn preadv_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_preadv", offset, bytes = target.len());
        let range = (offset, target.len() as u64);
        self.carry_out(co, request, RequestKind::Read, range, Read { co, offset, target, flags })
    }

    #[inline]
    pub(crate) fn pwritev_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwritev", offset, bytes = source.len());
        self.carry_out(
            co,
            request,
            RequestKind::Write,
            (offset, source.len() as u64),
            |medium: &Medium| {
                request_path::co_pwritev(self.writable(medium)?, co, offset, source, flags)
            },
        )
    }

    pub(crate) fn flush_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
    ) -> io::Result<()> {
        trace_event!("blk_co_flush");
        self.carry_out(co, request, RequestKind::Flush, (0, 0), |medium: &Medium| {
            request_path::co_flush(&medium.node.path, co)
        })
    }

    pub(crate) fn pwrite_zeroes_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        trace_event!("blk_co_pwrite_zeroes", offset, bytes);
        self.carry_out(co, request, RequestKind::WriteZeroes, (offset, bytes), |medium: &Medium| {
            request_path::co_pwrite_zeroes(self.writable(medium)?, co, None, offset, bytes, flags)
        })
    }

    pub(crate) fn pdiscard_entered(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        offset: u64,
        bytes: u64,
    ) -> io::Result<()> {
        trace_event!("blk_co_pdiscard", offset, bytes);
        self.carry_out(co, request, RequestKind::Discard, (offset, bytes), |medium: &Medium| {
            request_path::co_pdiscard(self.writable(medium)?, co, None, offset, bytes)
        })
    }

    #[inline]
    fn carry_out(
        &self,
        co: &Co<'_>,
        request: &mut Option<Request>,
        kind: RequestKind,
        range: (u64, u64),
        attempt: impl Attempt,
    ) -> io::Result<()> {
        in_flight::noted(co, request, kind, range, |request| {
            self.account(co, kind, range, || self.with_policy(co, request, kind, range, attempt))
        })
    }
}

/// The node that filters pass requests on to in the end.
fn storage_of(node: Arc<BlockNode>) -> Arc<BlockNode> {
    let mut node = node;
    while let Some(below) = node.filtered() {
        node = below;
    }
    node
}

/// A read.
struct Read<'a, 'b, 'co> {
    co: &'a Co<'co>,
    offset: u64,
    target: &'a mut IoVectorMut<'b>,
    flags: ReadFlags,
}

impl Attempt for Read<'_, '_, '_> {
    #[inline]
    fn try_on(&mut self, medium: &Medium) -> io::Result<()> {
        request_path::co_preadv(&medium.node.path, self.co, self.offset, self.target, self.flags)
    }

    /// Clears the buffer: bytes that it held before may be another client's.
    #[cold]
    fn ignored(&mut self) {
        self.target.fill_from(0, 0);
    }
}
