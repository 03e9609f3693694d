//! Options that commands share.

use std::ffi::OsString;

use clap::Args;

use crate::failure::Failure;
use crate::image::{Cache, ImageSpec};

/// An image, and how its name is meant.
#[derive(Args, Debug)]
pub(crate) struct Named {
    /// The format of the image; found by its first bytes without this
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// The name is a list of options of a node, such as driver=qcow2,file.filename=a.img
    #[arg(long, conflicts_with = "format")]
    pub(crate) image_opts: bool,
    /// Open the image also if other programs write it meanwhile
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    #[command(flatten)]
    pub(crate) objects: Objects,
}

impl Named {
    /// The image of a name, for reads.
    pub(crate) fn spec(&self, name: &OsString) -> ImageSpec {
        ImageSpec {
            format: self.format.clone(),
            is_options: self.image_opts,
            force_share: self.force_share,
            ..ImageSpec::new(name.clone())
        }
    }
}

/// Objects that options name.
#[derive(Args, Debug)]
pub(crate) struct Objects {
    /// An object that options name, such as secret,id=key,file=PATH
    #[arg(long = "object", value_name = "TYPE,id=ID,...")]
    pub(crate) objects: Vec<OsString>,
}

/// A cache mode of the option `what`.
pub(crate) fn cache(what: &str, name: Option<&str>, default: Cache) -> Result<Cache, Failure> {
    name.map_or(Ok(default), |name| Cache::parse(what, name))
}
