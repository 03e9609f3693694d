//! What the device offers: feature bits and configuration space, as the virtio standard lays them
//! out.

use coblk_block::ErrorPolicies;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::kind::{ID_BYTES, MAX_SEGMENTS, SECTOR_BYTES};

/// Bytes of configuration space, up to and including the write-zeroes limits.
pub const CONFIG_SPACE_BYTES: usize = 60;

/// Where the driver may write: `writeback`, of one byte.
const WRITEBACK_OFFSET: u64 = 32;

/// The longest discard or write-zeroes range that is offered, in sectors: just under 2 GiB.
const MAX_RANGE_SECTORS: u32 = i32::MAX as u32 / SECTOR_BYTES as u32;

/// Feature bits, each named as in the standard. A set of them is a `u64`.
pub mod feature {
    use super::*;

    /// `size_max` limits a segment.
    pub const SIZE_MAX: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX;
    /// `seg_max` limits the segments of a request.
    pub const SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
    /// The device is read-only.
    pub const RO: u64 = 1 << VIRTIO_BLK_F_RO;
    /// `blk_size` is the size of a block.
    pub const BLK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
    /// There is a write cache, and a flush request.
    pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    /// The topology fields are valid.
    pub const TOPOLOGY: u64 = 1 << VIRTIO_BLK_F_TOPOLOGY;
    /// The driver may switch the write cache off and on.
    pub const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
    /// There is more than one queue.
    pub const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;
    /// There is a discard request.
    pub const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
    /// There is a write-zeroes request.
    pub const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    /// Descriptors may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
    /// Kicks and interrupts are asked for by index.
    pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
    /// Queues are packed.
    pub const RING_PACKED: u64 = 1 << VIRTIO_F_RING_PACKED;
    /// The device follows version 1 of the standard. Required.
    pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
}

/// How a device is made: the default, and what differs from it.
///
/// ```
/// use coblk_virtio_blk::VirtioBlkConfig;
/// let config = VirtioBlkConfig::default().serial("disk-7").num_queues(2);
/// assert_eq!((config.serial.as_str(), config.num_queues), ("disk-7", 2));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VirtioBlkConfig {
    /// What the device calls itself in events and messages.
    pub name: String,
    /// What GET_ID answers; at most 20 bytes.
    pub serial: String,
    /// Queues, at least 1.
    pub num_queues: u16,
    /// Most entries in a queue; a power of two, at most 32768.
    pub queue_size_max: u16,
    /// Most data segments in a request. Offered; not enforced below 1024.
    pub seg_max: u32,
    /// Most bytes in a data segment; offered if not `None`.
    pub size_max: Option<u32>,
    /// Bytes in a block that the guest should address at once; a power of two, at least 512.
    pub logical_block_bytes: u32,
    /// Bytes in a block of the medium; a power of two, at least `logical_block_bytes`.
    pub physical_block_bytes: u32,
    /// Suggested smallest request, in logical blocks; 0 for none.
    pub min_io_blocks: u16,
    /// Suggested best request, in logical blocks; 0 for none.
    pub opt_io_blocks: u32,
    /// Whether writes may be answered before they are durable, until the guest flushes. If false,
    /// or if the guest does not know of flushes, every write is made durable before it is answered.
    pub write_cache: bool,
    /// Whether to offer discard.
    pub discard: bool,
    /// Whether to offer write-zeroes.
    pub write_zeroes: bool,
    /// Most ranges in a discard or write-zeroes request.
    pub max_ranges: u32,
    /// Whether neighbouring requests of one kick become one request to the block layer.
    pub merge_requests: bool,
    /// What happens when a request fails; if not `None`, the backend is told. While a backend is
    /// stopped its requests wait, and only [`VirtioBlk::co_reset`](crate::VirtioBlk::co_reset) makes
    /// them end.
    pub error_policies: Option<ErrorPolicies>,
}

impl Default for VirtioBlkConfig {
    fn default() -> Self {
        VirtioBlkConfig {
            name: "virtio-blk".to_owned(),
            serial: String::new(),
            num_queues: 1,
            // As in QEMU, whose drivers of such devices ask for queues of up to so many.
            queue_size_max: 1024,
            // With header and status, no more than a queue of 128 entries: drivers may take queues
            // smaller than offered, and a chain must not be longer than its queue.
            seg_max: 126,
            size_max: None,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            min_io_blocks: 0,
            opt_io_blocks: 0,
            write_cache: true,
            discard: true,
            write_zeroes: true,
            max_ranges: 16,
            merge_requests: true,
            error_policies: None,
        }
    }
}

/// Methods that set one field each.
macro_rules! setters {
    ($($field:ident: $kind:ty,)*) => {$(
        #[doc = concat!("Sets `", stringify!($field), "`.")]
        #[must_use]
        pub fn $field(self, $field: $kind) -> VirtioBlkConfig {
            VirtioBlkConfig { $field, ..self }
        }
    )*};
}

impl VirtioBlkConfig {
    /// The same by another [`name`](Self#structfield.name).
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> VirtioBlkConfig {
        VirtioBlkConfig { name: name.into(), ..self }
    }

    /// The same with another [`serial`](Self#structfield.serial).
    #[must_use]
    pub fn serial(self, serial: impl Into<String>) -> VirtioBlkConfig {
        VirtioBlkConfig { serial: serial.into(), ..self }
    }

    setters! {
        num_queues: u16,
        queue_size_max: u16,
        seg_max: u32,
        size_max: Option<u32>,
        logical_block_bytes: u32,
        physical_block_bytes: u32,
        min_io_blocks: u16,
        opt_io_blocks: u32,
        write_cache: bool,
        discard: bool,
        write_zeroes: bool,
        max_ranges: u32,
        merge_requests: bool,
        error_policies: Option<ErrorPolicies>,
    }
}

/// What is wrong with a [`VirtioBlkConfig`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No queue.
    #[error("num_queues is 0")]
    NoQueues,
    /// Not a queue size.
    #[error("queue_size_max {0} is not a power of two up to 32768")]
    QueueSize(u16),
    /// Too long a serial.
    #[error("serial '{0}' is longer than 20 bytes")]
    Serial(String),
    /// Not a block size.
    #[error(
        "block sizes {logical}/{physical} are not powers of two with 512 <= logical <= physical"
    )]
    BlockSize {
        /// `logical_block_bytes`.
        logical: u32,
        /// `physical_block_bytes`.
        physical: u32,
    },
    /// A limit of zero, or one above what is supported.
    #[error("{field} is {value}, which is not within 1 and {max}")]
    Limit {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u32,
        /// The largest value allowed.
        max: u32,
    },
}

impl VirtioBlkConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.num_queues == 0 {
            return Err(ConfigError::NoQueues);
        }
        if !self.queue_size_max.is_power_of_two() {
            return Err(ConfigError::QueueSize(self.queue_size_max));
        }
        if self.serial.len() > ID_BYTES {
            return Err(ConfigError::Serial(self.serial.clone()));
        }
        let (logical, physical) = (self.logical_block_bytes, self.physical_block_bytes);
        let valid = logical.is_power_of_two() && physical.is_power_of_two();
        if !valid || u64::from(logical) < SECTOR_BYTES || logical > physical {
            return Err(ConfigError::BlockSize { logical, physical });
        }
        let limits = [
            ("seg_max", self.seg_max, MAX_SEGMENTS as u32),
            ("max_ranges", self.max_ranges, 256),
            ("size_max", self.size_max.unwrap_or(1), u32::MAX),
        ];
        for (field, value, max) in limits {
            if value == 0 || value > max {
                return Err(ConfigError::Limit { field, value, max });
            }
        }
        Ok(())
    }

    /// Most sectors in one range of a discard or write-zeroes request.
    pub(crate) fn max_range_sectors(&self) -> u32 {
        let block_sectors = self.logical_block_bytes / SECTOR_BYTES as u32;
        MAX_RANGE_SECTORS / block_sectors * block_sectors
    }

    /// The features that a device so configured offers; bits of [`feature`].
    pub fn features(&self, read_only: bool) -> u64 {
        use feature::*;
        let mut features = VERSION_1
            | RING_PACKED
            | EVENT_IDX
            | INDIRECT_DESC
            | SEG_MAX
            | BLK_SIZE
            | TOPOLOGY
            | FLUSH;
        let mut offer = |condition: bool, bits: u64| {
            if condition {
                features |= bits;
            }
        };
        offer(self.size_max.is_some(), SIZE_MAX);
        offer(self.num_queues > 1, MQ);
        offer(read_only, RO);
        offer(!read_only, CONFIG_WCE);
        offer(self.discard && !read_only, DISCARD);
        offer(self.write_zeroes && !read_only, WRITE_ZEROES);
        features
    }

    /// The whole configuration space.
    pub(crate) fn space(
        &self,
        capacity_sectors: u64,
        features: u64,
        writeback: bool,
    ) -> [u8; CONFIG_SPACE_BYTES] {
        let offers = |bit: u64, value: u32| if features & bit != 0 { value } else { 0 };
        let physical_block_exp = (self.physical_block_bytes / self.logical_block_bytes).ilog2();
        let block_sectors = self.logical_block_bytes / SECTOR_BYTES as u32;
        let range_sectors = self.max_range_sectors();
        let mut space = SpaceWriter { bytes: [0; CONFIG_SPACE_BYTES], at: 0 };
        space.put(&capacity_sectors.to_le_bytes());
        space.put(&self.size_max.unwrap_or(0).to_le_bytes());
        space.put(&self.seg_max.to_le_bytes());
        space.put(&[0; 4]); // geometry: not offered
        space.put(&self.logical_block_bytes.to_le_bytes());
        space.put(&[physical_block_exp as u8]);
        space.put(&[0]); // alignment_offset
        space.put(&self.min_io_blocks.to_le_bytes());
        space.put(&self.opt_io_blocks.to_le_bytes());
        debug_assert_eq!(space.at as u64, WRITEBACK_OFFSET);
        space.put(&[u8::from(writeback)]);
        space.put(&[0]);
        space.put(&self.num_queues.to_le_bytes());
        space.put(&offers(feature::DISCARD, range_sectors).to_le_bytes());
        space.put(&offers(feature::DISCARD, self.max_ranges).to_le_bytes());
        space.put(&offers(feature::DISCARD, block_sectors).to_le_bytes());
        space.put(&offers(feature::WRITE_ZEROES, range_sectors).to_le_bytes());
        space.put(&offers(feature::WRITE_ZEROES, self.max_ranges).to_le_bytes());
        space.put(&[offers(feature::WRITE_ZEROES, 1) as u8]); // write_zeroes_may_unmap
        space.bytes
    }
}

/// What a driver's write to configuration space asks for: whether the write cache is on. `None` for
/// any other field: they are read-only.
pub(crate) fn parse_config_write(offset: u64, data: &[u8]) -> Option<bool> {
    match (offset, data) {
        (WRITEBACK_OFFSET, [writeback]) => Some(*writeback != 0),
        _ => None,
    }
}

struct SpaceWriter {
    bytes: [u8; CONFIG_SPACE_BYTES],
    at: usize,
}

impl SpaceWriter {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(space: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(space[offset..offset + 4].try_into().unwrap())
    }

    /// Offsets are those of `struct virtio_blk_config` in the standard.
    #[test]
    fn fields_are_where_the_standard_puts_them() {
        let config = VirtioBlkConfig {
            num_queues: 3,
            logical_block_bytes: 1024,
            physical_block_bytes: 4096,
            min_io_blocks: 7,
            opt_io_blocks: 9,
            size_max: Some(65536),
            ..Default::default()
        };
        let features = config.features(false);
        let space = config.space(0x1_0000_0001, features, true);
        assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), 0x1_0000_0001);
        assert_eq!((u32_at(&space, 8), u32_at(&space, 12)), (65536, 126));
        assert_eq!((u32_at(&space, 20), space[24]), (1024, 2));
        assert_eq!(u16::from_le_bytes([space[26], space[27]]), 7);
        assert_eq!((u32_at(&space, 28), space[32]), (9, 1));
        assert_eq!(u16::from_le_bytes([space[34], space[35]]), 3);
        assert_eq!((u32_at(&space, 36), u32_at(&space, 40)), (4194302, 16));
        assert_eq!((u32_at(&space, 44), u32_at(&space, 48)), (2, 4194302));
        assert_eq!((u32_at(&space, 52), space[56]), (16, 1));
    }

    #[test]
    fn a_read_only_device_offers_nothing_that_writes() {
        let config = VirtioBlkConfig::default();
        let features = config.features(true);
        assert_ne!(features & feature::RO, 0);
        assert_eq!(features & (feature::DISCARD | feature::WRITE_ZEROES | feature::CONFIG_WCE), 0);
        assert_eq!(u32_at(&config.space(1, features, false), 36), 0);
        assert_eq!(features & feature::MQ, 0);
    }

    #[test]
    fn mistakes_are_named() {
        let check = |config: VirtioBlkConfig| config.check().unwrap_err().to_string();
        let default = VirtioBlkConfig::default;
        assert!(default().check().is_ok());
        assert_eq!(check(VirtioBlkConfig { num_queues: 0, ..default() }), "num_queues is 0");
        assert!(check(VirtioBlkConfig { queue_size_max: 100, ..default() }).contains("100"));
        assert!(check(VirtioBlkConfig { seg_max: 0, ..default() }).contains("seg_max is 0"));
        assert!(check(VirtioBlkConfig { serial: "x".repeat(21), ..default() }).contains("20"));
        let small = VirtioBlkConfig { logical_block_bytes: 256, ..default() };
        assert!(check(small).contains("256/512"));
    }

    #[test]
    fn only_writeback_can_be_written() {
        assert_eq!(parse_config_write(32, &[0]), Some(false));
        assert_eq!(parse_config_write(0, &[0; 8]), None);
        assert_eq!(parse_config_write(u64::MAX, &[]), None);
    }
}
