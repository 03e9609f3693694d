//! One copy: a claimed range is read, and then written, in pieces by block status.

use std::io;
use std::ops::Range;

use coblk_aio::{AlignedBuffer, Co, IoVector, IoVectorMut};
use coblk_block::{Entered, Extent, RequestKind, WriteFlags, ZeroFlags};

/// How a piece of a range gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Write,
    Zero,
    Discard,
}

impl How {
    /// Of an extent of the whole chain.
    fn of(extent: &Extent) -> How {
        match (extent.zero, extent.data) {
            (true, _) => How::Zero,
            (false, true) => How::Write,
            (false, false) if extent.allocated => How::Write,
            // What it reads as is not known, and of no use.
            (false, false) => How::Discard,
        }
    }
}

/// The memory of a worker: what it has read, and how to write that. It is used again, and does not grow.
pub(super) struct Scratch {
    data: AlignedBuffer,
    pieces: Vec<(How, Range<u64>)>,
}

/// A request of a copy has failed: to the source if it was a read.
#[derive(Debug)]
pub(super) struct CopyError {
    pub(super) kind: RequestKind,
    pub(super) error: io::Error,
}

impl CopyError {
    pub(super) fn read(error: io::Error) -> CopyError {
        CopyError { kind: RequestKind::Read, error }
    }

    pub(super) fn write(error: io::Error) -> CopyError {
        CopyError { kind: RequestKind::Write, error }
    }
}

/// Where zeroes and discards begin and end at the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// A cluster of the target, in bytes.
    pub(super) cluster: u64,
    /// The length of the target, in bytes.
    pub(super) length: u64,
}

impl Shape {
    /// Whether a range is whole clusters.
    fn is_whole(&self, range: &Range<u64>) -> bool {
        let is_border = |at: u64| at.is_multiple_of(self.cluster) || at == self.length;
        is_border(range.start) && is_border(range.end)
    }
}

impl Scratch {
    /// Memory for ranges of `bytes` bytes at most, at an address that the nodes' drivers like.
    pub(super) fn new(bytes: u64, alignment: u32) -> io::Result<Scratch> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let data = AlignedBuffer::new(bytes, alignment.max(1) as usize)?;
        Ok(Scratch { data, pieces: Vec::new() })
    }

    /// Reads a range of the source, but for what need not be read.
    pub(super) fn co_read(
        &mut self,
        co: &Co<'_>,
        source: &mut Entered,
        range: &Range<u64>,
        shape: Shape,
    ) -> Result<(), CopyError> {
        self.pieces.clear();
        let mut at = range.start;
        while at < range.end {
            let left = range.end - at;
            let extent = source.co_block_status(co, at, left).map_err(CopyError::read)?;
            let piece = at..at + extent.bytes.clamp(1, left);
            let how = Some(How::of(&extent)).filter(|_| shape.is_whole(&piece));
            at = piece.end;
            self.push(how.unwrap_or(How::Write), piece);
        }
        for (how, piece) in &self.pieces {
            if *how == How::Write {
                let place =
                    (piece.start - range.start) as usize..(piece.end - range.start) as usize;
                let mut target = IoVectorMut::from(&mut self.data[place]);
                source.co_preadv(co, piece.start, &mut target).map_err(CopyError::read)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, how: How, piece: Range<u64>) {
        match self.pieces.last_mut() {
            Some((last, before)) if *last == how => before.end = piece.end,
            _ => self.pieces.push((how, piece)),
        }
    }

    /// Writes what was read of a range.
    pub(super) fn co_write(
        &self,
        co: &Co<'_>,
        target: &mut Entered,
        range: &Range<u64>,
    ) -> Result<(), CopyError> {
        for (how, piece) in &self.pieces {
            let bytes = piece.end - piece.start;
            let written = match how {
                How::Write => {
                    let place =
                        (piece.start - range.start) as usize..(piece.end - range.start) as usize;
                    let source = IoVector::from(&self.data[place]);
                    target.co_pwritev(co, piece.start, &source, WriteFlags::empty())
                }
                How::Zero => target.co_pwrite_zeroes(co, piece.start, bytes, ZeroFlags::MAY_UNMAP),
                How::Discard => target.co_pdiscard(co, piece.start, bytes),
            };
            written.map_err(CopyError::write)?;
        }
        Ok(())
    }

    /// How many bytes are written as data.
    pub(super) fn bytes_written(&self) -> u64 {
        let data = self.pieces.iter().filter(|(how, _)| *how == How::Write);
        data.map(|(_, piece)| piece.end - piece.start).sum()
    }
}
