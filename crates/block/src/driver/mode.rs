//! How a node is open: caches, writes of zeroes, what does its I/O.

use serde::{Deserialize, Serialize};

/// How a node treats caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheMode {
    /// `cache.direct`: no page cache.
    pub direct: bool,
    /// `cache.no-flush`: flushes do nothing.
    pub no_flush: bool,
}

/// How a write of only zeroes is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectZeroes {
    /// It is a write.
    #[default]
    Off,
    /// Zeroes are made by other means than writing, if there are any.
    On,
    /// The same, and the range may be deallocated.
    Unmap,
}

/// The engine that does an image's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Blocking system calls on worker threads; works everywhere.
    #[default]
    Threads,
    /// The context's io_uring; falls back to threads, with a warning, where there is none.
    IoUring,
    /// QEMU's `native`, Linux AIO: it asks for O_DIRECT, and io_uring does the work.
    Native,
}
