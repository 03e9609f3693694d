//! `compare`: whether two images have the same bytes.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use coblk::aio::sync::TaskPool;
use coblk::block::Extent;
use coblk::{AlignedBuffer, BackendOptions, BlockBackend, BlockNode, Co};

use super::Tool;
use super::options::{Objects, cache};
use crate::engine::{Crew, Queue, Run, is_zero};
use crate::failure::{Failure, words};
use crate::image::{Cache, Image, ImageSpec};
use crate::output::say;
use crate::progress::Progress;

/// Exit codes for errors, as 1 says that the images differ.
const CANNOT_OPEN: u8 = 2;
const CANNOT_ASK: u8 = 3;
const CANNOT_READ: u8 = 4;
/// Pieces of cached images that are compared at a time, and their length in bytes: short enough to be read in
/// place from the page cache, and compared in the CPU's.
const CACHED: (usize, u64) = (32, 64 << 10);
/// The same of images that are read from the disk.
const DIRECT: (usize, u64) = (8, 1 << 20);
/// Most bytes that are asked about at once.
const MAX_ASKED: u64 = 1 << 30;
/// A difference is told by the sector in which it is.
const SECTOR_BYTES: usize = 512;
/// The largest alignment that O_DIRECT may ask of memory.
const MEMORY_ALIGNMENT: usize = 4096;

/// Compare the bytes of two images
#[derive(clap::Args, Debug)]
pub(crate) struct Compare {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// The format of the first image; found by its first bytes without this
    #[arg(short = 'f', long = "a-format", value_name = "FORMAT")]
    first_format: Option<String>,
    /// The format of the second image
    #[arg(short = 'F', long = "b-format", value_name = "FORMAT")]
    second_format: Option<String>,
    /// The names are lists of options of nodes
    #[arg(long, conflicts_with_all = ["first_format", "second_format"])]
    image_opts: bool,
    /// Images of different size, or with other bytes allocated, differ
    #[arg(short, long)]
    strict: bool,
    /// How the images are cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 'T', long, value_name = "MODE")]
    cache: Option<String>,
    /// Open the images also if other programs write them meanwhile
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
    /// The first image
    filename1: OsString,
    /// The second image
    filename2: OsString,
}

/// Which images have data; the others read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Both,
    First,
    Second,
}

/// What differs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Content(u64),
    Status(u64),
}

impl Difference {
    fn offset(self) -> u64 {
        let (Difference::Content(offset) | Difference::Status(offset)) = self;
        offset
    }
}

/// A comparison that goes on. Shared by the workers.
struct Comparison {
    nodes: [Arc<BlockNode>; 2],
    options: [BackendOptions; 2],
    is_strict: bool,
    queue: Queue<Kind>,
    piece_bytes: usize,
    progress: Arc<Progress>,
    first: Mutex<Option<Difference>>,
}

impl Compare {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let images = self.co_open(tool).map_err(|failure| failure.with_code(CANNOT_OPEN))?;
        let lengths = images.each_ref().map(|image| image.node.length());
        if self.strict && lengths[0] != lengths[1] {
            say(self.quiet, "Strict mode: Image size mismatch!")?;
            return Err(Failure::silent(1));
        }
        let progress = Arc::new(Progress::new(self.progress && !self.quiet));
        let result = self.co_compare(tool, &images, &progress);
        progress.end(matches!(result, Ok(None)));
        let difference = result?;
        let shorter = lengths[0].min(lengths[1]);
        if lengths[0] != lengths[1] && difference.is_none_or(|it| it.offset() >= shorter) {
            say(self.quiet, "Warning: Image size mismatch!")?;
        }
        match difference {
            None => {
                say(self.quiet, "Images are identical.")?;
                return Ok(());
            }
            Some(Difference::Content(offset)) => {
                say(self.quiet, &format!("Content mismatch at offset {offset}!"))?;
            }
            Some(Difference::Status(offset)) => {
                say(self.quiet, &format!("Strict mode: Offset {offset} block status mismatch!"))?;
            }
        }
        Err(Failure::silent(1))
    }

    fn co_open(&self, tool: &Tool<'_, '_>) -> Result<[Image; 2], Failure> {
        let cache = cache("source", self.cache.as_deref(), Cache::WRITEBACK)?;
        let open = |name: &OsString, format: &Option<String>| {
            let spec = ImageSpec {
                is_options: self.image_opts,
                format: format.clone(),
                cache,
                force_share: self.force_share,
                ..ImageSpec::new(name.clone())
            };
            tool.images.co_open(tool.co, &spec)
        };
        Ok([
            open(&self.filename1, &self.first_format)?,
            open(&self.filename2, &self.second_format)?,
        ])
    }

    fn co_compare(
        &self,
        tool: &Tool<'_, '_>,
        images: &[Image; 2],
        progress: &Arc<Progress>,
    ) -> Result<Option<Difference>, Failure> {
        progress.begin(images[0].node.length().max(images[1].node.length()));
        let is_direct = images.iter().any(|image| image.spec.cache.direct);
        let (pieces, piece_bytes) = if is_direct { DIRECT } else { CACHED };
        let max_bytes = if is_direct { |_| DIRECT.1 } else { |_| CACHED.1 };
        let crew = Crew::new(pieces)?;
        let comparison = Arc::new(Comparison {
            nodes: images.each_ref().map(|image| Arc::clone(&image.node)),
            options: images.each_ref().map(|image| image.options.clone()),
            is_strict: self.strict,
            queue: Queue::new(pieces, max_bytes, tool.interrupt.clone()),
            piece_bytes: piece_bytes as usize,
            progress: Arc::clone(progress),
            first: Mutex::new(None),
        });
        let (work, tasks) = (Arc::clone(&comparison), pieces.div_ceil(crew.len()));
        crew.co_run(tool.co, progress, move |co, number| work.co_work(co, number, tasks))?;
        let first = comparison.first.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(*first)
    }
}

impl Comparison {
    fn co_work(self: &Arc<Self>, co: &Co<'_>, number: usize, tasks: usize) -> Result<(), Failure> {
        let open = |at: usize| self.options[at].co_open(co, Arc::clone(&self.nodes[at]));
        let open = |at| open(at).map_err(|error| Failure::new(error).with_code(CANNOT_OPEN));
        let backends = [open(0), open(1)];
        let [first, second] =
            backends.map(|it| it.inspect_err(|error| self.queue.fail(error.clone())));
        let backends = [first?, second?];
        let pool = TaskPool::<Failure>::new(tasks + 1);
        if number == 0 {
            let (work, backends) = (Arc::clone(self), backends.clone());
            pool.start(co, "walk", move |co| {
                let walked = work.co_walk(co, &backends);
                walked.unwrap_or_else(|failure| work.queue.fail(failure));
                work.queue.complete();
                Ok(())
            });
        }
        for _ in 0..tasks {
            let (work, backends) = (Arc::clone(self), backends.clone());
            pool.start(co, "compare", move |co| {
                let compared = work.co_compare_pieces(co, &backends);
                compared.unwrap_or_else(|failure| work.queue.fail(failure));
                Ok(())
            });
        }
        let result = pool.wait_all(co);
        for backend in backends {
            // The node is closed by its owner, who hears of errors.
            let _ = backend.co_close(co);
        }
        result.and(self.queue.failure().map_or(Ok(()), Err))
    }

    /// Finds what has to be compared.
    fn co_walk(&self, co: &Co<'_>, backends: &[BlockBackend; 2]) -> Result<(), Failure> {
        let lengths = self.nodes.each_ref().map(|node| node.length());
        let end = lengths[0].max(lengths[1]);
        let mut known: [Option<(u64, Extent)>; 2] = [None; 2];
        let mut at = 0;
        while at < end {
            for image in [0, 1] {
                let is_known = known[image].is_some_and(|(start, it)| at < start + it.bytes);
                if !is_known {
                    known[image] =
                        Some((at, co_status(co, &backends[image], lengths[image], at, end)?));
                }
            }
            let [Some(first), Some(second)] = known else { return Ok(()) };
            let ends = [first, second].map(|(start, extent)| start + extent.bytes);
            let bytes = ends[0].min(ends[1]) - at;
            if self.is_strict && !is_same_status(&first.1, &second.1) {
                self.found(Difference::Status(at));
                return Ok(());
            }
            let kind = match (first.1.zero, second.1.zero) {
                (true, true) => None,
                (false, true) => Some(Kind::First),
                (true, false) => Some(Kind::Second),
                (false, false) => Some(Kind::Both),
            };
            match kind {
                None => self.progress.add(bytes),
                Some(kind) => {
                    if !self.queue.co_push(co, Run { start: at, bytes, kind }) {
                        return Ok(());
                    }
                }
            }
            at += bytes;
        }
        Ok(())
    }

    fn found(&self, difference: Difference) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none_or(|known| difference.offset() < known.offset()) {
            *first = Some(difference);
        }
    }

    fn co_compare_pieces(&self, co: &Co<'_>, backends: &[BlockBackend; 2]) -> Result<(), Failure> {
        let buffer = || AlignedBuffer::new(self.piece_bytes, MEMORY_ALIGNMENT);
        let mut buffers = [buffer().map_err(Failure::new)?, buffer().map_err(Failure::new)?];
        while let Some(piece) = self.queue.co_take(co) {
            let (run, bytes) = (piece.run, piece.run.bytes as usize);
            let mut read = |image: usize| {
                let buffer = &mut buffers[image][..bytes];
                backends[image].co_read(co, run.start, buffer).map_err(|error| {
                    let (at, why) = (run.start, words(&error));
                    let text = format!("Error while reading offset {at}: {why}");
                    Failure::new(text).with_code(CANNOT_READ)
                })
            };
            let (reads_first, reads_second) = (run.kind != Kind::Second, run.kind != Kind::First);
            let first = if reads_first { read(0) } else { Ok(()) };
            let second = if reads_second { read(1) } else { Ok(()) };
            first.and(second)?;
            let [first, second] = buffers.each_ref().map(|buffer| &buffer[..bytes]);
            let difference = match run.kind {
                Kind::Both => first_difference(first, second),
                Kind::First => first_data(first),
                Kind::Second => first_data(second),
            };
            if let Some(at) = difference {
                self.found(Difference::Content(run.start + at as u64));
                // Workers that have an earlier piece end it.
                self.queue.enough();
            }
            self.progress.add(run.bytes);
            self.queue.give_back();
        }
        Ok(())
    }
}

/// The status of the first bytes of a range; behind the end of an image there are zeroes.
fn co_status(
    co: &Co<'_>,
    backend: &BlockBackend,
    length: u64,
    at: u64,
    end: u64,
) -> Result<Extent, Failure> {
    if at >= length {
        return Ok(Extent { allocated: false, ..Extent::hole(end - at) });
    }
    let bytes = MAX_ASKED.min(length - at);
    let found = backend.co_block_status(co, at, bytes).map_err(|error| {
        let text = format!("Error while reading block status at offset {at}: {}", words(&error));
        Failure::new(text).with_code(CANNOT_ASK)
    })?;
    Ok(found)
}

fn is_same_status(first: &Extent, second: &Extent) -> bool {
    let status =
        |it: &Extent| (it.data, it.zero, it.allocated, it.compressed, it.stored.is_some(), it.end);
    status(first) == status(second)
}

fn first_difference(first: &[u8], second: &[u8]) -> Option<usize> {
    if first == second {
        return None;
    }
    let (first, second) = (first.chunks(SECTOR_BYTES), second.chunks(SECTOR_BYTES));
    first
        .zip(second)
        .position(|(first, second)| first != second)
        .map(|sector| sector * SECTOR_BYTES)
}

fn first_data(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    let mut sectors = bytes.chunks(SECTOR_BYTES);
    sectors.position(|sector| !is_zero(sector)).map(|sector| sector * SECTOR_BYTES)
}
