//! [`Copy`]: copies images to another one.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use coblk::aio::sync::TaskPool;
use coblk::{
    AlignedBuffer, BackendOptions, BlockBackend, BlockNode, Co, IoVector, WriteFlags, ZeroFlags,
};

use super::crew::Crew;
use super::order::Order;
use super::queue::{Piece, Queue};
use super::rate::Rate;
use super::walk::{Part, Walk};
use crate::failure::{Failure, words};
use crate::image::Cache;
use crate::progress::Progress;

/// What a run is copied as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is read and written.
    Data,
    /// It reads as zeroes.
    Zero,
}

/// Most bytes of a piece of data, which is a buffer.
pub(crate) const MAX_DATA_BYTES: u64 = 2 << 20;
/// Most bytes of a piece of zeroes.
const MAX_ZERO_BYTES: u64 = 1 << 30;
/// The largest alignment that O_DIRECT may ask of memory.
const MEMORY_ALIGNMENT: usize = 4096;
/// What is read at once where a longer read has failed.
const SALVAGE_BYTES: u64 = 512;

/// Writes that run at a time. The kernel makes one at a time to the page cache of a file; a disk is faster with
/// several.
pub(crate) fn max_writes(cache: Cache) -> usize {
    if cache.direct { 8 } else { 1 }
}

/// Most bytes of a piece, where zeroes are data, too.
pub(crate) fn max_bytes_of_data(_: Kind) -> u64 {
    MAX_DATA_BYTES
}

/// Most bytes of a piece of a kind.
pub(crate) fn max_bytes(kind: Kind) -> u64 {
    match kind {
        Kind::Data => MAX_DATA_BYTES,
        Kind::Zero => MAX_ZERO_BYTES,
    }
}

/// The image that is written.
#[derive(Clone)]
pub(crate) struct Target {
    /// The image.
    pub(crate) node: Arc<BlockNode>,
    /// How it is used.
    pub(crate) options: BackendOptions,
    /// Whether it is full of zeroes, so that they need not be written.
    pub(crate) is_zero: bool,
    /// Flags of all writes.
    pub(crate) flags: WriteFlags,
    /// Runs of zeroes in data that are at least so long, in bytes, are written as zeroes; 0: none, and all
    /// zeroes are written as data.
    pub(crate) sparse_bytes: u64,
    /// What is copied is whole units of so many bytes.
    pub(crate) unit: u64,
    /// Units in which zeroes are looked for.
    pub(crate) zero_unit: u64,
}

/// A copy that goes on. Shared by the workers.
pub(crate) struct Copy {
    /// The images that are copied, one behind the other.
    pub(crate) parts: Vec<Part>,
    /// The image that is written.
    pub(crate) target: Target,
    /// Pieces to be copied.
    pub(crate) queue: Queue<Kind>,
    /// Has writes begin one after the other, in the order of their offsets.
    pub(crate) order: Option<Order<Ready>>,
    /// Whether neither side is open with O_DIRECT.
    pub(crate) is_of_page_cache: bool,
    /// A limit.
    pub(crate) rate: Option<Rate>,
    /// Whether what cannot be read is replaced by zeroes, and told unless this is quiet.
    pub(crate) salvage: Option<Quiet>,
    /// What is done.
    pub(crate) progress: Arc<Progress>,
    /// Buffers that are not in use.
    pub(crate) buffers: Mutex<Vec<AlignedBuffer>>,
}

/// Whether nothing is told of what was salvaged.
#[derive(Clone, Copy)]
pub(crate) struct Quiet(pub(crate) bool);

/// A piece that can be written.
pub(crate) struct Ready {
    piece: Piece<Kind>,
    buffer: Option<AlignedBuffer>,
}

/// The backends of one thread.
struct Hands {
    sources: Vec<BlockBackend>,
    target: BlockBackend,
}

impl Copy {
    /// The end of the whole, in bytes.
    fn end(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.place.end)
    }

    /// Copies all, with so many pieces at a time, on all CPUs.
    ///
    /// # Errors
    /// Why the copy has stopped. What is written is not flushed in any case.
    pub(crate) fn co_run(self, co: &Co<'_>, pieces: usize) -> Result<(), Failure> {
        let crew = match self.is_of_page_cache {
            true => Crew::of_page_cache(pieces)?,
            false => Crew::new(pieces)?,
        };
        let (copy, tasks) = (Arc::new(self), pieces.div_ceil(crew.len()));
        let progress = Arc::clone(&copy.progress);
        crew.co_run(co, &progress, move |co, number| copy.co_work(co, number, tasks))
    }

    /// The work of one thread of a crew: `tasks` pieces at a time. The thread with number 0 walks, too.
    ///
    /// # Errors
    /// Why the copy has stopped.
    fn co_work(self: &Arc<Copy>, co: &Co<'_>, number: usize, tasks: usize) -> Result<(), Failure> {
        let hands = Rc::new(self.co_open(co).inspect_err(|error| self.queue.fail(error.clone()))?);
        let pool = TaskPool::<Failure>::new(tasks + 1);
        if number == 0 {
            let (copy, hands) = (Arc::clone(self), Rc::clone(&hands));
            pool.start(co, "walk", move |co| {
                let walked = copy.co_walk(co, &hands);
                walked.unwrap_or_else(|failure| copy.queue.fail(failure));
                copy.queue.complete();
                Ok(())
            });
        }
        for _ in 0..tasks {
            let (copy, hands) = (Arc::clone(self), Rc::clone(&hands));
            pool.start(co, "copy", move |co| {
                copy.co_copy_pieces(co, &hands);
                Ok(())
            });
        }
        let result = pool.wait_all(co);
        if let Ok(hands) = Rc::try_unwrap(hands) {
            hands.co_close(co);
        }
        result.and(self.queue.failure().map_or(Ok(()), Err))
    }

    fn co_open(&self, co: &Co<'_>) -> Result<Hands, Failure> {
        let open = |options: &BackendOptions, node: &Arc<BlockNode>| {
            options.co_open(co, Arc::clone(node)).map_err(Failure::new)
        };
        let sources = self.parts.iter().map(|part| open(&part.options, &part.node));
        let sources = sources.collect::<Result<Vec<_>, Failure>>()?;
        Ok(Hands { sources, target: open(&self.target.options, &self.target.node)? })
    }

    fn co_walk(&self, co: &Co<'_>, hands: &Hands) -> Result<(), Failure> {
        let mut walk = Walk {
            queue: &self.queue,
            progress: &self.progress,
            skips_zeroes: self.target.is_zero && self.target.sparse_bytes > 0,
            unit: self.target.unit,
            end: self.end(),
            given_to: 0,
        };
        for (part, source) in self.parts.iter().zip(&hands.sources) {
            walk.co_walk(co, source, part)?;
        }
        Ok(())
    }

    fn co_copy_pieces(&self, co: &Co<'_>, hands: &Hands) {
        while let Some(piece) = self.queue.co_take(co) {
            match self.co_get_ready(co, hands, piece) {
                Ok(ready) => self.co_write_what_is_due(co, hands, ready),
                Err(failure) => self.queue.fail(failure),
            }
        }
    }

    /// Reads a piece.
    fn co_get_ready(
        &self,
        co: &Co<'_>,
        hands: &Hands,
        piece: Piece<Kind>,
    ) -> Result<Ready, Failure> {
        let is_data = piece.run.kind == Kind::Data || self.target.sparse_bytes == 0;
        if !is_data {
            return Ok(Ready { piece, buffer: None });
        }
        let buffer = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let made = || AlignedBuffer::new(MAX_DATA_BYTES as usize, MEMORY_ALIGNMENT);
        let mut buffer = buffer.map_or_else(made, Ok).map_err(Failure::new)?;
        let bytes = (piece.run.bytes as usize).min(buffer.len());
        match piece.run.kind {
            Kind::Data => self.co_read(co, hands, piece.run.start, &mut buffer[..bytes])?,
            Kind::Zero => buffer[..bytes].fill(0),
        }
        Ok(Ready { piece, buffer: Some(buffer) })
    }

    /// Reads from the parts that have the bytes.
    fn co_read(
        &self,
        co: &Co<'_>,
        hands: &Hands,
        start: u64,
        target: &mut [u8],
    ) -> Result<(), Failure> {
        let range = start..start + target.len() as u64;
        for (part, source) in self.parts.iter().zip(&hands.sources) {
            let there = range.start.max(part.place.start)..range.end.min(part.place.end);
            if there.is_empty() {
                continue;
            }
            let offset = part.offset(there.start);
            let target = &mut target[within(&there, start)];
            let read = source.co_read(co, offset, target);
            match (read, self.salvage) {
                (Ok(()), _) => {}
                (Err(error), None) => {
                    let (at, why) = (there.start, words(&error));
                    return Err(Failure::new(format!("error while reading at byte {at}: {why}")));
                }
                (Err(_), Some(quiet)) => co_salvage(co, source, offset, target, quiet),
            }
        }
        Ok(())
    }

    /// Writes a piece; or, where writes have an order, all pieces whose turn has come.
    fn co_write_what_is_due(&self, co: &Co<'_>, hands: &Hands, ready: Ready) {
        let Some(order) = &self.order else { return self.co_finish(co, hands, ready) };
        order.put(ready.piece.number, ready);
        while let Some(due) = order.take() {
            self.co_finish(co, hands, due);
            order.used();
        }
    }

    fn co_finish(&self, co: &Co<'_>, hands: &Hands, ready: Ready) {
        let run = ready.piece.run;
        if !self.queue.is_stopped()
            && let Err(failure) = self.co_write(co, hands, &ready)
        {
            self.queue.fail(failure);
        }
        self.progress.add(run.bytes);
        if let Some(buffer) = ready.buffer {
            self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
        self.queue.give_back();
    }

    fn co_write(&self, co: &Co<'_>, hands: &Hands, ready: &Ready) -> Result<(), Failure> {
        let run = ready.piece.run;
        if let Some(rate) = &self.rate {
            rate.co_wait(co, run.bytes, || self.queue.is_stopped());
        }
        let written = match &ready.buffer {
            Some(buffer) => {
                self.co_write_data(co, &hands.target, run.start, &buffer[..run.bytes as usize])
            }
            None => self.co_write_zeroes(co, &hands.target, run.start, run.bytes),
        };
        written.map_err(|(at, error)| {
            Failure::new(format!("error while writing at byte {at}: {}", words(&error)))
        })
    }

    /// Writes data, without runs of zeroes.
    fn co_write_data(
        &self,
        co: &Co<'_>,
        target: &BlockBackend,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), (u64, io::Error)> {
        let (sparse, unit) = (self.target.sparse_bytes, self.target.zero_unit);
        let mut done = 0;
        while done < bytes.len() {
            let to_unit = (unit - (start + done as u64) % unit) as usize;
            let (mut length, is_zero) = match sparse {
                0 => (bytes.len() - done, false),
                _ => next_run(&bytes[done..], sparse as usize, (to_unit, unit as usize)),
            };
            // What is compressed together is written by itself.
            if self.target.flags.contains(WriteFlags::COMPRESSED) && !is_zero {
                length = length.min(to_unit);
            }
            let (at, run) = (start + done as u64, &bytes[done..done + length]);
            match is_zero {
                true => self.co_write_zeroes(co, target, at, length as u64)?,
                false => {
                    let run = IoVector::from(run);
                    let written = target.co_pwritev(co, at, &run, self.target.flags);
                    written.map_err(|error| (at, error))?;
                }
            }
            done += length;
        }
        Ok(())
    }

    fn co_write_zeroes(
        &self,
        co: &Co<'_>,
        target: &BlockBackend,
        at: u64,
        bytes: u64,
    ) -> Result<(), (u64, io::Error)> {
        if self.target.is_zero {
            return Ok(());
        }
        let mut flags = ZeroFlags::MAY_UNMAP;
        flags.set(ZeroFlags::FUA, self.target.flags.contains(WriteFlags::FUA));
        target.co_pwrite_zeroes(co, at, bytes, flags).map_err(|error| (at, error))
    }
}

impl Hands {
    fn co_close(self, co: &Co<'_>) {
        for backend in self.sources.into_iter().chain([self.target]) {
            // The node is closed by its owner, who hears of errors.
            let _ = backend.co_close(co);
        }
    }
}

/// Where a range is in bytes that begin at an offset.
fn within(range: &Range<u64>, start: u64) -> Range<usize> {
    (range.start - start) as usize..(range.end - start) as usize
}

/// Reads what can be read, and puts zeroes for the rest.
fn co_salvage(co: &Co<'_>, source: &BlockBackend, start: u64, target: &mut [u8], quiet: Quiet) {
    let mut at = start;
    for chunk in target.chunks_mut(SALVAGE_BYTES as usize) {
        if let Err(error) = source.co_read(co, at, chunk) {
            chunk.fill(0);
            if !quiet.0 {
                eprintln!("coblk-img: warning: error while reading offset {at}: {}", words(&error));
            }
        }
        at += chunk.len() as u64;
    }
}

/// The length of the first run of data or of zeroes. Zeroes are at least `sparse` bytes long, unless they reach
/// to the end. Both are whole units, of which the first one may be shorter; the bytes may end within the last.
fn next_run(bytes: &[u8], sparse: usize, units: (usize, usize)) -> (usize, bool) {
    let first_zeroes = run(bytes, units, true);
    if is_long(first_zeroes, bytes, sparse) {
        return (first_zeroes, true);
    }
    let mut at = first_zeroes;
    loop {
        at += run(&bytes[at..], behind(units, at), false);
        let zeroes = run(&bytes[at..], behind(units, at), true);
        if at == bytes.len() || is_long(zeroes, &bytes[at..], sparse) {
            return (at, false);
        }
        at += zeroes;
    }
}

/// The units behind whole ones.
fn behind((first, unit): (usize, usize), at: usize) -> (usize, usize) {
    if at == 0 { (first, unit) } else { (unit, unit) }
}

fn is_long(zeroes: usize, bytes: &[u8], sparse: usize) -> bool {
    zeroes > 0 && (zeroes >= sparse || zeroes == bytes.len())
}

/// How many bytes there are in the units at the beginning that are zero, or are not.
fn run(bytes: &[u8], (first, unit): (usize, usize), zero: bool) -> usize {
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    if is_zero(head) != zero || head.is_empty() {
        return 0;
    }
    let units = rest.chunks(unit).take_while(|unit| is_zero(unit) == zero);
    head.len() + units.map(<[u8]>::len).sum::<usize>()
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    // The bits of a block at once: a loop that the compiler makes vectors of.
    let is_zero = |block: &[u8]| block.iter().fold(0, |bits, byte| bits | byte) == 0;
    blocks.iter().all(|block| is_zero(block)) && is_zero(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_of_zeroes_are_data() {
        let mut bytes = vec![0; 64 << 10];
        assert_eq!(next_run(&bytes, 4096, (512, 512)), (64 << 10, true));
        bytes[8192] = 1;
        assert_eq!(next_run(&bytes, 4096, (512, 512)), (8192, true));
        assert_eq!(next_run(&bytes[8192..], 4096, (512, 512)), (512, false));
        // 2048 bytes of zeroes between data.
        bytes[8192 + 2560] = 1;
        assert_eq!(next_run(&bytes[8192..], 4096, (512, 512)), (3072, false));
        assert_eq!(next_run(&bytes[8192..], 4096, (4096, 4096)), (4096, false));
        assert_eq!(next_run(&bytes[8192..], 4096, (1024, 4096)), (1024 + 4096, false));
        // The last bytes may be fewer.
        assert_eq!(next_run(&[1; 700], 4096, (512, 512)), (700, false));
        assert_eq!(next_run(&[0; 700], 4096, (512, 512)), (700, true));
    }

    #[test]
    fn one_bit_is_not_zero() {
        for at in [0, 63, 64, 511, 699] {
            let mut bytes = [0; 700];
            assert!(is_zero(&bytes));
            bytes[at] = 0x10;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
