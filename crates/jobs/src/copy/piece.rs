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
    /// What the source has.
    known: Vec<(How, Range<u64>)>,
    pieces: Vec<(How, Range<u64>)>,
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
    pub(super) fn new(bytes: u64, alignment: u32) -> io::Result<Scratch> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let data = AlignedBuffer::new(bytes, alignment.max(1) as usize)?;
        Ok(Scratch { data, known: Vec::new(), pieces: Vec::new() })
    }

    /// Reads a range of the source, but for what need not be read.
    pub(super) fn co_read(
        &mut self,
        co: &Co<'_>,
        source: &mut Entered,
        range: &Range<u64>,
        shape: Shape,
    ) -> Result<(), CopyError> {
        self.known.clear();
        self.pieces.clear();
        let mut at = range.start;
        while at < range.end {
            let left = range.end - at;
            let extent = source.co_block_status(co, at, left).map_err(CopyError::read)?;
            let known = at..at + extent.bytes.clamp(1, left);
            at = known.end;
            push(&mut self.known, How::of(&extent), known);
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
                source.co_preadv(co, piece.start, &mut target).map_err(CopyError::read)?;
            }
        }
        Ok(())
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
