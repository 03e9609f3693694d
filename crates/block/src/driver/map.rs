//! [`ReadMap`]: where the bytes of a format are, for the layer to read them.

use std::io;
use std::ops::Range;

use coblk_aio::Co;

use crate::driver::edge::EdgeId;

/// The place of the first bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes lie there in one piece: at least one, perhaps more than were asked for.
    pub bytes: u64,
    /// Their place.
    pub place: Place,
}

/// A place of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a node, from this offset on, as they are read. Behind its end they are zeroes.
    Stored {
        /// The edge to the node.
        child: EdgeId,
        /// The offset there, in bytes.
        offset: u64,
    },
    /// Nowhere: they are zeroes.
    Zero,
    /// Not in this layer: the backing file has them, and behind its end, or without one, they are zeroes.
    Backing,
}

/// A driver that finds the place of bytes, and leaves their reading to the layer
/// ([`co_read_mapped`](crate::co_read_mapped)).
/// [`BlockDriver::read_map`](crate::BlockDriver::read_map) returns it, so that a chain of such
/// drivers is read by a loop.
pub trait ReadMap {
    /// Finds the place of the first bytes of a range, calls `read` with it, once, and returns its result.
    /// Until `read` returns the driver lets no other bytes come to that place. It holds no lock meanwhile
    /// that a request to the child may wait for.
    ///
    /// `read` returns at once for [`Place::Zero`] and [`Place::Backing`], and may do so for others: the
    /// layer looks at a range first and reads its pieces then, each after another call.
    ///
    /// # Errors
    /// Errors of finding the place, and of `read`. The request fails with them.
    fn co_map(
        &self,
        co: &Co<'_>,
        range: Range<u64>,
        read: &mut dyn FnMut(Piece) -> io::Result<()>,
    ) -> io::Result<()>;
}
