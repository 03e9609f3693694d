//! [`Engine`]: what does the I/O of a driver that has a choice.

use serde::{Deserialize, Serialize};

/// What does an image's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Blocking system calls on worker threads; works everywhere.
    #[default]
    Threads,
    /// The context's io_uring; falls back to threads, with a warning, where there is none.
    IoUring,
    /// What QEMU calls `native`, Linux AIO: it asks for O_DIRECT, and io_uring does the work.
    Native,
}
