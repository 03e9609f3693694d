//! Guest memory as the device looks things up in it: [`GuestMap`].

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

use crate::dirty::DirtyLog;

/// Up to so many regions are looked at one by one.
const FEW_REGIONS: usize = 8;

/// What vm-memory copies by volatile accesses, as memory must be that the guest may change at any time.
/// More bytes at once are copied plainly, which would race with the guest.
const WORD_BYTES: usize = 8;

/// The addresses of words from `addr` on; `None` past the last one there is.
fn word_addresses(addr: GuestAddress) -> impl Iterator<Item = Option<GuestAddress>> {
    (0..).step_by(WORD_BYTES).map(move |offset| addr.checked_add(offset))
}

/// The memory of a guest, as it was when a queue started.
///
/// Most of what a guest does is in its largest region, so that one is tried before the search, and then
/// the one that was found last; a request looks up four addresses, and this halves what it costs.
///
/// The invariant: what is remembered belongs to `mem`, and `mem` does not change as long as the map
/// exists. Each start of a queue makes a map, and a front end that adds, removes or replaces memory ends
/// all requests and has the queues start anew. A slice borrows from the map, so that no host address
/// outlives it; between requests only guest addresses are kept.
pub(crate) struct GuestMap {
    mem: Arc<GuestMemoryMmap>,
    /// The largest region, and where it is.
    main: Option<Arc<GuestRegionMmap>>,
    main_start: u64,
    main_bytes: u64,
    /// Position of the region that was last found by a search.
    found: Cell<usize>,
    /// Whether there is a log of what is written.
    is_logged: Cell<bool>,
    log: RefCell<Option<Arc<DirtyLog>>>,
}

impl GuestMap {
    pub(crate) fn new(mem: &Arc<GuestMemoryMmap>) -> GuestMap {
        let largest = mem.iter().enumerate().max_by_key(|(_, region)| region.len());
        let (position, main_start, main_bytes) = largest.map_or((0, 0, 0), |(position, region)| {
            (position, region.start_addr().raw_value(), region.len())
        });
        // The only call that hands out the region itself; it leaves `mem` as it is.
        let main = mem.remove_region(GuestAddress(main_start), main_bytes);
        let main = main.ok().map(|(_, region)| region);
        GuestMap {
            mem: Arc::clone(mem),
            main,
            main_start,
            main_bytes,
            found: Cell::new(position),
            is_logged: Cell::new(false),
            log: RefCell::new(None),
        }
    }

    /// From now on what is written is marked in `log`, or nowhere.
    pub(crate) fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        self.is_logged.set(log.is_some());
        self.log.replace(log);
    }

    /// The device has written `len` bytes at `addr`. Nothing is done without a log.
    #[inline]
    pub(crate) fn wrote(&self, addr: GuestAddress, len: u64) {
        if self.is_logged.get() {
            self.mark(addr, len);
        }
    }

    /// Whether [`wrote`](Self::wrote) is to be called at all.
    #[inline]
    pub(crate) fn is_logged(&self) -> bool {
        self.is_logged.get()
    }

    #[cold]
    fn mark(&self, addr: GuestAddress, len: u64) {
        if let Some(log) = &*self.log.borrow() {
            log.mark(addr, len);
        }
    }

    /// Copies out of guest memory, which may lie in several regions.
    pub(crate) fn read(
        &self,
        target: &mut [u8],
        addr: GuestAddress,
    ) -> Result<(), GuestMemoryError> {
        target.chunks_mut(WORD_BYTES).zip(word_addresses(addr)).try_for_each(|(word, place)| {
            self.mem.read_slice(word, place.ok_or(GuestMemoryError::InvalidGuestAddress(addr))?)
        })
    }

    /// Copies into guest memory, which may lie in several regions.
    pub(crate) fn write(&self, source: &[u8], addr: GuestAddress) -> Result<(), GuestMemoryError> {
        let written =
            source.chunks(WORD_BYTES).zip(word_addresses(addr)).try_for_each(|(word, place)| {
                let place = place.ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
                self.mem.write_slice(word, place)
            });
        // Of one that fails the beginning may have been written.
        self.wrote(addr, source.len() as u64);
        written
    }

    /// For what this type has no short cut for.
    #[inline]
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// `len` bytes at `addr`, which must be in one region.
    #[inline]
    pub(crate) fn slice(
        &self,
        addr: GuestAddress,
        len: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        match self.find(addr) {
            // Fails if it is not all in there, and then it is not in any one region.
            Some((region, offset)) => region.get_slice(offset, len),
            None => Err(GuestMemoryError::InvalidGuestAddress(addr)),
        }
    }

    /// Whether there is memory at `addr`.
    #[inline]
    pub(crate) fn contains(&self, addr: GuestAddress) -> bool {
        self.find(addr).is_some()
    }

    #[inline]
    fn find(&self, addr: GuestAddress) -> Option<(&GuestRegionMmap, MemoryRegionAddress)> {
        let offset = addr.raw_value().wrapping_sub(self.main_start);
        if offset < self.main_bytes
            && let Some(main) = &self.main
        {
            return Some((main, MemoryRegionAddress(offset)));
        }
        self.in_region(self.found.get(), addr).or_else(|| self.search(addr))
    }

    #[inline]
    fn in_region(
        &self,
        position: usize,
        addr: GuestAddress,
    ) -> Option<(&GuestRegionMmap, MemoryRegionAddress)> {
        let region = self.mem.iter().nth(position)?;
        let offset = addr.raw_value().wrapping_sub(region.start_addr().raw_value());
        (offset < region.len()).then_some((region, MemoryRegionAddress(offset)))
    }

    fn search(&self, addr: GuestAddress) -> Option<(&GuestRegionMmap, MemoryRegionAddress)> {
        let num_regions = self.mem.num_regions();
        if num_regions > FEW_REGIONS {
            return self.mem.to_region_addr(addr);
        }
        (0..num_regions).find_map(|position| {
            let found = self.in_region(position, addr)?;
            self.found.set(position);
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_across_regions_and_not_past_the_last() {
        let regions = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let map = GuestMap::new(&Arc::new(GuestMemoryMmap::from_ranges(&regions).unwrap()));
        let data: Vec<u8> = (1..=100).collect();
        for (addr, len) in [(0x1fff, 100), (0x1ffb, 7), (0x1ff8, 16), (0x2ff0, 16), (0x1001, 0)] {
            let mut back = vec![0; len];
            map.write(&data[..len], GuestAddress(addr)).unwrap();
            map.read(&mut back, GuestAddress(addr)).unwrap();
            assert_eq!(back, data[..len], "{addr:#x}");
        }
        for (addr, len) in [(0x2ff1, 16), (0xfff, 1), (u64::MAX, 100), (u64::MAX - 7, 16)] {
            assert!(map.write(&data[..len], GuestAddress(addr)).is_err());
            assert!(map.read(&mut vec![0; len], GuestAddress(addr)).is_err());
        }
    }

    #[test]
    fn every_region_is_found_and_nothing_else() {
        let regions = [(0x1000, 0x1000), (0x2000, 0x3000), (0x10000, 0x1000)];
        let ranges = regions.map(|(addr, len)| (GuestAddress(addr), len));
        let mem = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let map = GuestMap::new(&mem);
        for (addr, len) in ranges {
            assert_eq!(map.slice(addr, len).unwrap().len(), len);
            assert!(map.slice(addr, len + 1).is_err());
            assert!(map.contains(addr));
        }
        for addr in [0, 0xfff, 0x5000, 0xffff, 0x11000, u64::MAX] {
            assert!(!map.contains(GuestAddress(addr)));
            assert!(map.slice(GuestAddress(addr), 1).is_err());
        }
    }
}
