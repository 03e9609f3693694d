//! What a request may ask for besides its range.

bitflags::bitflags! {
    /// Flags of a write.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// Force unit access: the data is durable when the write succeeds.
        const FUA = 1;
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
