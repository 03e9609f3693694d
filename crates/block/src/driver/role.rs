//! [`ChildRole`]: the role of a child for its parent.

use crate::driver::permissions::Permissions;

bitflags::bitflags! {
    /// The role of a child for the driver of its parent, as in QEMU. It decides which permissions
    /// the driver has on the child by default, and which options the child inherits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChildRole: u8 {
        /// The child has bytes that the driver's users see, at places that the driver chooses.
        const DATA = 1;
        /// The child has what the driver keeps for itself.
        const METADATA = 2;
        /// The child has the driver's bytes at the same places; the driver passes requests on.
        const FILTERED = 4;
        /// The child has what the driver's own storage does not have yet: copy on write, a backing
        /// file.
        const COW = 8;
        /// The child is the one that the driver's node is known by, such as its `file`.
        const PRIMARY = 16;
    }
}

/// Permissions to change bytes or the length.
const CHANGES: Permissions = Permissions::WRITE.union(Permissions::RESIZE);

impl ChildRole {
    /// A format's image: data and metadata in one.
    pub const IMAGE: ChildRole = ChildRole::DATA.union(ChildRole::METADATA).union(Self::PRIMARY);
    /// The child of a filter, which passes requests on to it.
    pub const FILTER: ChildRole = ChildRole::FILTERED.union(ChildRole::PRIMARY);

    /// Whether it is the driver's own storage, which is written whatever is done with the
    /// driver's node: a log.
    pub(crate) fn is_own_storage(self) -> bool {
        self.contains(ChildRole::METADATA) && !self.contains(ChildRole::PRIMARY)
    }

    /// The permissions that a driver holds and shares on such a child, while the users of its own
    /// node hold and share these; `writes` says whether it writes metadata at all. Where nothing is
    /// held they are returned as they are: a node that is not in use keeps others from nothing.
    ///
    /// * A filter holds and shares what its users do.
    /// * A backing file is read if the users read. Others may write to it if the users share that.
    /// * Metadata is read in any case, and written where the node can be; others may change neither
    ///   it nor its length.
    /// * Data is as the users have it, but a write may need more room, and no other user changes
    ///   the length.
    pub fn default_permissions(
        self,
        (held, shared): (Permissions, Permissions),
        writes: bool,
    ) -> (Permissions, Permissions) {
        if self.contains(ChildRole::FILTERED) || held.is_empty() {
            return (held, shared);
        }
        if self.contains(ChildRole::COW) {
            let read = Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED;
            let changes =
                if shared.contains(Permissions::WRITE) { CHANGES } else { Permissions::empty() };
            return (held & Permissions::CONSISTENT_READ, read | changes);
        }
        let (mut held, mut shared) = (held, shared);
        if self.contains(ChildRole::METADATA) {
            held |= Permissions::CONSISTENT_READ;
            held |= if writes { CHANGES } else { Permissions::empty() };
            shared -= CHANGES;
        }
        if self.contains(ChildRole::DATA) {
            if held.contains(Permissions::WRITE) {
                held |= Permissions::RESIZE;
            }
            shared -= Permissions::RESIZE;
        }
        (held, shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Permissions = Permissions::CONSISTENT_READ;
    const WRITE: Permissions = Permissions::WRITE;
    const UNCHANGED: Permissions = Permissions::WRITE_UNCHANGED;
    const RESIZE: Permissions = Permissions::RESIZE;
    const ALL: Permissions = Permissions::all();

    #[test]
    fn a_filter_passes_on_what_it_has() {
        for held in [Permissions::empty(), READ, READ | WRITE, ALL] {
            for shared in [Permissions::empty(), READ, ALL] {
                for writes in [false, true] {
                    let passed = ChildRole::FILTER.default_permissions((held, shared), writes);
                    assert_eq!(passed, (held, shared));
                }
            }
        }
    }

    #[test]
    fn a_format_keeps_its_image_to_itself() {
        let image = |above, writes| ChildRole::IMAGE.default_permissions(above, writes);
        assert_eq!(image((READ | WRITE, ALL), true), (READ | WRITE | RESIZE, READ | UNCHANGED));
        // It may write metadata, such as that the image is in use, for users that read.
        assert_eq!(image((READ, ALL), true), (READ | WRITE | RESIZE, READ | UNCHANGED));
        assert_eq!(image((READ, ALL), false), (READ, READ | UNCHANGED));
        assert_eq!(image((WRITE, READ), false), (READ | WRITE | RESIZE, READ));
        // Its users are not there yet.
        assert_eq!(image((Permissions::empty(), ALL), true), (Permissions::empty(), ALL));
    }

    #[test]
    fn a_data_file_may_be_written_by_others_but_not_resized() {
        let data = |above| ChildRole::DATA.default_permissions(above, true);
        assert_eq!(data((READ | WRITE, ALL)), (READ | WRITE | RESIZE, ALL - RESIZE));
        assert_eq!(data((READ, READ)), (READ, READ));
    }

    #[test]
    fn a_backing_file_is_read_only_for_those_above() {
        let cow = |above| ChildRole::COW.default_permissions(above, true);
        assert_eq!(cow((READ | WRITE | RESIZE, READ)), (READ, READ | UNCHANGED));
        assert_eq!(cow((READ | WRITE, ALL)), (READ, ALL));
        assert_eq!(cow((WRITE, READ)), (Permissions::empty(), READ | UNCHANGED));
    }

    #[test]
    fn a_log_is_own_storage_and_an_image_is_not() {
        assert!(ChildRole::METADATA.is_own_storage());
        for role in [ChildRole::IMAGE, ChildRole::FILTER, ChildRole::DATA, ChildRole::COW] {
            assert!(!role.is_own_storage());
        }
    }
}
