//! `convert`: copies images to another one, of any format.

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use coblk::{BlockNode, WriteFlags};
use serde_json::Value;

use super::create::NewImage;
use super::option_list::create_options;
use super::options::{Objects, cache};
use super::{Tool, backing_of, bitmap, option_help, source_snapshot};
use crate::engine::{
    Copy, Order, Part, Queue, Quiet, Rate, Target, max_bytes, max_bytes_of_data, max_writes,
};
use crate::failure::{Failure, words};
use crate::image::{Cache, Image, ImageSpec};
use crate::progress::Progress;
use crate::size;

/// Pieces that are copied at a time, without `-m`.
const DEFAULT_PIECES: u64 = 8;
/// Most pieces that `-m` may ask for.
const MAX_PIECES: u64 = 128;
/// Runs of zeroes that are not written as data, without `-S`.
const DEFAULT_SPARSE_BYTES: u64 = 4096;
/// Zeroes are looked for in units of at most so many bytes.
const MAX_ZERO_UNIT: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
const NO_COMPRESSION: &str = "Compression not supported for this file format";

/// Copy images to another one, in any format
#[derive(clap::Args, Debug)]
pub(crate) struct Convert {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Show progress
    #[arg(short, long)]
    progress: bool,
    /// The format of the sources; found by their first bytes without this
    #[arg(short = 'f', long = "source-format", value_name = "FORMAT")]
    source_format: Option<String>,
    /// The names of the sources are lists of options of nodes
    #[arg(long = "source-image-opts", alias = "image-opts", conflicts_with = "source_format")]
    source_image_opts: bool,
    /// Copy this internal snapshot of the source: an id or a name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT")]
    source_snapshot: Option<String>,
    /// How the sources are cached: none, writeback, unsafe, directsync or writethrough
    #[arg(short = 'T', long = "source-cache", value_name = "MODE")]
    source_cache: Option<String>,
    /// The format of the target
    #[arg(short = 'O', long = "target-format", value_name = "FORMAT")]
    target_format: Option<String>,
    /// The name of the target is a list of options of a node; it exists
    #[arg(long, conflicts_with = "target_format", requires = "no_create")]
    target_image_opts: bool,
    /// Options of the new image, such as cluster_size=2M,lazy_refcounts=on; help: all of them are told
    #[arg(short = 'o', long = "target-options", value_name = "OPTIONS")]
    target_options: Vec<OsString>,
    /// Compress the data
    #[arg(short, long)]
    compress: bool,
    /// How the target is cached; without this it may be lost if the host fails
    #[arg(short = 't', long = "target-cache", value_name = "MODE")]
    target_cache: Option<String>,
    /// The backing file of the new image: what the source has of it is not copied
    #[arg(short = 'B', long, value_name = "FILENAME")]
    backing: Option<OsString>,
    /// The format of the backing file
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "backing")]
    backing_format: Option<String>,
    /// The target exists
    #[arg(short = 'n', long)]
    no_create: bool,
    /// The target exists, and reads as zeroes
    #[arg(long, requires = "no_create")]
    target_is_zero: bool,
    /// Zeroes that are fewer bytes are data; 0: all zeroes are written
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse_size: Option<String>,
    /// Copy the persistent bitmaps, too
    #[arg(long)]
    bitmaps: bool,
    /// Leave out bitmaps that are inconsistent
    #[arg(long, requires = "bitmaps")]
    skip_broken_bitmaps: bool,
    /// Open the sources also if other programs write them meanwhile
    #[arg(short = 'U', long)]
    force_share: bool,
    /// At most so many bytes a second
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,
    /// So many pieces are copied at a time: 8 without this
    #[arg(short = 'm', long, value_name = "COUNT")]
    parallel: Option<String>,
    /// Copy all data as it is: no zeroes are looked for
    #[arg(short = 'C', long = "copy-range-offloading", conflicts_with_all = ["sparse_size", "compress"])]
    copy_range: bool,
    /// Put zeroes for what cannot be read
    #[arg(long)]
    salvage: bool,
    /// Write the pieces in any order, as those that are compressed are in any case
    #[arg(short = 'W', long)]
    oob_writes: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
    /// The sources, and the target
    #[arg(value_name = "FILENAME")]
    filenames: Vec<OsString>,
}

impl Convert {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let progress = Arc::new(Progress::new(self.progress && !self.quiet));
        let result = self.co_convert(tool, &progress);
        progress.end(result.is_ok());
        result
    }

    fn co_convert(&self, tool: &Tool<'_, '_>, progress: &Arc<Progress>) -> Result<(), Failure> {
        if option_help::is_asked(&self.target_options) {
            let name = self.filenames.last().map(OsString::as_os_str);
            return option_help::show_create(tool, self.target_format(), name);
        }
        let Some((target_name, sources @ [_, ..])) = self.filenames.split_last() else {
            return Err(Failure::usage("Must specify image file name"));
        };
        self.check()?;
        if self.source_snapshot.is_some() && sources.len() > 1 {
            return Err(Failure::new("A snapshot of one image can be copied, and not of several"));
        }
        if self.bitmaps && sources.len() > 1 {
            return Err(Failure::new("Copying bitmaps only possible with single source"));
        }
        let sources = self.co_open_sources(tool, sources)?;
        if self.bitmaps {
            bitmap::check_copy(&sources[0], self.target_format(), self.skip_broken_bitmaps)?;
        }
        let bytes: u64 = sources.iter().map(|image| image.node.length()).sum();
        if self.has_backing()? && sources.len() > 1 {
            return Err(Failure::new(
                "Having a backing file for the target makes no sense when concatenating multiple input images",
            ));
        }
        let target = self.co_make_target(tool, target_name, bytes)?;
        let copy = self.copy(tool, &sources, &target, progress)?;
        progress.begin(bytes);
        copy.co_run(tool.co, self.pieces()?)?;
        if self.bitmaps {
            // They mark nothing of the copy itself.
            bitmap::co_copy_all(tool, &sources[0].node, &target)?;
        }
        let flushed = target.backend.co_flush(tool.co);
        flushed.map_err(|error| Failure::new(format!("error while writing: {}", words(&error))))?;
        tool.images.co_close(tool.co, target)
    }

    /// Checks what needs no image, before one is opened or made.
    fn check(&self) -> Result<(), Failure> {
        self.pieces()?;
        self.sparse_bytes()?;
        self.bytes_a_second()?;
        if self.no_create && !self.target_options.is_empty() {
            return Err(Failure::new("-o has no effect when skipping image creation"));
        }
        if self.compress && self.target_format() == "raw" && !self.target_image_opts {
            return Err(Failure::new(NO_COMPRESSION));
        }
        let options = create_options(&self.target_options)?;
        let compat = options.get("compat").and_then(Value::as_str);
        if self.bitmaps && matches!(compat, Some("0.10" | "v2")) {
            return Err(Failure::new("Images of version 2 do not support bitmaps"));
        }
        Ok(())
    }

    /// Whether the new image reads as its backing file where it has nothing, and not as zeroes.
    fn has_backing(&self) -> Result<bool, Failure> {
        let options = create_options(&self.target_options)?;
        Ok(self.backing.is_some() || options.contains_key("backing_file"))
    }

    fn target_format(&self) -> &str {
        self.target_format.as_deref().unwrap_or("raw")
    }

    fn pieces(&self) -> Result<usize, Failure> {
        let number =
            |text: &String| size::parse_number("number of coroutines", text, 1, MAX_PIECES);
        Ok(self.parallel.as_ref().map_or(Ok(DEFAULT_PIECES), number)? as usize)
    }

    fn bytes_a_second(&self) -> Result<Option<u64>, Failure> {
        self.rate.as_deref().map(|rate| size::parse("rate limit", rate)).transpose()
    }

    fn sparse_bytes(&self) -> Result<u64, Failure> {
        match &self.sparse_size {
            // Only whole pieces, whose status says so.
            _ if self.copy_range => Ok(u64::MAX),
            None => Ok(DEFAULT_SPARSE_BYTES),
            Some(text) => {
                let bytes = size::parse("sparse size", text)?;
                Ok(bytes - bytes % SECTOR_BYTES)
            }
        }
    }

    fn co_open_sources(
        &self,
        tool: &Tool<'_, '_>,
        names: &[OsString],
    ) -> Result<Vec<Image>, Failure> {
        let cache = cache("source", self.source_cache.as_deref(), Cache::WRITEBACK)?;
        let open = |name: &OsString| {
            let spec = ImageSpec {
                is_options: self.source_image_opts,
                format: self.source_format.clone(),
                cache,
                force_share: self.force_share,
                ..ImageSpec::new(name.clone())
            };
            source_snapshot::co_open(tool, &spec, self.source_snapshot.as_deref())
        };
        names.iter().map(open).collect()
    }

    /// Makes the target unless it exists, and opens it.
    fn co_make_target(
        &self,
        tool: &Tool<'_, '_>,
        name: &OsString,
        bytes: u64,
    ) -> Result<Image, Failure> {
        let format = self.target_format();
        let spec = ImageSpec {
            is_options: self.target_image_opts,
            format: Some(format.to_owned()),
            cache: cache("target", self.target_cache.as_deref(), Cache::UNSAFE)?,
            is_writable: true,
            ..ImageSpec::new(name.clone())
        };
        if !self.no_create {
            NewImage {
                format,
                name,
                bytes: Some(bytes),
                backing: self.backing.as_ref(),
                backing_format: self.backing_format.as_deref(),
                options: create_options(&self.target_options)?,
            }
            .co_create(tool)?;
        }
        let target = tool.images.co_open(tool.co, &spec)?;
        if self.no_create && target.node.length() < bytes {
            return Err(Failure::new("output file is smaller than input file"));
        }
        Ok(target)
    }

    fn copy(
        &self,
        tool: &Tool<'_, '_>,
        sources: &[Image],
        target: &Image,
        progress: &Arc<Progress>,
    ) -> Result<Copy, Failure> {
        let (has_backing, mut end) = (self.has_backing()?, 0);
        let parts = sources.iter().map(|image| {
            let start = end;
            end += image.node.length();
            Part {
                node: Arc::clone(&image.node),
                options: image.options.clone(),
                base: has_backing.then(|| backing_of(&image.node)).flatten(),
                place: start..end,
                from: 0,
            }
        });
        let in_order = !self.oob_writes && !self.compress;
        let order = in_order.then(|| Order::new(max_writes(target.spec.cache)));
        let is_direct = target.spec.cache.direct || sources.iter().any(|it| it.spec.cache.direct);
        let (sparse_bytes, limits) = (self.sparse_bytes()?, target.node.limits());
        let mut flags = WriteFlags::empty();
        flags.set(WriteFlags::COMPRESSED, self.compress);
        flags.set(WriteFlags::FUA, target.spec.cache.writethrough);
        let parts = parts.collect();
        let unit = match self.compress {
            true => cluster_bytes(tool, &target.node)?,
            false => 1,
        };
        let zero_unit = 1 << sparse_bytes.clamp(SECTOR_BYTES, MAX_ZERO_UNIT).ilog2();
        let is_new = !self.no_create && !has_backing;
        let target = Target {
            is_zero: (is_new && is_zero_when_new(&target.node)) || self.target_is_zero,
            options: target.options.clone(),
            node: Arc::clone(&target.node),
            flags,
            sparse_bytes,
            unit,
            zero_unit: unit.max(zero_unit).max(limits.pwrite_zeroes_alignment.into()),
        };
        let max = if sparse_bytes == 0 { max_bytes_of_data } else { max_bytes };
        Ok(Copy {
            parts,
            target,
            queue: Queue::new(self.pieces()?, max, tool.interrupt.clone()),
            order,
            is_of_page_cache: !is_direct,
            rate: self.bytes_a_second()?.map(Rate::new),
            salvage: self.salvage.then_some(Quiet(self.quiet)),
            progress: Arc::clone(progress),
            buffers: Mutex::default(),
        })
    }
}

/// Whether a new image reads as zeroes: one in a file that was made with it. A device has what it had before,
/// and so may have another file for data.
fn is_zero_when_new(node: &BlockNode) -> bool {
    let children = node.children();
    let is_file = |(name, child): &(_, Arc<BlockNode>)| {
        *name == "file" && child.driver().format_name() == "file"
    };
    children.len() == 1 && children.iter().all(is_file)
}

/// Bytes that are compressed together.
fn cluster_bytes(tool: &Tool<'_, '_>, node: &BlockNode) -> Result<u64, Failure> {
    let info = node.co_image(tool.co).and_then(|image| image.info());
    let bytes = info.ok().and_then(|info| info.cluster_size);
    bytes.ok_or_else(|| Failure::new(NO_COMPRESSION))
}
