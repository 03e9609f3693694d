//! The place of data within one cluster. Most requests ask for no more; [`co_find`](Image::co_find) is for
//! all the others.

use super::Look;
use crate::image::Image;
use crate::layout::{COPIED, OFFSET_MASK};

impl Image {
    /// The place of `bytes` bytes from `start` on, if all of them are data of one cluster, which for a write may be
    /// written there, and the slice is in the cache. `None`: [`co_find`](Self::co_find) says what there is. The same
    /// pin is needed.
    #[inline(always)]
    pub(crate) fn find_data(&self, (start, bytes): (u64, u64), what: Look) -> Option<u64> {
        let geometry = self.rules.geometry;
        let cluster = geometry.cluster_start(start);
        let within = start - cluster;
        if geometry.is_extended() || bytes > geometry.cluster_bytes() - within {
            return None;
        }
        let table = self.l1.get(geometry.l1_index(start));
        if table & OFFSET_MASK == 0 {
            return None;
        }
        // A slice is in the cache only if the entry of its table was right.
        let word = self.cache.word(start >> geometry.cluster_bits())?;
        if what == Look::Write && table & word & COPIED == 0 {
            return None;
        }
        let host = self.rules.place_of_data(word, cluster)? + within;
        let is_there = self.rules.has_data_file || host < self.end_behind(host);
        is_there.then_some(host)
    }
}
