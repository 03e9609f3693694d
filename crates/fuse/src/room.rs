//! [`Room`]: where the data of one request lies, whichever way it came.

use std::io::IoSlice;

use coblk_aio::sys::FuseEntry;
use coblk_aio::{IoVector, IoVectorMut};

use crate::memory::Payload;

/// The data of a request, or room for that of its answer.
pub enum Room {
    /// The request came from the device: blocks, if there is data.
    Blocks(Option<Payload>),
    /// It came over the ring, in an entry, of which so many bytes are data.
    Entry(FuseEntry, usize),
}

impl Room {
    /// Gives it that length, if it has room for so much.
    pub fn set_len(&mut self, bytes: usize) {
        match self {
            Room::Blocks(payload) => payload.iter_mut().for_each(|it| it.set_len(bytes)),
            Room::Entry(entry, len) => *len = bytes.min(entry.payload().len()),
        }
    }

    /// Its first `len` bytes, or all if there are fewer, to be written.
    pub fn source(&self, len: usize) -> IoVector<'_> {
        match self {
            Room::Blocks(payload) => payload.as_ref().map(|it| it.source(len)).unwrap_or_default(),
            Room::Entry(entry, bytes) => IoVector::from(&entry.payload()[..len.min(*bytes)]),
        }
    }

    /// All of it, to be read into.
    pub fn target(&mut self) -> IoVectorMut<'_> {
        match self {
            Room::Blocks(payload) => payload.as_mut().map(Payload::target).unwrap_or_default(),
            Room::Entry(entry, len) => IoVectorMut::from(&mut entry.payload_mut()[..*len]),
        }
    }

    /// All of it behind a header, to be sent by the device.
    pub fn behind<'a>(&'a self, header: &'a [u8]) -> [IoSlice<'a>; 3] {
        match self {
            Room::Blocks(Some(payload)) => payload.behind(header),
            _ => [IoSlice::new(header), IoSlice::new(&[]), IoSlice::new(&[])],
        }
    }

    /// The entry, for its answer.
    pub fn take_entry(&mut self) -> Option<FuseEntry> {
        match std::mem::replace(self, Room::Blocks(None)) {
            Room::Entry(entry, _) => Some(entry),
            blocks => {
                *self = blocks;
                None
            }
        }
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        match self {
            Room::Blocks(payload) => payload.as_ref().map_or(0, |it| it.len),
            Room::Entry(_, len) => *len,
        }
    }
}
