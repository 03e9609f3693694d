//! One copy: a claimed range is read, and then written, in pieces by block status.
//!
//! Workers read and write through what they have entered; a copy that a guest drives reads through the filter's
//! edge, as a part of the guest's request, and writes by requests of its own.

use std::io;
use std::ops::Range;

use coblk_aio::{AlignedBuffer, Co, IoVector, IoVectorMut};
use coblk_block::{
    Child, Entered, Extent, OwnRequests, ReadFlags, RequestKind, WriteFlags, ZeroFlags,
};

/// What a copy reads.
pub(crate) trait Source {
    fn co_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent>;
    fn co_read(&mut self, co: &Co<'_>, offset: u64, to: &mut IoVectorMut<'_>) -> io::Result<()>;
}

impl Source for Entered {
    fn co_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.co_block_status(co, offset, bytes)
    }

    fn co_read(&mut self, co: &Co<'_>, offset: u64, to: &mut IoVectorMut<'_>) -> io::Result<()> {
        self.co_preadv(co, offset, to)
    }
}

impl Source for &Child {
    fn co_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.co_status_above(co, None, offset, bytes).map(|found| found.extent)
    }

    fn co_read(&mut self, co: &Co<'_>, offset: u64, to: &mut IoVectorMut<'_>) -> io::Result<()> {
        self.co_preadv(co, offset, to, ReadFlags::empty())
    }
}

/// What a copy writes.
pub(crate) trait Sink {
    fn co_write(
        &mut self,
        co: &Co<'_>,
        at: u64,
        from: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()>;
    fn co_zero(&mut self, co: &Co<'_>, at: u64, bytes: u64, flags: ZeroFlags) -> io::Result<()>;
    fn co_discard(&mut self, co: &Co<'_>, at: u64, bytes: u64) -> io::Result<()>;
}

/// Those that have requests of these names.
macro_rules! sink {
    ($sink:ty) => {
        impl Sink for $sink {
            fn co_write(
                &mut self,
                co: &Co<'_>,
                at: u64,
                from: &IoVector<'_>,
                flags: WriteFlags,
            ) -> io::Result<()> {
                self.co_pwritev(co, at, from, flags)
            }

            fn co_zero(
                &mut self,
                co: &Co<'_>,
                at: u64,
                bytes: u64,
                flags: ZeroFlags,
            ) -> io::Result<()> {
                self.co_pwrite_zeroes(co, at, bytes, flags)
            }

            fn co_discard(&mut self, co: &Co<'_>, at: u64, bytes: u64) -> io::Result<()> {
                self.co_pdiscard(co, at, bytes)
            }
        }
    };
}

impl Source for OwnRequests {
    fn co_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.co_block_status(co, offset, bytes)
    }

    fn co_read(&mut self, co: &Co<'_>, offset: u64, to: &mut IoVectorMut<'_>) -> io::Result<()> {
        self.co_preadv(co, offset, to, ReadFlags::empty())
    }
}

sink!(Entered);
sink!(OwnRequests);

/// How a piece of a range gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Write,
    Zero,
    Discard,
}

impl How {
    /// Of an extent of the whole chain.
    fn of(extent: &Extent, shape: &Shape) -> How {
        match (extent.zero, extent.data) {
            (true, _) => How::Zero,
            (false, true) => How::Write,
            (false, false) if extent.allocated || shape.keeps_all => How::Write,
            // What it reads as is not known, and of no use.
            (false, false) => How::Discard,
        }
    }
}

const ZEROES: [u8; 4096] = [0; 4096];

/// The memory of a worker: what it has read, and how to write that. It is used again, and does not grow.
pub(crate) struct Scratch {
    data: AlignedBuffer,
    /// What the source has.
    known: Vec<(How, Range<u64>)>,
    pieces: Vec<(How, Range<u64>)>,
    flags: WriteFlags,
}

/// Adds a piece, to the last one if that is of its kind.
fn push(pieces: &mut Vec<(How, Range<u64>)>, how: How, piece: Range<u64>) {
    match pieces.last_mut() {
        Some((last, before)) if *last == how => before.end = piece.end,
        _ => pieces.push((how, piece)),
    }
}

/// A request of a copy has failed: to the source if it was a read.
#[derive(Debug)]
pub(crate) struct CopyError {
    pub(crate) kind: RequestKind,
    pub(crate) error: io::Error,
}

impl CopyError {
    pub(super) fn read(error: io::Error) -> CopyError {
        CopyError { kind: RequestKind::Read, error }
    }

    pub(super) fn write(error: io::Error) -> CopyError {
        CopyError { kind: RequestKind::Write, error }
    }
}

/// Where zeroes and discards begin and end at the target, and how it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// A cluster of the target, in bytes.
    pub(crate) cluster: u64,
    /// The length of the target, in bytes.
    pub(crate) length: u64,
    /// Of writes.
    pub(crate) flags: WriteFlags,
    /// What may read as anything is copied as it reads, and not discarded.
    pub(crate) keeps_all: bool,
}

impl Shape {
    /// How the first bytes of a range that are all of one kind get to the target, and where these end: as data up
    /// to the next cluster, if no whole one is first.
    fn cut(&self, how: How, range: &Range<u64>) -> (How, u64) {
        let is_end = range.end == self.length;
        let whole = if is_end { range.end } else { range.end - range.end % self.cluster };
        if how == How::Write {
            (How::Write, range.end)
        } else if range.start.is_multiple_of(self.cluster) && whole > range.start {
            (how, whole)
        } else {
            let next = (range.start + 1).next_multiple_of(self.cluster);
            (How::Write, range.end.min(next))
        }
    }
}

impl Scratch {
    /// Memory for ranges of `bytes` bytes at most, at an address that the nodes' drivers like.
    pub(crate) fn new(bytes: u64, alignment: u32) -> io::Result<Scratch> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let data = AlignedBuffer::new(bytes, alignment.max(1) as usize)?;
        Ok(Scratch { data, known: Vec::new(), pieces: Vec::new(), flags: WriteFlags::empty() })
    }

    /// Reads a range of the source, but for what need not be read.
    pub(crate) fn co_read(
        &mut self,
        co: &Co<'_>,
        source: &mut impl Source,
        range: &Range<u64>,
        shape: Shape,
    ) -> Result<(), CopyError> {
        self.known.clear();
        self.pieces.clear();
        self.flags = shape.flags;
        let mut at = range.start;
        while at < range.end {
            let left = range.end - at;
            let extent = source.co_status(co, at, left).map_err(CopyError::read)?;
            let known = at..at + extent.bytes.clamp(1, left);
            at = known.end;
            push(&mut self.known, How::of(&extent, &shape), known);
        }
        for (how, known) in &self.known {
            let mut left = known.clone();
            while !left.is_empty() {
                let (how, end) = shape.cut(*how, &left);
                push(&mut self.pieces, how, left.start..end);
                left.start = end;
            }
        }
        for (how, piece) in &self.pieces {
            if *how == How::Write {
                let place =
                    (piece.start - range.start) as usize..(piece.end - range.start) as usize;
                let mut target = IoVectorMut::from(&mut self.data[place]);
                source.co_read(co, piece.start, &mut target).map_err(CopyError::read)?;
            }
        }
        Ok(())
    }

    /// Writes what was read of a range.
    pub(crate) fn co_write(
        &self,
        co: &Co<'_>,
        target: &mut impl Sink,
        range: &Range<u64>,
    ) -> Result<(), CopyError> {
        self.co_write_with(co, target, range, self.flags)
    }

    /// [`co_write`](Self::co_write), to another node than the target, with these flags.
    pub(crate) fn co_write_with(
        &self,
        co: &Co<'_>,
        target: &mut impl Sink,
        range: &Range<u64>,
        flags: WriteFlags,
    ) -> Result<(), CopyError> {
        let mut zeroes = ZeroFlags::MAY_UNMAP;
        zeroes.set(ZeroFlags::SERIALISING, flags.contains(WriteFlags::SERIALISING));
        for (how, piece) in &self.pieces {
            let bytes = piece.end - piece.start;
            let written = match how {
                How::Write => {
                    let place =
                        (piece.start - range.start) as usize..(piece.end - range.start) as usize;
                    let source = IoVector::from(&self.data[place]);
                    target.co_write(co, piece.start, &source, flags)
                }
                How::Zero => target.co_zero(co, piece.start, bytes, zeroes),
                How::Discard => target.co_discard(co, piece.start, bytes),
            };
            written.map_err(CopyError::write)?;
        }
        Ok(())
    }

    /// Copies bytes of what was read of a range that begins at `start`, from `at` on.
    pub(crate) fn copy_to(&self, start: u64, at: u64, target: &mut IoVectorMut<'_>) {
        let end = at + target.len() as u64;
        for (how, piece) in &self.pieces {
            let part = piece.start.max(at)..piece.end.min(end);
            if part.is_empty() {
                continue;
            }
            let bytes = (part.end - part.start) as usize;
            let mut place = target.slice((part.start - at) as usize, bytes);
            match how {
                How::Write => {
                    let from = (part.start - start) as usize;
                    let _ = place.copy_from(0, &self.data[from..from + bytes]);
                }
                How::Zero | How::Discard => place.fill_from(0, 0),
            }
        }
    }

    /// CRC-32C of a part of what was read of a range that begins at `start`.
    pub(super) fn crc32c(&self, start: u64, part: &Range<u64>) -> u32 {
        let mut sum = 0;
        for (how, piece) in &self.pieces {
            let part = piece.start.max(part.start)..piece.end.min(part.end);
            let mut left = part.end.saturating_sub(part.start) as usize;
            if left > 0 && *how == How::Write {
                let from = (part.start - start) as usize;
                sum = crc32c::crc32c_append(sum, &self.data[from..from + left]);
                left = 0;
            }
            while left > 0 {
                let zeroes = &ZEROES[..left.min(ZEROES.len())];
                sum = crc32c::crc32c_append(sum, zeroes);
                left -= zeroes.len();
            }
        }
        sum
    }

    /// How many bytes are written as data.
    pub(super) fn bytes_written(&self) -> u64 {
        let data = self.pieces.iter().filter(|(how, _)| *how == How::Write);
        data.map(|(_, piece)| piece.end - piece.start).sum()
    }
}
