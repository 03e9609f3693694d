//! Flags of requests, and ways to change a length.

bitflags::bitflags! {
    /// Flags of a read.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReadFlags: u32 {
        /// Bytes that come from a backing file are written to the node itself. Without a backing
        /// file there is nothing to copy, and the flag is dropped.
        const COPY_ON_READ = 1;
        /// The caller wants the effects of the read and not the data: the buffer is unspecified
        /// afterwards. A driver that does not take the flag reads as usual.
        const PREFETCH = 2;
        /// No other request to the same bytes runs at the same time.
        const SERIALISING = 4;
    }

    /// Flags of a write.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// Force unit access: the data is durable when the write succeeds.
        const FUA = 1;
        /// The bytes that are read there do not change by it: data moves within a chain. A driver
        /// that does not take the flag writes as usual.
        const UNCHANGED = 2;
        /// The data is stored compressed: ENOTSUP where no driver does that.
        const COMPRESSED = 4;
        /// As [`ReadFlags::SERIALISING`].
        const SERIALISING = 8;
    }

    /// Flags of a write-zeroes request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ZeroFlags: u32 {
        /// The range may be deallocated.
        const MAY_UNMAP = 1;
        /// Fail with ENOTSUP rather than write zeroes from a buffer (contract: C81).
        const NO_FALLBACK = 2;
        /// As [`WriteFlags::FUA`].
        const FUA = 4;
        /// As [`ReadFlags::SERIALISING`]: ENOTSUP unless the node is [tracked](crate::BlockNode::track).
        const SERIALISING = 8;
    }
}

/// How a length is changed. By default the device may become longer than asked for, and new bytes
/// take no space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncate {
    /// The length must become the one asked for. Without this, a device that is longer and cannot
    /// change its length succeeds.
    pub exact: bool,
    /// How space for new bytes is allocated.
    pub preallocation: Preallocation,
    /// New bytes read as zeroes even if a backing file has data there.
    pub zero: bool,
}

/// How space is allocated ahead of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// A format allocates its metadata.
    Metadata,
    /// Space is allocated, without writing it (`fallocate`).
    Falloc,
    /// Space is allocated by writing zeroes.
    Full,
}

impl Preallocation {
    /// Its name in options, such as `falloc`.
    pub fn name(self) -> &'static str {
        match self {
            Preallocation::Off => "off",
            Preallocation::Metadata => "metadata",
            Preallocation::Falloc => "falloc",
            Preallocation::Full => "full",
        }
    }
}
