//! virtio-blk: a device that takes requests from virtqueues in guest memory, split or packed, and serves them
//! with a [`BlockBackend`](coblk_block::BlockBackend), and a guest driver to feed it.
//!
//! * [`VirtioBlk`] is the device. Its life: [`VirtioBlkConfig`], [`VirtioBlk::start_queue`], kicks,
//!   [`Interrupt`]s, [`VirtioBlk::reset`].
//! * [`guest`] is the other side: a small driver for generators, tests and benchmarks.
#![forbid(unsafe_code)]

mod chain;
mod completion;
mod config;
mod device;
mod dirty;
mod error_log;
pub mod guest;
mod inflight;
mod interrupt;
mod kind;
mod memory;
mod pace;
mod packed;
mod parse;
mod queue;
mod range;
mod request;
mod ring;
mod run;
mod serve;
mod shared;
mod unanswered;
mod virtio_blk;
mod virtqueue;

pub use chain::ChainError;
pub use config::{CONFIG_SPACE_BYTES, ConfigError, VirtioBlkConfig, feature};
pub use dirty::{DirtyLog, QueueLog};
pub use inflight::{InflightError, InflightLog};
pub use interrupt::Interrupt;
pub use kind::{BlkStatus, SECTOR_BYTES};
pub use packed::{PACKED_START, PackedLog};
pub use unanswered::{Earlier, PausedQueue, RequestLog, StoppedAt};
pub use virtio_blk::{VirtioBlk, VirtioBlkError};
pub use virtqueue::{VirtqueueError, VirtqueueLayout};
