//! `resize`: changes the length of an image.

use std::ffi::OsString;

use clap::ValueEnum;
use coblk::block::{Preallocation, Truncate};

use super::Tool;
use super::options::Named;
use crate::failure::{Failure, words};
use crate::image::ImageSpec;
use crate::output::say;
use crate::size;

/// Change the length of an image
#[derive(clap::Args, Debug)]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) named: Named,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// The image may become shorter: what is behind its new end is lost
    #[arg(long)]
    shrink: bool,
    /// How space for new bytes is allocated
    #[arg(long, value_enum, value_name = "HOW", default_value = "off")]
    preallocation: How,
    /// The image
    filename: OsString,
    /// The new length in bytes, or with a unit; with + or - so much more or less
    #[arg(allow_hyphen_values = true)]
    size: String,
}

/// How space is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// When it is written.
    Off,
    /// Its metadata now.
    Metadata,
    /// Now, without writing it.
    Falloc,
    /// Now, by writing zeroes.
    Full,
}

impl Resize {
    pub(crate) fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        let spec = ImageSpec { is_writable: true, ..self.named.spec(&self.filename) };
        let size = NewSize::parse(&self.size)?;
        let image = tool.images.co_open(tool.co, &spec)?;
        let old = image.node.length();
        let new = size.of(old)?;
        if new < old && !self.shrink {
            return Err(Failure::new(
                "Use the --shrink option to perform a shrink operation: all data beyond the new end is lost",
            ));
        }
        let preallocation = match self.preallocation {
            How::Off => Preallocation::Off,
            How::Metadata => Preallocation::Metadata,
            How::Falloc => Preallocation::Falloc,
            How::Full => Preallocation::Full,
        };
        if preallocation != Preallocation::Off && new <= old {
            return Err(Failure::new("Preallocation can only be used for growing images"));
        }
        let how = Truncate { exact: true, preallocation, ..Truncate::default() };
        image.backend.co_truncate_with(tool.co, new, how).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::ENOTSUP) => Failure::new("This image does not support resize"),
                _ => Failure::new(format!("Failed to resize the image: {}", words(&error))),
            }
        })?;
        tool.images.co_close(tool.co, image)?;
        Ok(say(self.quiet, "Image resized.")?)
    }
}

/// A length, perhaps by what it differs from the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewSize {
    Of(u64),
    More(u64),
    Less(u64),
}

impl NewSize {
    fn parse(text: &str) -> Result<NewSize, Failure> {
        let size = |text: &str| size::parse("image size", text);
        Ok(match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => NewSize::More(size(more)?),
            (_, Some(less)) => NewSize::Less(size(less)?),
            _ => NewSize::Of(size(text)?),
        })
    }

    fn of(self, old: u64) -> Result<u64, Failure> {
        let new = match self {
            NewSize::Of(bytes) => Some(bytes),
            NewSize::More(bytes) => old.checked_add(bytes),
            NewSize::Less(bytes) => old.checked_sub(bytes),
        };
        new.filter(|new| *new > 0).ok_or_else(|| Failure::new("New image size must be positive"))
    }
}
