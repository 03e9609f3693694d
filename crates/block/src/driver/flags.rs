//! What a request may ask for besides its range.

bitflags::bitflags! {
    /// Flags of a read.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReadFlags: u32 {
        /// What comes from a backing file is written to the node itself. Without a backing file there
        /// is nothing to copy, and the flag is dropped.
        const COPY_ON_READ = 1;
        /// The caller wants the effects of the read and not the data: what is in the buffer
        /// afterwards is unspecified. A driver that does not take it reads as usual.
        const PREFETCH = 2;
        /// No other request to the same bytes runs at the same time.
        const SERIALISING = 4;
    }

    /// Flags of a write.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// Force unit access: the data is durable when the write succeeds.
        const FUA = 1;
        /// What is read there does not change by it: data moves within a chain. A driver that does not
        /// take it writes as usual.
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
    }
}

/// How a length is changed. By default the device may come to be longer than asked, and what is new
/// takes no space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncate {
    /// The length must become the one asked for. Without it a device that cannot change its length, and
    /// is longer, succeeds.
    pub exact: bool,
    /// What is done to have space for what is new.
    pub preallocation: Preallocation,
    /// What is new reads as zeroes even if a backing file has data there.
    pub zero: bool,
}

/// What is done ahead of writes to have space for them.
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
