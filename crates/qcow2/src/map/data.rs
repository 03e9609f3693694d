//! The place of data within one cluster. Most requests ask for no more; [`co_find`](Image::co_find) is for
//! all the others.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Look;
use crate::image::Image;
use crate::layout::{COPIED, L2Entry, SubclusterKind, l1_offset};

impl Image {
    /// The place of a range, if all of it is data of one cluster, which for a write may be written there, and
    /// the slice is in the cache. `None`: [`co_find`](Self::co_find) says what there is. The same pin is
    /// needed.
    #[inline]
    pub(crate) fn find_data(&self, range: Range<u64>, what: Look) -> Option<u64> {
        let geometry = self.geometry;
        let cluster = geometry.cluster_start(range.start);
        if geometry.is_extended() || range.end - cluster > geometry.cluster_bytes() {
            return None;
        }
        let table = self.l1.get(geometry.l1_index(range.start));
        if !matches!(l1_offset(table, geometry), Ok(Some(_))) {
            return None;
        }
        let index = (geometry.l2_index(range.start) & (self.slice_entries() - 1)) as usize;
        let word = self.cache.look(self.slice(range.start), |words| {
            words.get(index).map(|word| word.load(Ordering::Relaxed))
        })??;
        if what == Look::Write && table & word & COPIED == 0 {
            return None;
        }
        let entry = L2Entry { word, bitmap: 0 };
        let is_data = matches!(self.rules.kind(entry, 0), Ok(SubclusterKind::Data))
            && self.rules.check(entry, cluster).is_ok();
        let host = entry.offset() + (range.start - cluster);
        let is_there = self.data_file.is_some() || host < self.end_behind(host);
        (is_data && is_there).then_some(host)
    }
}
