//! Metadata contexts: what block status can tell of an export.

use crate::protocol::{ALLOCATION_DEPTH, BASE_ALLOCATION, DIRTY_BITMAP};
use crate::server::export::NbdExport;

/// A kind of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// What is data, and what reads as zeroes.
    Allocation,
    /// Which layer of a chain has the data.
    Depth,
    /// What is dirty in the bitmap at this place of the export's list.
    Bitmap(u32),
}

impl Context {
    /// Its number, in the replies of a server.
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 0,
            Context::Depth => 1,
            Context::Bitmap(place) => 2 + place,
        }
    }

    /// Those of an export, with their names, by number.
    pub fn of(export: &NbdExport) -> Vec<(Context, String)> {
        let mut all = vec![(Context::Allocation, BASE_ALLOCATION.to_owned())];
        if export.allocation_depth {
            all.push((Context::Depth, ALLOCATION_DEPTH.to_owned()));
        }
        for (place, (name, _)) in (0..).zip(export.bitmaps.iter()) {
            all.push((Context::Bitmap(place), format!("{DIRTY_BITMAP}{name}")));
        }
        all
    }
}

/// Whether a context of this name is meant by a query. Only a client that asks which there are may do so
/// by the beginning of names, up to a colon.
pub fn is_meant(name: &str, query: &str, lists: bool) -> bool {
    name == query || lists && query.ends_with(':') && is_group(query) && name.starts_with(query)
}

/// Beginnings that stand for all that have them.
fn is_group(query: &str) -> bool {
    ["base:", "qemu:", DIRTY_BITMAP].contains(&query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j119_groups_are_for_lists_alone() {
        let names =
            [BASE_ALLOCATION, ALLOCATION_DEPTH, "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:a:b"];
        let meant = |query: &str, lists| names.map(|name| is_meant(name, query, lists));
        assert_eq!(meant("base:", true), [true, false, false, false]);
        assert_eq!(meant("qemu:", true), [false, true, true, true]);
        assert_eq!(meant("qemu:dirty-bitmap:", true), [false, false, true, true]);
        for query in ["base:", "qemu:", "qemu:dirty-bitmap:", "qemu", "base:alloc", ""] {
            assert_eq!(meant(query, false), [false; 4], "{query}");
        }
        for query in ["qemu", "base:alloc", "", "qemu:dirty-bitmap", "qemu:dirty-bitmap:b"] {
            assert_eq!(meant(query, true), [false; 4], "{query}");
        }
        // The name of a bitmap may end with a colon, or be the beginning of another.
        assert_eq!(meant("qemu:dirty-bitmap:a:", true), [false; 4]);
        assert_eq!(meant("qemu:dirty-bitmap:a", true), [false, false, true, false]);
        assert_eq!(meant("qemu:dirty-bitmap:a:b", false), [false, false, false, true]);
    }
}
