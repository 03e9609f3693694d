//! [`Extent`]: the state of a range, as far as a driver knows it without reading.

/// The state of the first bytes of a range. A hint: it may be old when it arrives, so no request
/// relies on it to find where bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes; more of the same kind may follow.
    pub bytes: u64,
    /// Data is stored for them.
    pub data: bool,
    /// They read as zeroes.
    pub zero: bool,
    /// This layer decides what they read as, and not a backing file.
    pub allocated: bool,
    /// They are stored compressed.
    pub compressed: bool,
    /// They reach to the end of the device.
    pub end: bool,
    /// Where the first of them is stored, if it is in one piece, as it is read.
    pub stored: Option<Stored>,
}

/// A place where bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The child of the driver, by its name, such as `file`; `None` for storage of its own.
    pub child: Option<&'static str>,
    /// The offset there, in bytes.
    pub offset: u64,
}

impl Extent {
    /// An extent of this layer whose bytes may be anything, as far as is known without reading.
    pub fn data(bytes: u64) -> Extent {
        Extent {
            bytes,
            data: true,
            zero: false,
            allocated: true,
            compressed: false,
            end: false,
            stored: None,
        }
    }

    /// An extent of zeroes of this layer, for which nothing is stored.
    pub fn hole(bytes: u64) -> Extent {
        Extent { data: false, zero: true, ..Extent::data(bytes) }
    }

    /// An extent that is not of this layer: a backing file decides, or they are zeroes if there is
    /// none.
    pub fn unallocated(bytes: u64) -> Extent {
        Extent { data: false, allocated: false, ..Extent::data(bytes) }
    }

    /// The same extent, stored at `offset` bytes of a child, or of the driver's own storage.
    pub fn stored_at(self, child: Option<&'static str>, offset: u64) -> Extent {
        Extent { stored: Some(Stored { child, offset }), ..self }
    }

    /// The part behind its first `skipped` bytes, at most `bytes` long.
    pub(crate) fn part(self, skipped: u64, bytes: u64) -> Extent {
        let moved = |it: Stored| Stored { offset: it.offset.saturating_add(skipped), ..it };
        let end = self.end && self.bytes <= skipped.saturating_add(bytes);
        let bytes = bytes.min(self.bytes.saturating_sub(skipped));
        Extent { bytes, end, stored: self.stored.map(moved), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_stored_where_it_begins() {
        let extent = Extent { end: true, ..Extent::data(100).stored_at(Some("file"), 1000) };
        let middle = Extent { end: false, ..Extent::data(20).stored_at(Some("file"), 1030) };
        assert_eq!(extent.part(30, 20), middle);
        let last = Extent { end: true, ..Extent::data(70).stored_at(Some("file"), 1030) };
        assert_eq!((extent.part(30, 70), extent.part(30, 200)), (last, last));
    }
}
