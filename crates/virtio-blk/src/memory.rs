//! Guest memory as the device looks things up in it: [`GuestMap`].

use std::cell::Cell;
use std::sync::Arc;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice,
};

/// Up to so many regions are looked at one by one.
const FEW_REGIONS: usize = 8;

/// The memory of a guest. Most of what a guest does is in its largest region, so that one is tried
/// before the search, and then the one that was found last; a request looks up four addresses, and
/// this halves what it costs.
pub(crate) struct GuestMap {
    mem: Arc<GuestMemoryMmap>,
    /// Position of the largest region.
    main: usize,
    /// Position of the region that was last found by a search.
    found: Cell<usize>,
}

impl GuestMap {
    pub(crate) fn new(mem: &Arc<GuestMemoryMmap>) -> GuestMap {
        let largest = mem.iter().enumerate().max_by_key(|(_, region)| region.len());
        let main = largest.map_or(0, |(position, _)| position);
        GuestMap { mem: Arc::clone(mem), main, found: Cell::new(main) }
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
        self.in_region(self.main, addr)
            .or_else(|| self.in_region(self.found.get(), addr))
            .or_else(|| self.search(addr))
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
