//! [`Machine`]: a device and a guest, wired together.

use std::io;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::BlockBackend;

use super::{GuestBuffer, GuestQueue, GuestRam, GuestRequest, QueueOptions};
use crate::config::{VirtioBlkConfig, feature};
use crate::interrupt::Interrupt;
use crate::kind::{BlkStatus, ID_BYTES, SECTOR_BYTES};
use crate::virtio_blk::{VirtioBlk, VirtioBlkError};

/// Bytes that [`Machine::read`] and [`Machine::write`] move at once.
const BOUNCE_BYTES: u32 = 256 << 10;

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// There is not enough guest memory, or it cannot be mapped.
    #[error("guest memory: {0}")]
    Memory(#[from] io::Error),
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] VirtioBlkError),
}

/// How a [`Machine`] is made.
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    memory_mib: usize,
    config: VirtioBlkConfig,
    without_features: u64,
    queue: QueueOptions,
}

impl MachineBuilder {
    /// Guest memory in MiB; 64 by default.
    pub fn memory_mib(self, memory_mib: usize) -> Self {
        MachineBuilder { memory_mib, ..self }
    }

    /// The device's configuration. The guest drives all its queues.
    pub fn config(self, config: VirtioBlkConfig) -> Self {
        MachineBuilder { config, ..self }
    }

    /// How the guest's queues are made. `event_idx` is overruled by what is negotiated.
    pub fn queue(self, queue: QueueOptions) -> Self {
        MachineBuilder { queue, ..self }
    }

    /// Features, of those the device offers, that the guest does not accept; none by default.
    pub fn without_features(self, without_features: u64) -> Self {
        MachineBuilder { without_features, ..self }
    }

    /// Builds it, with the device on `ctx`, which is also the backend's.
    ///
    /// # Errors
    /// If the configuration is wrong, or if there is not enough guest memory.
    pub fn build(self, ctx: &AioContext, backend: BlockBackend) -> Result<Machine, MachineError> {
        let ram = GuestRam::new(self.memory_mib)?;
        let num_queues = self.config.num_queues;
        let device = VirtioBlk::new(backend, self.config)?;
        let packed = if self.queue.packed { 0 } else { feature::RING_PACKED };
        let accepted = device.features() & !self.without_features & !packed;
        device.negotiate(accepted)?;
        let event_idx = accepted & feature::EVENT_IDX != 0;
        let mut queues = Vec::new();
        for index in 0..num_queues {
            let mut queue = GuestQueue::new(&ram, QueueOptions { event_idx, ..self.queue })?;
            let line = Arc::clone(queue.interrupt_line());
            let interrupt = Interrupt::callback(move |_| line.raise());
            device.start_queue(ctx, index, ram.memory(), queue.layout(), interrupt)?;
            queue.set_kick(device.remote_kick(index)?);
            queues.push(queue);
        }
        let bounce = ram.alloc(BOUNCE_BYTES, 4096)?;
        Ok(Machine { device, ram, queues, bounce })
    }
}

/// A device, and a guest that drives it.
///
/// The fields are public to be taken apart: the device stays on its thread, a [`GuestQueue`] may
/// move to another one. As long as they are together, [`read`](Self::read) and the like make one
/// request after the other on the device's own thread.
pub struct Machine {
    /// The device.
    pub device: VirtioBlk,
    /// The guest's memory, to allocate buffers from.
    pub ram: GuestRam,
    /// The guest's side of the device's queues. Each raises its own
    /// [`interrupt_line`](GuestQueue::interrupt_line); [`VirtioBlk::set_interrupt`] changes that.
    pub queues: Vec<GuestQueue>,
    bounce: GuestBuffer,
}

impl Machine {
    /// A machine with 64 MiB of memory and the default configuration: one queue of 256 entries.
    ///
    /// # Errors
    /// If the backend has no medium, or memory cannot be mapped.
    pub fn new(ctx: &AioContext, backend: BlockBackend) -> Result<Machine, MachineError> {
        Self::builder().build(ctx, backend)
    }

    /// To choose memory, configuration, features.
    pub fn builder() -> MachineBuilder {
        MachineBuilder {
            memory_mib: 64,
            config: VirtioBlkConfig::default(),
            without_features: 0,
            queue: QueueOptions::default(),
        }
    }

    /// Makes one request on the first queue and polls `ctx` until it is answered.
    pub fn call(&mut self, ctx: &AioContext, request: GuestRequest<'_>) -> BlkStatus {
        self.queues[0].call(ctx, request).status
    }

    /// Reads `data.len()` bytes, a multiple of 512, from `sector` on. What could not be read is
    /// left as it was.
    pub fn read(&mut self, ctx: &AioContext, mut sector: u64, data: &mut [u8]) -> BlkStatus {
        for piece in data.chunks_mut(BOUNCE_BYTES as usize) {
            let buffer = self.bounce.slice(0, piece.len() as u32);
            let status = self.call(ctx, GuestRequest::Read { sector, buffers: &[buffer] });
            if status != BlkStatus::Ok {
                return status;
            }
            self.ram.read(buffer, piece);
            sector += piece.len() as u64 / SECTOR_BYTES;
        }
        BlkStatus::Ok
    }

    /// Writes `data`, a multiple of 512 bytes, from `sector` on.
    pub fn write(&mut self, ctx: &AioContext, mut sector: u64, data: &[u8]) -> BlkStatus {
        for piece in data.chunks(BOUNCE_BYTES as usize) {
            let buffer = self.bounce.slice(0, piece.len() as u32);
            self.ram.write(buffer, piece);
            let status = self.call(ctx, GuestRequest::Write { sector, buffers: &[buffer] });
            if status != BlkStatus::Ok {
                return status;
            }
            sector += piece.len() as u64 / SECTOR_BYTES;
        }
        BlkStatus::Ok
    }

    /// Makes all that was written durable.
    pub fn flush(&mut self, ctx: &AioContext) -> BlkStatus {
        self.call(ctx, GuestRequest::Flush)
    }

    /// The device's serial, without the padding.
    pub fn serial(&mut self, ctx: &AioContext) -> String {
        let buffer = self.bounce.slice(0, ID_BYTES as u32);
        self.call(ctx, GuestRequest::GetId { buffer });
        let mut id = [0; ID_BYTES];
        self.ram.read(buffer, &mut id);
        let end = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        String::from_utf8_lossy(&id[..end]).into_owned()
    }
}
