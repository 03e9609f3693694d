//! `rebase`: gives an image another backing file.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use coblk::aio::sync::TaskPool;
use coblk::block::BackingName;
use coblk::{
    AlignedBuffer, BackendOptions, BlockBackend, BlockNode, Co, IoVector, WriteFlags, ZeroFlags,
};

use super::option_list::is_format;
use super::options::{Named, cache};
use super::{Tool, backing_of, full_name};
use crate::engine::{Crew, Queue, Run, is_zero};
use crate::failure::{Failure, words};
use crate::image::{Backing, Cache, Image, ImageSpec};
use crate::progress::Progress;

/// Pieces that are looked at, at a time.
const MAX_PIECES: usize = 8;
/// Bytes of a piece, which has at least a cluster.
const PIECE_BYTES: u64 = 2 << 20;
/// What is copied is whole units of so many bytes, where the image has no clusters.
const UNIT_BYTES: u64 = 65536;
/// Most bytes that are asked about at once.
const MAX_ASKED: u64 = 1 << 30;
/// The largest alignment that O_DIRECT may ask of memory.
const MEMORY_ALIGNMENT: usize = 4096;

/// Give an image another backing file, or none
#[derive(clap::Args, Debug)]
pub(crate) struct Rebase {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// How the image is cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// The new backing file, relative to the image; an empty name for none
    #[arg(short = 'b', long, value_name = "FILENAME")]
    backing: Option<String>,
    /// The format of the new backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// How the backing files are cached
    #[arg(short = 'T', long, value_name = "MODE")]
    backing_cache: Option<String>,
    /// Write the name into the image, and nothing else: right if the files have the same bytes
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Compress what is copied
    #[arg(short, long, conflicts_with = "backing_unsafe")]
    compress: bool,
    /// The image
    filename: OsString,
}

/// A rebase that goes on. Shared by the workers.
struct Work {
    image: Arc<BlockNode>,
    image_options: BackendOptions,
    old: Option<Arc<BlockNode>>,
    new: Option<(Arc<BlockNode>, BackendOptions)>,
    queue: Queue<()>,
    progress: Arc<Progress>,
    unit: u64,
    flags: WriteFlags,
}

/// The backends of one thread.
#[derive(Clone)]
struct Hands {
    image: BlockBackend,
    new: Option<BlockBackend>,
}

impl Rebase {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        // A name that was forgotten is not an image that is to have no backing file.
        if self.backing.is_none() && !self.backing_unsafe {
            return Err(Failure::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
        }
        let name = self.backing.as_deref().filter(|name| !name.is_empty());
        let spec = ImageSpec {
            cache: cache("destination", self.cache.as_deref(), Cache::WRITEBACK)?,
            is_writable: true,
            backing: if self.backing_unsafe { Backing::None } else { Backing::OfImage },
            ..self.named.spec(&self.filename)
        };
        if name.is_some() && self.backing_format.is_none() {
            let name = name.unwrap_or_default();
            return Err(Failure::new(format!(
                "Could not change the backing file to '{name}': backing format must be specified"
            )));
        }
        if let Some(format) = &self.backing_format
            && !is_format(&tool.images.blockdevs().drivers().names(), format)
        {
            return Err(Failure::new(format!("Invalid format name: '{format}'")));
        }
        let progress = Arc::new(Progress::new(self.progress && !self.quiet));
        progress.show();
        let image = tool.images.co_open(tool.co, &spec)?;
        let result = match self.backing_unsafe {
            true => Ok(()),
            false => self.co_adapt(tool, &image, name, &progress),
        };
        let result = result.and_then(|()| self.co_change(tool, &image, name));
        progress.end(result.is_ok());
        result?;
        tool.images.co_close(tool.co, image)
    }

    /// Copies to the image what the new backing file has not.
    fn co_adapt(
        &self,
        tool: &Tool<'_, '_>,
        image: &Image,
        name: Option<&str>,
        progress: &Arc<Progress>,
    ) -> Result<(), Failure> {
        let cache = cache("source", self.backing_cache.as_deref(), Cache::WRITEBACK)?;
        let open = |name: &str| {
            let name = full_name(&self.filename.display().to_string(), name);
            let spec =
                ImageSpec { format: self.backing_format.clone(), cache, ..ImageSpec::new(name) };
            tool.images.co_open(tool.co, &spec)
        };
        let new = name.map(open).transpose()?;
        let info = image.node.co_image(tool.co).and_then(|image| image.info());
        let cluster = info.ok().and_then(|info| info.cluster_size);
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::COMPRESSED, self.compress);
        flags.set(WriteFlags::FUA, image.spec.cache.writethrough);
        progress.begin(image.node.length());
        let crew = Crew::new(MAX_PIECES)?;
        let work = Arc::new(Work {
            image: Arc::clone(&image.node),
            image_options: image.options.clone(),
            old: backing_of(&image.node),
            new: new.as_ref().map(|new| (Arc::clone(&new.node), new.options.clone())),
            queue: Queue::new(MAX_PIECES, |()| PIECE_BYTES, tool.interrupt.clone()),
            progress: Arc::clone(progress),
            unit: cluster.unwrap_or(UNIT_BYTES).min(PIECE_BYTES),
            flags,
        });
        let (shared, tasks) = (Arc::clone(&work), MAX_PIECES.div_ceil(crew.len()));
        crew.co_run(tool.co, progress, move |co, number| shared.co_work(co, number, tasks))?;
        drop((crew, work));
        new.map_or(Ok(()), |new| tool.images.co_close(tool.co, new))
    }

    /// Writes the name into the image, behind what was copied.
    fn co_change(
        &self,
        tool: &Tool<'_, '_>,
        image: &Image,
        name: Option<&str>,
    ) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            let (name, why) = (name.unwrap_or_default(), words(&error));
            Failure::new(format!("Could not change the backing file to '{name}': {why}"))
        };
        let backing = name.map(|name| BackingName::new(name, self.backing_format.clone()));
        image.backend.co_flush(tool.co).map_err(failed)?;
        let operations = image.node.co_image(tool.co).map_err(failed)?;
        operations.co_change_backing(tool.co, backing.as_ref()).map_err(failed)
    }
}

impl Work {
    fn co_work(self: &Arc<Self>, co: &Co<'_>, number: usize, tasks: usize) -> Result<(), Failure> {
        let hands = self.co_open(co).inspect_err(|error| self.queue.fail(error.clone()))?;
        let pool = TaskPool::<Failure>::new(tasks + 1);
        if number == 0 {
            let (work, hands) = (Arc::clone(self), hands.clone());
            pool.start(co, "walk", move |co| {
                let walked = work.co_walk(co, &hands);
                walked.unwrap_or_else(|failure| work.queue.fail(failure));
                work.queue.complete();
                Ok(())
            });
        }
        for _ in 0..tasks {
            let (work, hands) = (Arc::clone(self), hands.clone());
            pool.start(co, "rebase", move |co| {
                let adapted = work.co_adapt_pieces(co, &hands);
                adapted.unwrap_or_else(|failure| work.queue.fail(failure));
                Ok(())
            });
        }
        let result = pool.wait_all(co);
        for backend in std::iter::once(hands.image).chain(hands.new) {
            // The node is closed by its owner, who hears of errors.
            let _ = backend.co_close(co);
        }
        result.and(self.queue.failure().map_or(Ok(()), Err))
    }

    fn co_open(&self, co: &Co<'_>) -> Result<Hands, Failure> {
        let image =
            self.image_options.co_open(co, Arc::clone(&self.image)).map_err(Failure::new)?;
        let open = |(node, options): &(Arc<BlockNode>, BackendOptions)| {
            options.co_open(co, Arc::clone(node)).map_err(Failure::new)
        };
        Ok(Hands { image, new: self.new.as_ref().map(open).transpose()? })
    }

    /// Finds what the image has from its backing file.
    fn co_walk(&self, co: &Co<'_>, hands: &Hands) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(format!("error while reading image metadata: {}", words(&error)))
        };
        let (mut at, end) = (0, self.image.length());
        while at < end {
            let bytes = MAX_ASKED.min(end - at);
            let found = match &self.old {
                Some(old) => hands.image.co_status_above(co, Some(old), at, bytes),
                None => hands.image.co_status_above(co, None, at, bytes),
            };
            let extent = found.map_err(failed)?.extent;
            let bytes = extent.bytes;
            match extent.allocated {
                true => self.progress.add(bytes),
                false => {
                    if !self.queue.co_push(co, Run { start: at, bytes, kind: () }) {
                        return Ok(());
                    }
                }
            }
            at += bytes;
        }
        Ok(())
    }

    fn co_adapt_pieces(&self, co: &Co<'_>, hands: &Hands) -> Result<(), Failure> {
        let buffer =
            || AlignedBuffer::new(PIECE_BYTES as usize, MEMORY_ALIGNMENT).map_err(Failure::new);
        let (mut old, mut new) = (buffer()?, buffer()?);
        while let Some(piece) = self.queue.co_take(co) {
            let (start, bytes) = (piece.run.start, piece.run.bytes as usize);
            let (old, new) = (&mut old[..bytes], &mut new[..bytes]);
            let read = |backend: &BlockBackend, target: &mut [u8]| {
                backend.co_read(co, start, target).map_err(|error| {
                    Failure::new(format!("error while reading at byte {start}: {}", words(&error)))
                })
            };
            // What the image does not have it reads from the old backing file.
            read(&hands.image, old)?;
            let there =
                hands.new.as_ref().map_or(Ok(0), BlockBackend::length).map_err(Failure::new)?;
            let there = there.saturating_sub(start).min(bytes as u64) as usize;
            new[there..].fill(0);
            if let Some(backend) = &hands.new
                && there > 0
            {
                read(backend, &mut new[..there])?;
            }
            self.co_write(co, &hands.image, start, (old, new))?;
            self.progress.add(piece.run.bytes);
            self.queue.give_back();
        }
        Ok(())
    }

    /// Writes the units that differ to the image.
    fn co_write(
        &self,
        co: &Co<'_>,
        image: &BlockBackend,
        start: u64,
        (old, new): (&[u8], &[u8]),
    ) -> Result<(), Failure> {
        let mut at = 0;
        while at < old.len() {
            let place = start + at as u64;
            let unit = (self.unit - place % self.unit) as usize;
            let range = at..(at + unit).min(old.len());
            let (bytes, others) = (&old[range.clone()], &new[range.clone()]);
            at = range.end;
            if bytes == others {
                continue;
            }
            let written = match is_zero(bytes) {
                true => self.co_write_zeroes(co, image, place, bytes),
                false => image.co_pwritev(co, place, &IoVector::from(bytes), self.flags),
            };
            written.map_err(|error| {
                Failure::new(format!("error while writing at byte {place}: {}", words(&error)))
            })?;
        }
        Ok(())
    }

    /// Writes a unit of zeroes. Where the format has nothing that says zeroes it may be compressed.
    fn co_write_zeroes(
        &self,
        co: &Co<'_>,
        image: &BlockBackend,
        place: u64,
        zeroes: &[u8],
    ) -> io::Result<()> {
        let is_compressed = self.flags.contains(WriteFlags::COMPRESSED);
        let flags = if is_compressed { ZeroFlags::NO_FALLBACK } else { ZeroFlags::empty() };
        match image.co_pwrite_zeroes(co, place, zeroes.len() as u64, flags) {
            Err(error) if is_compressed && error.raw_os_error() == Some(libc::ENOTSUP) => {
                image.co_pwritev(co, place, &IoVector::from(zeroes), self.flags)
            }
            written => written,
        }
    }
}
