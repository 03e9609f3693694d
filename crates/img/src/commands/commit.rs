//! `commit`: writes what an image has into a backing file.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use coblk::WriteFlags;

use super::options::{Named, cache};
use super::{Tool, full_name};
use crate::engine::{Copy, Order, Part, Queue, Rate, Target, max_bytes, max_writes};
use crate::failure::{Failure, words};
use crate::image::{Backing, Cache, Image, ImageSpec};
use crate::output::say;
use crate::progress::Progress;
use crate::size;

/// Pieces that are copied at a time.
const MAX_PIECES: usize = 8;
/// Runs of zeroes that are not written as data.
const SPARSE_BYTES: u64 = 4096;
/// Most images of a chain.
const MAX_IMAGES: usize = 200;

/// Write what an image has into its backing file
#[derive(clap::Args, Debug)]
pub(crate) struct Commit {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// How the images are cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 't', long, value_name = "MODE")]
    cache: Option<String>,
    /// Write to this one of its backing files; implies -d
    #[arg(short = 'b', long, value_name = "FILENAME")]
    base: Option<String>,
    /// Leave the image as it is: it may be removed then
    #[arg(short, long)]
    drop: bool,
    /// At most so many bytes a second
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// The image
    filename: OsString,
}

impl Commit {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let progress = Arc::new(Progress::new(self.progress && !self.quiet));
        let cache = cache("destination", self.cache.as_deref(), Cache::WRITEBACK)?;
        let spec = ImageSpec { cache, ..self.named.spec(&self.filename) };
        let chain = self.co_chain(tool, spec)?;
        let (image, base) = self.co_open(tool, chain)?;
        let result = self.co_commit(tool, &image, &base, &progress);
        progress.end(result.is_ok());
        result?;
        if !self.drop && self.base.is_none() {
            co_empty(tool, &image)?;
        }
        tool.images.co_close(tool.co, image)?;
        Ok(say(self.quiet, "Image committed.")?)
    }

    /// The image, and its backing files down to the one that is written.
    fn co_chain(&self, tool: &Tool<'_, '_>, top: ImageSpec) -> Result<Vec<ImageSpec>, Failure> {
        let mut chain = vec![top];
        while let Some(spec) = chain.last().filter(|_| chain.len() <= MAX_IMAGES) {
            let name = spec.label();
            let spec = ImageSpec { backing: Backing::None, metadata_only: true, ..spec.clone() };
            let image = tool.images.co_open(tool.co, &spec)?;
            let info = image.node.co_image(tool.co).and_then(|image| image.info());
            tool.images.co_close(tool.co, image)?;
            let Some(backing) = info.ok().and_then(|info| info.backing) else { break };
            let next = full_name(&name, &backing.name);
            // A relative name is one from the directory of the image above, as in its header.
            let is_base = self.base.as_ref().is_none_or(|base| {
                *base == backing.name || is_same_file(&full_name(&name, base), &next)
            });
            let cache = spec.cache;
            chain.push(ImageSpec { format: backing.format, cache, ..ImageSpec::new(next) });
            if is_base {
                return Ok(chain);
            }
        }
        let top = self.filename.display();
        Err(Failure::new(match &self.base {
            Some(base) => format!("Did not find '{base}' in the backing chain of '{top}'"),
            None => "Image does not have a backing file".to_owned(),
        }))
    }

    /// Opens the base, and then the images above it on it.
    fn co_open(
        &self,
        tool: &Tool<'_, '_>,
        chain: Vec<ImageSpec>,
    ) -> Result<(Image, Image), Failure> {
        let mut below: Option<(Image, Image)> = None;
        for (height, spec) in chain.into_iter().enumerate().rev() {
            let spec = ImageSpec {
                shares_writes: below.is_some(),
                is_writable: below.is_none() || height == 0,
                node_name: Some(format!("image-{height}")),
                backing: match &below {
                    None => Backing::OfImage,
                    Some((image, _)) => Backing::Node(image.node.name().to_owned()),
                },
                ..spec
            };
            let image = tool.images.co_open(tool.co, &spec)?;
            let base = below.map_or_else(|| image.clone(), |(_, base)| base);
            below = Some((image, base));
        }
        below.ok_or_else(|| Failure::new("Image does not have a backing file"))
    }

    fn co_commit(
        &self,
        tool: &Tool<'_, '_>,
        image: &Image,
        base: &Image,
        progress: &Arc<Progress>,
    ) -> Result<(), Failure> {
        let (co, length) = (tool.co, image.node.length());
        let failed =
            |error: std::io::Error| Failure::new(format!("Block job failed: {}", words(&error)));
        if base.node.length() < length {
            base.backend.co_truncate(co, length).map_err(failed)?;
        }
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::FUA, base.spec.cache.writethrough);
        let rate = self.rate.as_deref().map(|rate| size::parse("rate limit", rate)).transpose()?;
        let copy = Copy {
            parts: vec![Part {
                node: Arc::clone(&image.node),
                options: image.options.clone(),
                base: Some(Arc::clone(&base.node)),
                place: 0..length,
                from: 0,
            }],
            target: Target {
                node: Arc::clone(&base.node),
                options: base.options.clone(),
                is_zero: false,
                flags,
                sparse_bytes: SPARSE_BYTES,
                unit: 1,
                zero_unit: SPARSE_BYTES.max(base.node.limits().pwrite_zeroes_alignment.into()),
            },
            queue: Queue::new(MAX_PIECES, max_bytes, tool.interrupt.clone()),
            order: Some(Order::new(max_writes(base.spec.cache))),
            is_of_page_cache: !image.spec.cache.direct && !base.spec.cache.direct,
            rate: rate.map(Rate::new),
            salvage: None,
            progress: Arc::clone(progress),
            buffers: Mutex::default(),
        };
        progress.begin(length);
        let copied = copy.co_run(co, MAX_PIECES);
        // Before the image gives up what it has.
        copied.and_then(|()| base.backend.co_flush(co).map_err(failed))
    }
}

/// Has the image drop what it has, as the backing file has it now.
fn co_empty(tool: &Tool<'_, '_>, image: &Image) -> Result<(), Failure> {
    let emptied = image.node.co_image(tool.co).and_then(|image| image.co_make_empty(tool.co));
    match emptied {
        Err(error) if error.raw_os_error() != Some(libc::ENOTSUP) => {
            let (name, why) = (image.spec.label(), words(&error));
            Err(Failure::new(format!("Could not empty {name}: {why}")))
        }
        _ => Ok(()),
    }
}

/// Whether two names are those of one file, from the working directory.
fn is_same_file(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|name| std::path::absolute(name).ok());
    one.is_some() && one == other
}
