//! [`ImageCorrupted`]: what a node tells of an image that is corrupt.

use coblk_block::EventData;
use serde::{Deserialize, Serialize};

use crate::layout::Corruption;

/// A request has met an entry that cannot be. Told once an opening, and once
/// more if the image is not used any more then.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ImageCorrupted {
    /// Empty, as a node is no device.
    device: String,
    /// What is wrong.
    msg: String,
    /// The offset that is wrong, in bytes.
    offset: Option<i64>,
    /// The length of what is wrong, in bytes.
    size: Option<i64>,
    /// Whether the image is not used any more.
    fatal: bool,
}

impl ImageCorrupted {
    /// Of an image that is not used any more, if that is `fatal`; else one that is read, and goes on to be.
    pub(crate) fn new(corruption: &Corruption, fatal: bool) -> ImageCorrupted {
        ImageCorrupted {
            device: String::new(),
            msg: corruption.to_string(),
            offset: corruption.offset.and_then(|offset| i64::try_from(offset).ok()),
            size: None,
            fatal,
        }
    }
}

impl EventData for ImageCorrupted {
    const NAME: &'static str = "BLOCK_IMAGE_CORRUPTED";

    /// A fatal one is not hidden by others.
    fn kind(&self) -> &'static str {
        if self.fatal { "fatal" } else { "" }
    }
}
