//! The front end's memory, as far as it has shown it to us: [`MemoryTable`].

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_virtio_blk::DirtyLog;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::dirty::DirtyMemory;
use crate::inflight::InflightMemory;
use crate::sigbus::Guard;
use crate::uffd;

/// Regions a front end may have at once.
pub(crate) const MAX_REGIONS: usize = 509;

pub(crate) struct Region {
    layout: VhostUserMemoryRegion,
    // Before the mapping, so that it is dropped first.
    guard: Guard,
    mapping: Arc<GuestRegionMmap>,
}

impl Region {
    pub(crate) fn mapping(&self) -> &MmapRegion {
        &self.mapping
    }

    /// From here on accesses fail: those of the kernel with an error, our own with the end of the connection.
    pub(crate) fn take_away(&self) -> std::io::Result<()> {
        self.guard.expect_nothing();
        uffd::take_away(&self.mapping)
    }
}

/// What a front end has shown us.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    pub(crate) memory: MemoryTable,
    pub(crate) inflight: Option<Arc<InflightMemory>>,
    pub(crate) dirty: Option<DirtyMemory>,
    /// Whether queues are packed, if the front end has accepted features.
    pub(crate) packed: Option<bool>,
    /// Whether requests mark in `dirty` what they write.
    pub(crate) log_all: bool,
}

/// Memory regions in the order of their guest addresses, and what the device sees of them.
#[derive(Clone, Default)]
pub(crate) struct MemoryTable {
    regions: Vec<Arc<Region>>,
    guest: Arc<GuestMemoryMmap>,
}

impl MemoryTable {
    /// Adds a region of `file`. If the file turns out to be shorter, now or later, the connection
    /// `socket` is shut down.
    pub(crate) fn add(
        &mut self,
        layout: VhostUserMemoryRegion,
        file: File,
        socket: RawFd,
    ) -> Result<Arc<Region>> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(Error::InvalidOperation("too many memory regions"));
        }
        check_length(&file, layout.mmap_offset, layout.memory_size)?;
        let region: MmapRegion = layout.mmap_region(file)?;
        let guard = Guard::new(&region, socket)
            .ok_or(Error::InvalidOperation("the process has too many memory regions"))?;
        let mapping = GuestRegionMmap::new(region, GuestAddress(layout.guest_phys_addr))
            .ok_or(Error::InvalidOperation("a memory region wraps around"))?;
        let at = { self.regions.partition_point(|it| start(&it.layout) < start(&layout)) };
        let region = Arc::new(Region { layout, guard, mapping: Arc::new(mapping) });
        self.regions.insert(at, Arc::clone(&region));
        self.rebuild().map(|()| region)
    }

    /// Removes the region that lies where `layout` says.
    pub(crate) fn remove(&mut self, layout: &VhostUserMemoryRegion) -> Result<()> {
        let key = |it: &VhostUserMemoryRegion| (it.guest_phys_addr, it.user_addr, it.memory_size);
        let found = self.regions.iter().position(|it| key(&it.layout) == key(layout));
        let at = found.ok_or(Error::InvalidOperation("there is no such memory region"))?;
        let removed = self.regions.remove(at);
        self.rebuild()?;
        drop(removed);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.guest = Arc::default();
        self.regions.clear();
    }

    fn rebuild(&mut self) -> Result<()> {
        let mappings = self.regions.iter().map(|region| Arc::clone(&region.mapping)).collect();
        self.guest = if self.regions.is_empty() {
            Arc::default()
        } else {
            let guest = GuestMemoryMmap::from_arc_regions(mappings);
            Arc::new(guest.map_err(|_| Error::InvalidOperation("memory regions overlap"))?)
        };
        Ok(())
    }

    /// What the device works on.
    pub(crate) fn guest(&self) -> &Arc<GuestMemoryMmap> {
        &self.guest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Refuses a log of dirty pages that has no bits for all of the memory.
    pub(crate) fn check_log(&self, log: &DirtyLog) -> Result<()> {
        let is_covered =
            |it: &VhostUserMemoryRegion| log.covers(it.guest_phys_addr, it.memory_size);
        match self.regions.iter().all(|region| is_covered(&region.layout)) {
            true => Ok(()),
            false => {
                Err(Error::InvalidOperation("the log of dirty pages is smaller than the memory"))
            }
        }
    }

    /// The index in a used ring, of which this is the guest address: how many requests were answered.
    pub(crate) fn used_index(&self, used_ring: u64) -> Result<u16> {
        let index = GuestAddress(used_ring).checked_add(2).and_then(|place| {
            self.guest.load::<u16>(place, Ordering::Acquire).ok() //
        });
        index.map(u16::from_le).ok_or(Error::InvalidOperation("a used ring is not accessible"))
    }

    /// From an address in the front end's process to one of the guest. Rings are given so.
    pub(crate) fn translate(&self, user_addr: u64) -> Result<u64> {
        let found = self.regions.iter().find_map(|region| {
            let layout = &region.layout;
            let offset = user_addr.checked_sub(layout.user_addr)?;
            (offset < layout.memory_size).then(|| layout.guest_phys_addr + offset)
        });
        found.ok_or(Error::InvalidOperation("a ring is outside the memory regions"))
    }
}

/// Refuses a file that is too short already. One that gets too short later is the guard's affair.
pub(crate) fn check_length(file: &File, offset: u64, len: u64) -> Result<()> {
    let metadata = file.metadata().map_err(Error::ReqHandlerError)?;
    match offset.checked_add(len) {
        Some(end) if !metadata.is_file() || end <= metadata.len() => Ok(()),
        _ => Err(Error::InvalidOperation("a memory region is longer than its file")),
    }
}

fn start(layout: &VhostUserMemoryRegion) -> u64 {
    layout.guest_phys_addr
}
