//! [`Guest`]: a virtual disk as a guest sees it, the whole path from the virtqueue to the image.

use std::path::Path;

use coblk::drivers::{Engine, File, FileOptions};
use coblk::virtio_blk::BlkStatus;
use coblk::virtio_blk::guest::{GuestRequest, Machine};
use coblk::{AioContext, BlockBackend, BlockNode};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Every way of doing the I/O, with a name for messages.
pub fn every_way() -> [(&'static str, FileOptions); 5] {
    let file = File::options();
    [
        ("threads", file.in_place_reads(false)),
        ("threads, reads in place", file),
        ("threads, O_DIRECT", file.direct(true)),
        ("io_uring", file.in_place_reads(false).engine(Engine::IoUring)),
        ("io_uring, O_DIRECT", file.direct(true).engine(Engine::IoUring)),
    ]
}

/// A guest with an image as its disk, on a context of its own.
pub struct Guest {
    /// The machine; dropped before its context.
    pub machine: Machine,
    /// The context of the device.
    pub ctx: AioContext,
}

impl Guest {
    /// A guest whose disk is `image`, opened in this way.
    #[track_caller]
    pub fn new(image: &Path, options: FileOptions) -> Guest {
        let ctx = AioContext::for_test().expect("a context");
        let file = options.open(image).expect("an image");
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
        Guest::on(ctx, backend)
    }

    /// A guest whose disk is `backend`.
    #[track_caller]
    pub fn on(ctx: AioContext, backend: BlockBackend) -> Guest {
        let machine = Machine::new(&ctx, backend).expect("a machine");
        Guest { machine, ctx }
    }

    /// The length of its disk.
    pub fn disk_bytes(&self) -> u64 {
        self.machine.device.capacity_sectors() * SECTOR
    }

    /// Makes one request, to its end.
    pub fn call(&mut self, request: GuestRequest<'_>) -> BlkStatus {
        self.machine.call(&self.ctx, request)
    }

    /// Reads, or says why not. Offsets and lengths are whole sectors.
    pub fn try_read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, BlkStatus> {
        assert!(offset.is_multiple_of(SECTOR));
        // Not zero, so that what was not read shows.
        let mut data = vec![0xee; len];
        match self.machine.read(&self.ctx, offset / SECTOR, &mut data) {
            BlkStatus::Ok => Ok(data),
            status => Err(status),
        }
    }

    /// Reads; offsets and lengths are whole sectors.
    #[track_caller]
    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.try_read(offset, len).unwrap_or_else(|status| {
            panic!("a read of {len} bytes at {offset} ended with {status:?}") //
        })
    }

    /// Writes, and returns how it ended. Offsets and lengths are whole sectors.
    pub fn try_write(&mut self, offset: u64, data: &[u8]) -> BlkStatus {
        assert!(offset.is_multiple_of(SECTOR));
        self.machine.write(&self.ctx, offset / SECTOR, data)
    }

    /// Writes; offsets and lengths are whole sectors.
    #[track_caller]
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let status = self.try_write(offset, data);
        assert_eq!(status, BlkStatus::Ok, "a write of {} bytes at {offset}", data.len());
    }

    /// Makes all that was written durable.
    #[track_caller]
    pub fn flush(&mut self) {
        assert_eq!(self.machine.flush(&self.ctx), BlkStatus::Ok, "a flush");
    }
}

/// A request that zeroes whole sectors.
pub fn zeroes(offset: u64, bytes: u64, unmap: bool) -> GuestRequest<'static> {
    let sectors = u32::try_from(bytes / SECTOR).expect("a range of a request");
    GuestRequest::WriteZeroes { sector: offset / SECTOR, sectors, unmap }
}

/// A request that discards whole sectors.
pub fn discard(offset: u64, bytes: u64) -> GuestRequest<'static> {
    let sectors = u32::try_from(bytes / SECTOR).expect("a range of a request");
    GuestRequest::Discard { sector: offset / SECTOR, sectors }
}
