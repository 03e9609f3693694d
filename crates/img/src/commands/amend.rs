//! `amend`: changes properties of an image.

use std::ffi::OsString;

use coblk::block::Amend as Change;
use coblk::qapi::Deferred;

use super::create::typed;
use super::option_list::create_options;
use super::options::{Named, cache};
use super::{Tool, option_help};
use crate::failure::{Failure, words};
use crate::image::{Cache, Image, ImageSpec};
use crate::progress::Progress;
use crate::size;

/// Change properties of an image
#[derive(clap::Args, Debug)]
pub(crate) struct Amend {
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
    /// Go on where that may lose something
    #[arg(long)]
    force: bool,
    /// The properties, such as lazy_refcounts=on,compat=1.1; help: all of them are told
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// The image
    filename: Option<OsString>,
}

impl Amend {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        if self.options.is_empty() {
            return Err(Failure::usage("Must specify options (-o)"));
        }
        let is_help = option_help::is_asked(&self.options);
        if let (true, Some(format)) = (is_help, &self.named.format) {
            return option_help::show_amend(format);
        }
        let Some(filename) = &self.filename else {
            return Err(Failure::usage("Expecting one image file name"));
        };
        if is_help {
            let spec = ImageSpec { metadata_only: true, ..self.named.spec(filename) };
            let image = tool.images.co_open(tool.co, &spec)?;
            return option_help::show_amend(image.format());
        }
        let spec = ImageSpec {
            cache: cache("target", self.cache.as_deref(), Cache::WRITEBACK)?,
            is_writable: true,
            ..self.named.spec(filename)
        };
        let mut options = create_options(&self.options)?;
        let length = options.remove("size").map(|text| {
            let text = text.as_str().unwrap_or_default().to_owned();
            size::parse("image size", &text)
        });
        let (options, length) = (typed(options)?, length.transpose()?);
        let image = tool.images.co_open(tool.co, &spec)?;
        let progress = Progress::new(self.progress && !self.quiet);
        progress.show();
        let amended = self.co_amend(tool, &image, options, length, &progress);
        progress.end(amended.is_ok());
        amended?;
        tool.images.co_close(tool.co, image)
    }

    fn co_amend(
        &self,
        tool: &Tool<'_, '_>,
        image: &Image,
        options: serde_json::Map<String, serde_json::Value>,
        length: Option<u64>,
        progress: &Progress,
    ) -> Result<(), Failure> {
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENOTSUP) => {
                let format = image.format();
                Failure::new(format!("Format driver '{format}' does not support option amendment"))
            }
            _ => Failure::new(format!("Error while amending options: {}", words(&error))),
        };
        let operations = image.node.co_image(tool.co).map_err(failed)?;
        if !options.is_empty() {
            let shown = |done, total| {
                progress.set(done, total);
                progress.show();
            };
            let mut change = Change::new(Deferred::new(options));
            (change.force, change.progress) = (self.force, &shown);
            operations.co_amend(tool.co, change).map_err(failed)?;
        }
        drop(operations);
        match length {
            Some(bytes) => image.backend.co_truncate(tool.co, bytes).map_err(failed),
            None => Ok(()),
        }
    }
}
