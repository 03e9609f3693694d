//! The commands, one a file: options, and what is done with them.

pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod info;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod objects;
mod option_help;
mod option_list;
mod options;
pub(crate) mod rebase;
pub(crate) mod resize;
pub(crate) mod snapshot;
mod snapshot_list;
mod source_snapshot;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use coblk::{BlockNode, Co};

use crate::image::Images;
use crate::interrupt::Interrupt;

/// What a command works with.
pub(crate) struct Tool<'a, 'co> {
    /// The coroutine that it runs in, of the main context.
    pub(crate) co: &'a Co<'co>,
    /// Its images.
    pub(crate) images: &'a Images,
    /// Whether it shall stop.
    pub(crate) interrupt: &'a Interrupt,
}

/// The backing file of a node.
fn backing_of(node: &BlockNode) -> Option<Arc<BlockNode>> {
    let children = node.children();
    children.into_iter().find(|(name, _)| name == "backing").map(|(_, node)| node)
}

/// The name of a backing file, which is relative to its image, as seen from here.
fn full_name(image: &str, backing: &str) -> String {
    let is_protocol = backing.split('/').next().is_some_and(|first| first.contains(':'));
    let folder = Path::new(image).parent().unwrap_or(Path::new(""));
    match is_protocol || Path::new(OsStr::new(backing)).is_absolute() {
        true => backing.to_owned(),
        false => folder.join(backing).display().to_string(),
    }
}
