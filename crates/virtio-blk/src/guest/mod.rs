//! The other side of the device: guest memory, and a small virtio-blk driver that fills the rings.
//!
//! For generators, tests and benchmarks; a virtual machine brings its own. [`Machine`] wires a
//! device and a guest together in one line:
//!
//! ```
//! use coblk_aio::AioContext;
//! use coblk_block::{BlockBackend, BlockNode, drivers::Null};
//! use coblk_virtio_blk::BlkStatus;
//! use coblk_virtio_blk::guest::Machine;
//!
//! let ctx = AioContext::new()?;
//! let node = BlockNode::new("disk0", Null::new(1 << 30).read_zeroes(true));
//! let mut machine = Machine::new(&ctx, BlockBackend::new(&ctx, "drive", node))?;
//!
//! let mut sector = [1u8; 512];
//! assert_eq!(machine.read(&ctx, 8, &mut sector), BlkStatus::Ok);
//! assert_eq!(sector, [0u8; 512]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With many requests in flight, use a [`GuestQueue`] itself: [`submit`](GuestQueue::submit),
//! [`kick`](GuestQueue::kick) once for all of them, [`reap`](GuestQueue::reap) until it says `None`.
//! It is `Send`: a queue may live on the device's thread, reaped from an interrupt callback, or on
//! another one, like a virtual CPU.

mod area;
mod descriptors;
mod driver;
mod interrupt_line;
mod machine;
mod packed;
mod ram;
mod split;

pub use driver::{GuestQueue, QueueFull, QueueOptions};
pub use interrupt_line::InterruptLine;
pub use machine::{Machine, MachineBuilder, MachineError};
pub use ram::{GuestBuffer, GuestRam};

use crate::kind::BlkStatus;

/// A request to the device. Sectors are of 512 bytes.
#[derive(Clone, Copy, Debug)]
pub enum GuestRequest<'a> {
    /// Fills the buffers from `sector` on.
    Read {
        /// The first sector.
        sector: u64,
        /// Where the data goes.
        buffers: &'a [GuestBuffer],
    },
    /// Writes the buffers from `sector` on.
    Write {
        /// The first sector.
        sector: u64,
        /// Where the data is.
        buffers: &'a [GuestBuffer],
    },
    /// Makes completed writes durable.
    Flush,
    /// Asks for the device's serial, 20 bytes.
    GetId {
        /// Where it goes.
        buffer: GuestBuffer,
    },
    /// Gives a range back.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// Makes a range read as zeroes.
    WriteZeroes {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether the range may be deallocated.
        unmap: bool,
    },
}

/// A request that the device has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What it was submitted with.
    pub token: u64,
    /// The answer. A status byte that the standard does not know counts as
    /// [`IoErr`](BlkStatus::IoErr).
    pub status: BlkStatus,
    /// How many bytes the device says it wrote, the status byte included.
    pub written_bytes: u32,
}
