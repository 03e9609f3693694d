//! Requests that go down an edge. They are those of [`BlockNode`], with the same errors.

use std::io;

use coblk_aio::{Co, IoVector, IoVectorMut};

use super::{Child, ChildRef};
use crate::driver::BlockLimits;
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::graph::chain::{Base, ChainExtent, co_status_above};
use crate::graph::node::BlockNode;
use crate::io as request_path;

/// The methods of what leads to a node: `load` says which.
macro_rules! requests {
    ($edge:ty) => {
        /// Questions and requests, as of [`BlockNode`].
        impl $edge {
            /// Length of the child in bytes.
            #[inline]
            pub fn length(&self) -> u64 {
                self.load().length()
            }

            /// Whether the child refuses writes.
            #[inline]
            pub fn is_read_only(&self) -> bool {
                self.load().is_read_only()
            }

            /// The limits of one request to the child.
            #[inline]
            pub fn limits(&self) -> BlockLimits {
                self.load().limits()
            }

            /// Fills `target` from `offset` bytes on.
            #[inline]
            pub fn co_preadv(
                &self,
                co: &Co<'_>,
                offset: u64,
                target: &mut IoVectorMut<'_>,
                flags: ReadFlags,
            ) -> io::Result<()> {
                request_path::co_preadv(&self.load().path, co, offset, target, flags)
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
                request_path::co_pwritev(self.load().writable()?, co, offset, source, flags)
            }

            /// [`co_preadv`](Self::co_preadv), for a driver that asks for larger blocks than the child
            /// has: the last of them may reach beyond the end of the child, where zeroes are read.
            pub fn co_preadv_blocks(
                &self,
                co: &Co<'_>,
                offset: u64,
                target: &mut IoVectorMut<'_>,
                flags: ReadFlags,
            ) -> io::Result<()> {
                request_path::co_preadv_blocks(&self.load().path, co, offset, target, flags)
            }

            /// [`co_pwritev`](Self::co_pwritev), for such a driver: bytes beyond the end are
            /// padding, and not written.
            pub fn co_pwritev_blocks(
                &self,
                co: &Co<'_>,
                offset: u64,
                source: &IoVector<'_>,
                flags: WriteFlags,
            ) -> io::Result<()> {
                let node = self.load();
                let there = request_path::bytes_there(&node.path, offset, source.len());
                if there == source.len() {
                    return request_path::co_pwritev(node.writable()?, co, offset, source, flags);
                }
                let source = source.slice(0, there);
                request_path::co_pwritev(node.writable()?, co, offset, &source, flags)
            }

            /// Makes all writes durable that completed before.
            pub fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
                request_path::co_flush(&self.load().path, co)
            }

            /// Makes `bytes` bytes from `offset` on read as zeroes.
            pub fn co_pwrite_zeroes(
                &self,
                co: &Co<'_>,
                offset: u64,
                bytes: u64,
                flags: ZeroFlags,
            ) -> io::Result<()> {
                let node = self.load();
                request_path::co_pwrite_zeroes(node.writable()?, co, None, offset, bytes, flags)
            }

            /// Deallocates `bytes` bytes from `offset` on.
            pub fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
                request_path::co_pdiscard(self.load().writable()?, co, None, offset, bytes)
            }

            /// Describes the bytes from `offset` on as the child has them, whatever backing files
            /// have.
            pub fn co_block_status(
                &self,
                co: &Co<'_>,
                offset: u64,
                bytes: u64,
            ) -> io::Result<Extent> {
                request_path::co_block_status(&self.load().path, co, offset, bytes)
            }

            /// Changes the length to `length` bytes.
            pub fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
                self.load().co_truncate(co, length, how)
            }

            /// Makes the child at least `length` bytes long; what is new reads as zeroes. A child that is
            /// longer stays so: of several that make it longer at once, none makes it shorter. The
            /// driver holds the permission to resize it.
            pub fn co_grow(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
                let node = self.load();
                node.writable()?;
                if length > node.length() {
                    node.co_grow(co, length, how)?;
                }
                Ok(())
            }

            /// [`co_pwritev`](Self::co_pwritev), of a range that may end beyond the end of the child: that
            /// [grows](Self::co_grow) first. If the write fails then, the child stays longer.
            pub fn co_pwritev_growing(
                &self,
                co: &Co<'_>,
                offset: u64,
                source: &IoVector<'_>,
                flags: WriteFlags,
            ) -> io::Result<()> {
                let end = offset.checked_add(source.len() as u64);
                let end = end.ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
                self.co_grow(co, end, Truncate::default())?;
                self.co_pwritev(co, offset, source, flags)
            }

            /// Looks up the length of the storage, and returns it in bytes.
            pub fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
                self.load().co_look_at_length(co)
            }
        }

        /// Questions to a chain, as part of a driver's requests.
        impl $edge {
            /// Describes the bytes from `offset` on as the child and its backing files have them,
            /// down to `base`, which is not asked; all of them without one.
            pub fn co_status_above(
                &self,
                co: &Co<'_>,
                base: Option<&BlockNode>,
                offset: u64,
                bytes: u64,
            ) -> io::Result<ChainExtent> {
                let base = base.map_or(Base::NONE, |base| Base::new(base, false));
                co_status_above(&self.load(), co, base, offset, bytes)
            }

            /// Whether the child, or a backing file between it and `base`, has the bytes from
            /// `offset` on; `base` counts, too, if `include_base`. Also tells of how many bytes
            /// that is true.
            pub fn co_is_allocated_above(
                &self,
                co: &Co<'_>,
                base: &BlockNode,
                include_base: bool,
                offset: u64,
                bytes: u64,
            ) -> io::Result<(bool, u64)> {
                let base = Base::new(base, include_base);
                let found = co_status_above(&self.load(), co, base, offset, bytes)?;
                Ok((found.extent.allocated, found.extent.bytes))
            }
        }

        /// Requests to the bytes of an instant, of a child whose driver keeps them
        /// ([`SnapshotReads`](crate::SnapshotReads)). They are part of a driver's request, as all others
        /// are. Without such a driver they fail with ENOTSUP, past the end of the child with EIO.
        impl $edge {
            /// Fills `target` with the bytes of the instant, from `offset` bytes on.
            pub fn co_snapshot_preadv(
                &self,
                co: &Co<'_>,
                offset: u64,
                target: &mut IoVectorMut<'_>,
                flags: ReadFlags,
            ) -> io::Result<()> {
                request_path::co_snapshot_preadv(&self.load().path, co, offset, target, flags)
            }

            /// Describes the bytes of the instant from `offset` bytes on.
            pub fn co_snapshot_block_status(
                &self,
                co: &Co<'_>,
                offset: u64,
                bytes: u64,
            ) -> io::Result<Extent> {
                request_path::co_snapshot_block_status(&self.load().path, co, offset, bytes)
            }

            /// Gives up the bytes of the instant in a range of `bytes` bytes from `offset` on.
            pub fn co_snapshot_pdiscard(
                &self,
                co: &Co<'_>,
                offset: u64,
                bytes: u64,
            ) -> io::Result<()> {
                request_path::co_snapshot_pdiscard(&self.load().path, co, offset, bytes)
            }
        }

        /// Metadata of a driver, in plain slices. As part of a request that is counted at the gate, or of
        /// [own I/O](crate::OwnIo); a driver's lock that is held meanwhile is one that coroutines wait
        /// for ([`CoMutex`](coblk_aio::sync::CoMutex)).
        impl $edge {
            /// Fills `target` from `offset` bytes on.
            pub fn co_read(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
                self.co_preadv(co, offset, &mut IoVectorMut::from(target), ReadFlags::empty())
            }

            /// Writes `source` at `offset` bytes.
            pub fn co_write(&self, co: &Co<'_>, offset: u64, source: &[u8]) -> io::Result<()> {
                self.co_pwritev(co, offset, &IoVector::from(source), WriteFlags::empty())
            }

            /// [`co_write`](Self::co_write), durable when it returns, with all that was written before:
            /// later writes may build on it.
            pub fn co_write_barrier(
                &self,
                co: &Co<'_>,
                offset: u64,
                source: &[u8],
            ) -> io::Result<()> {
                self.co_write(co, offset, source)?;
                self.co_flush(co)
            }
        }
    };
}

requests!(Child);
requests!(ChildRef<'_>);
