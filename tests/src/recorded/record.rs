//! [`Record`]: one request, what it does, and when.

use std::sync::Arc;

use super::disturb::Kind;

/// Bytes that are written whole or not at all.
pub const SECTOR: usize = 512;
/// Whatever a discard leaves, it is not what was there, nor zeroes.
const DISCARDED: u8 = 0xd5;

/// What a request does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Bytes change; durable says that no flush is needed.
    Write {
        /// In bytes.
        offset: u64,
        /// The bytes.
        data: Arc<[u8]>,
        /// With FUA.
        durable: bool,
    },
    /// Bytes become others, of which nothing is known.
    Discard {
        /// In bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// The file becomes shorter, or longer by zeroes.
    Truncate {
        /// In bytes.
        length: u64,
    },
    /// What ended before it began becomes durable.
    Flush,
}

impl Action {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Action::Write { .. } => Kind::Write,
            Action::Discard { .. } => Kind::Discard,
            Action::Truncate { .. } => Kind::Truncate,
            Action::Flush => Kind::Flush,
        }
    }

    /// Its effect if all of it happens.
    pub(super) fn apply_to(&self, content: &mut Vec<u8>) {
        match *self {
            Action::Truncate { length } => content.resize(length as usize, 0),
            Action::Flush => {}
            Action::Write { .. } | Action::Discard { .. } => {
                for sector in self.sectors(0) {
                    self.apply_to_sector(sector, content);
                }
            }
        }
    }

    /// Only so many bytes of it happen.
    pub(super) fn cut(&mut self, most: usize) {
        match self {
            Action::Write { data, .. } => *data = data[..most.min(data.len())].into(),
            Action::Discard { bytes, .. } => *bytes = (*bytes).min(most as u64),
            Action::Truncate { .. } => {
                *self = Action::Write { offset: 0, data: [].into(), durable: false }
            }
            Action::Flush => {}
        }
    }

    /// The sectors whose bytes it changes, in a file that has `length` bytes before.
    pub(super) fn sectors(&self, length: usize) -> std::ops::Range<usize> {
        let (start, end) = match *self {
            Action::Write { offset, ref data, .. } => {
                (offset as usize, offset as usize + data.len())
            }
            Action::Discard { offset, bytes } => (offset as usize, (offset + bytes) as usize),
            Action::Truncate { length: new } => (new as usize, length.max(new as usize)),
            Action::Flush => (0, 0),
        };
        if start == end { 0..0 } else { start / SECTOR..end.div_ceil(SECTOR) }
    }

    /// Its effect on one of its sectors; bytes of that which the file does not have are left out.
    pub(super) fn apply_to_sector(&self, sector: usize, content: &mut [u8]) {
        let whole = sector * SECTOR..(sector + 1) * SECTOR;
        let within = |start: usize, end: usize| {
            let end = end.min(whole.end).min(content.len());
            start.max(whole.start).min(end)..end
        };
        match *self {
            Action::Write { offset, ref data, .. } => {
                let start = offset as usize;
                let range = within(start, start + data.len());
                let from = range.start.saturating_sub(start);
                content[range.clone()].copy_from_slice(&data[from..from + range.len()]);
            }
            Action::Discard { offset, bytes } => {
                let range = within(offset as usize, (offset + bytes) as usize);
                content[range].fill(DISCARDED);
            }
            Action::Truncate { length } => {
                let range = within(length as usize, usize::MAX);
                content[range].fill(0);
            }
            Action::Flush => {}
        }
    }
}

/// One request to one file, with the moments of its life.
#[derive(Clone, Debug)]
pub struct Record {
    /// The number of the file.
    pub file: usize,
    /// What it does; of one that failed, the part that happened.
    pub action: Action,
    /// When it was issued.
    pub begun: u64,
    /// When others could see its effect.
    pub applied: Option<u64>,
    /// When it was answered.
    pub ended: Option<u64>,
    /// Whether the answer was an error.
    pub failed: bool,
}

impl Record {
    pub(super) fn new(file: usize, action: Action, begun: u64) -> Record {
        Record { file, action, begun, applied: None, ended: None, failed: false }
    }

    /// When it was answered with success, if that was by `moment`.
    pub(super) fn done_by(&self, moment: u64) -> Option<u64> {
        self.ended.filter(|ended| *ended <= moment && !self.failed)
    }
}
