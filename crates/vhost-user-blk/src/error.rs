//! [`VhostUserBlkError`].

use std::io;
use std::path::PathBuf;

use coblk_virtio_blk::VirtioBlkError;

/// Why an export cannot be made, or cannot be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserBlkError {
    /// The socket cannot be made.
    #[error("cannot listen on '{}': {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The listening socket cannot be waited for.
    #[error("cannot wait for front ends: {0}")]
    Wait(#[source] io::Error),
    /// The device is configured wrongly.
    #[error(transparent)]
    Device(#[from] VirtioBlkError),
    /// A context is gone, or did not answer.
    #[error("the context '{0}' is gone")]
    ContextGone(String),
    /// The export is in use, and was to be removed only if it is not (contract: C86).
    #[error("export '{0}' is in use by a front end")]
    InUse(String),
}
