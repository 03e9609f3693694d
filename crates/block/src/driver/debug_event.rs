//! [`DebugEvent`]: steps of requests that `blkdebug` can wait for.

/// A step of a request, by the name that QEMU has for it. A node raises those of its own requests
/// that have a constant here, and a driver those that it goes through above a node
/// ([`Child::debug_event`](crate::Child::debug_event)). The others are those of formats, and happen
/// where there is such a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugEvent(&'static str);

/// The names of those that QEMU has.
const NAMES: [&str; 47] = [
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
];

impl DebugEvent {
    /// A driver above reads.
    pub const READ_AIO: DebugEvent = DebugEvent("read_aio");
    /// A driver above writes.
    pub const WRITE_AIO: DebugEvent = DebugEvent("write_aio");
    /// A node above is flushed.
    pub const FLUSH_TO_OS: DebugEvent = DebugEvent("flush_to_os");
    /// A node above is flushed, and has written what it kept.
    pub const FLUSH_TO_DISK: DebugEvent = DebugEvent("flush_to_disk");
    /// A write begins.
    pub const PWRITEV: DebugEvent = DebugEvent("pwritev");
    /// Zeroes are about to be made, by other means than writing.
    pub const PWRITEV_ZERO: DebugEvent = DebugEvent("pwritev_zero");
    /// A write, or zeroes, have ended, well or not.
    pub const PWRITEV_DONE: DebugEvent = DebugEvent("pwritev_done");
    /// The first block of a write that is not whole blocks is about to be read.
    pub const PWRITEV_RMW_HEAD: DebugEvent = DebugEvent("pwritev_rmw_head");
    /// It was read.
    pub const PWRITEV_RMW_AFTER_HEAD: DebugEvent = DebugEvent("pwritev_rmw_after_head");
    /// The last block of such a write is about to be read.
    pub const PWRITEV_RMW_TAIL: DebugEvent = DebugEvent("pwritev_rmw_tail");
    /// It was read.
    pub const PWRITEV_RMW_AFTER_TAIL: DebugEvent = DebugEvent("pwritev_rmw_after_tail");

    /// The one of that name, if QEMU has it.
    pub fn named(name: &str) -> Option<DebugEvent> {
        NAMES.into_iter().find(|it| *it == name).map(DebugEvent)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_that_is_raised_can_be_named() {
        for event in [
            DebugEvent::READ_AIO,
            DebugEvent::WRITE_AIO,
            DebugEvent::FLUSH_TO_OS,
            DebugEvent::FLUSH_TO_DISK,
            DebugEvent::PWRITEV,
            DebugEvent::PWRITEV_ZERO,
            DebugEvent::PWRITEV_DONE,
            DebugEvent::PWRITEV_RMW_HEAD,
            DebugEvent::PWRITEV_RMW_AFTER_HEAD,
            DebugEvent::PWRITEV_RMW_TAIL,
            DebugEvent::PWRITEV_RMW_AFTER_TAIL,
        ] {
            assert_eq!(DebugEvent::named(event.name()), Some(event));
        }
        assert_eq!(DebugEvent::named("none"), None);
    }
}
