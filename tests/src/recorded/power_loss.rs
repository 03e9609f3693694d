//! [`CrashPoint`]: what a loss of power at one moment may leave.
//!
//! Of each sector any state may be there that it has had since the last flush that was answered, and
//! also that of a request that is on its way. What ended before a flush began is durable when the flush
//! has been answered. A length is as a sector of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::Recorder;
use super::record::{Action, Record};
use crate::random::Random;

/// Which changes that are not durable survive.
pub enum Survivors<'a> {
    /// None.
    None,
    /// All that had their effect, and those on their way.
    All,
    /// Those of this request alone, of [`CrashPoint::unsettled`].
    Only(usize),
    /// All but those of this one.
    AllBut(usize),
    /// Some requests, whole.
    Some(&'a mut Random),
    /// Some sectors.
    Torn(&'a mut Random),
}

/// The files after a loss of power at one moment.
pub struct CrashPoint {
    /// With all that is durable, and as long as the file has ever been.
    durable: Vec<Vec<u8>>,
    lengths: Vec<Length>,
    /// By file and sector: the requests whose effects may be there, in order.
    pending: BTreeMap<(usize, usize), Vec<usize>>,
    records: Vec<Record>,
}

struct Length {
    durable: usize,
    /// Request and length, in order.
    pending: Vec<(usize, usize)>,
}

impl Length {
    /// A durable write is there, and with it the length that it needed, though the request for that is not
    /// answered yet.
    fn cover(&mut self, end: usize) {
        if end > self.durable
            && let Some(at) = self.pending.iter().position(|it| it.1 >= end)
        {
            self.durable = self.pending[at].1;
            self.pending.drain(..=at);
        }
    }
}

impl Recorder {
    /// What a loss of power at `moment` may leave.
    pub fn crash_at(&self, moment: u64) -> CrashPoint {
        let (records, at_first) = self.history();
        CrashPoint::new(records, at_first, moment)
    }
}

impl CrashPoint {
    fn new(records: Vec<Record>, at_first: Vec<Vec<u8>>, moment: u64) -> CrashPoint {
        let lengths = at_first.iter().map(|it| Length { durable: it.len(), pending: vec![] });
        let lengths = lengths.collect();
        let mut point =
            CrashPoint { durable: at_first, lengths, pending: BTreeMap::new(), records: vec![] };
        let barriers = point.barriers(&records, moment);
        for index in in_order(&records, moment) {
            let record = &records[index];
            let flushed = record.done_by(moment).is_some_and(|it| it < barriers[record.file]);
            let by_itself = matches!(record.action, Action::Write { durable: true, .. });
            let is_durable = flushed || by_itself && record.done_by(moment).is_some();
            point.enter(&records, index, is_durable);
        }
        point.records = records;
        point
    }

    /// For each file the moment before which a request must have ended to be durable.
    fn barriers(&self, records: &[Record], moment: u64) -> Vec<u64> {
        let mut barriers = vec![0; self.durable.len()];
        for flush in records.iter().filter(|it| matches!(it.action, Action::Flush)) {
            if flush.done_by(moment).is_some() {
                barriers[flush.file] = flush.begun.max(barriers[flush.file]);
            }
        }
        barriers
    }

    fn enter(&mut self, records: &[Record], index: usize, is_durable: bool) {
        let Record { file, action, .. } = &records[index];
        let (content, length) = (&mut self.durable[*file], &mut self.lengths[*file]);
        if let Action::Truncate { length: new } = *action {
            match is_durable {
                true => *length = Length { durable: new as usize, pending: vec![] },
                false => length.pending.push((index, new as usize)),
            }
            content.resize(content.len().max(new as usize), 0);
        }
        if let (Action::Write { offset, data, .. }, true) = (action, is_durable) {
            length.cover(*offset as usize + data.len());
        }
        for sector in action.sectors(content.len()) {
            let pending = self.pending.entry((*file, sector)).or_default();
            pending.push(index);
            if is_durable {
                for index in std::mem::take(pending) {
                    records[index].action.apply_to_sector(sector, content);
                }
            }
        }
    }

    /// The requests of which something may be there, or not.
    pub fn unsettled(&self) -> Vec<usize> {
        let of_sectors = self.pending.values().flatten().copied();
        let of_lengths = self.lengths.iter().flat_map(|it| it.pending.iter().map(|it| it.0));
        of_sectors.chain(of_lengths).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files, if those survive.
    pub fn files(&self, survivors: &mut Survivors<'_>) -> Vec<Vec<u8>> {
        let unsettled = match survivors {
            Survivors::Some(_) => self.unsettled(),
            _ => vec![],
        };
        let chosen: BTreeSet<usize> = match survivors {
            Survivors::Some(random) => {
                let chance = 1 + random.below(7);
                unsettled.into_iter().filter(|_| random.below(8) < chance).collect()
            }
            _ => BTreeSet::new(),
        };
        let mut count = |pending: &[usize]| match survivors {
            Survivors::None => 0,
            Survivors::All => pending.len(),
            Survivors::Only(it) => pending.iter().rposition(|at| at == it).map_or(0, |at| at + 1),
            Survivors::AllBut(it) => {
                pending.iter().position(|at| at == it).unwrap_or(pending.len())
            }
            Survivors::Some(_) => {
                pending.iter().rposition(|it| chosen.contains(it)).map_or(0, |at| at + 1)
            }
            Survivors::Torn(random) => random.below(pending.len() as u64 + 1) as usize,
        };
        let mut files = self.durable.clone();
        for (&(file, sector), pending) in &self.pending {
            for index in &pending[..count(pending)] {
                self.records[*index].action.apply_to_sector(sector, &mut files[file]);
            }
        }
        for (file, length) in files.iter_mut().zip(&self.lengths) {
            let requests: Vec<usize> = length.pending.iter().map(|it| it.0).collect();
            let chosen = count(&requests);
            let length = length.pending[..chosen].last().map_or(length.durable, |it| it.1);
            file.truncate(length);
        }
        files
    }

    /// A request in words.
    pub fn describe(&self, index: usize) -> String {
        let Record { file, action, begun, applied, ended, failed } = &self.records[index];
        let what = match action {
            Action::Write { offset, data, durable } => {
                let durable = if *durable { ", durable" } else { "" };
                format!("write of {:#x} bytes at {offset:#x}{durable}", data.len())
            }
            Action::Discard { offset, bytes } => {
                format!("discard of {bytes:#x} bytes at {offset:#x}")
            }
            Action::Truncate { length } => format!("new length {length:#x}"),
            Action::Flush => "flush".to_owned(),
        };
        let failed = if *failed { ", failed" } else { "" };
        format!("{index}: file {file}: {what}, {begun} {applied:?} {ended:?}{failed}")
    }
}

/// The requests issued by `moment`: as they had their effect, then those that had none yet.
fn in_order(records: &[Record], moment: u64) -> Vec<usize> {
    let issued = |index: &usize| records[*index].begun <= moment;
    let mut order: Vec<usize> = (0..records.len()).filter(issued).collect();
    let applied = |record: &Record| record.applied.filter(|it| *it <= moment);
    order.sort_by_key(|it| {
        let record = &records[*it];
        (applied(record).unwrap_or(u64::MAX), record.begun)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::SECTOR;

    fn write(sector: u64, byte: u8, begun: u64, ended: Option<u64>) -> Record {
        let action = Action::Write {
            offset: sector * SECTOR as u64,
            data: vec![byte; 2 * SECTOR].into(),
            durable: false,
        };
        Record { applied: ended.map(|it| it - 1), ended, ..Record::new(0, action, begun) }
    }

    fn flush(begun: u64, ended: u64) -> Record {
        let record = Record::new(0, Action::Flush, begun);
        Record { applied: Some(ended - 1), ended: Some(ended), ..record }
    }

    fn sectors(files: &[Vec<u8>]) -> Vec<u8> {
        files[0].chunks(SECTOR).map(|it| it[0]).collect()
    }

    fn states(records: &[Record], moment: u64) -> BTreeSet<Vec<u8>> {
        let point = CrashPoint::new(records.to_vec(), vec![vec![0; 4 * SECTOR]], moment);
        let mut random = Random::new(1);
        (0..200).map(|_| sectors(&point.files(&mut Survivors::Torn(&mut random)))).collect()
    }

    #[test]
    fn what_ended_before_a_flush_began_is_durable_after_it() {
        let records = [write(0, 1, 2, Some(5)), flush(6, 9)];
        assert_eq!(states(&records, 9), [vec![1, 1, 0, 0]].into());
        assert_eq!(states(&records, 8).len(), 4, "the flush is not answered");
        let records = [write(0, 1, 2, Some(7)), flush(6, 9)];
        assert_eq!(states(&records, 20).len(), 4, "it ended after the flush began");
    }

    #[test]
    fn each_sector_is_old_or_new_and_never_older_than_durable() {
        let records = [
            write(0, 1, 2, Some(5)),
            flush(6, 9),
            write(1, 2, 10, Some(13)),
            write(2, 3, 11, None),
        ];
        let states = states(&records, 14);
        assert!(states.iter().all(|it| it[0] == 1 && [1, 2].contains(&it[1])), "{states:?}");
        assert!(states.iter().all(|it| [0, 2, 3].contains(&it[2]) && [0, 3].contains(&it[3])));
        assert_eq!(states.len(), 2 * 3 * 2);
    }

    #[test]
    fn a_request_survives_alone_or_is_lost_alone() {
        let records = vec![write(0, 1, 2, Some(5)), write(2, 2, 6, Some(9))];
        let point = CrashPoint::new(records, vec![vec![0; 4 * SECTOR]], 9);
        assert_eq!(point.unsettled(), [0, 1]);
        let files = |mut survivors| sectors(&point.files(&mut survivors));
        assert_eq!(files(Survivors::Only(1)), [0, 0, 2, 2]);
        assert_eq!(files(Survivors::AllBut(1)), [1, 1, 0, 0]);
        assert_eq!(files(Survivors::None), [0; 4]);
        assert_eq!(files(Survivors::All), [1, 1, 2, 2]);
    }

    #[test]
    fn a_length_that_is_not_durable_cuts_the_file() {
        let grow = |length, begun| {
            let record = Record::new(0, Action::Truncate { length }, begun);
            Record { applied: Some(begun + 1), ended: Some(begun + 2), ..record }
        };
        let records = vec![grow(6 * SECTOR as u64, 2), write(4, 7, 5, Some(8))];
        let point = CrashPoint::new(records, vec![vec![9; 4 * SECTOR]], 8);
        let files = |mut survivors| sectors(&point.files(&mut survivors));
        assert_eq!(files(Survivors::Only(1)), [9, 9, 9, 9]);
        assert_eq!(files(Survivors::Only(0)), [9, 9, 9, 9, 0, 0]);
        assert_eq!(files(Survivors::All), [9, 9, 9, 9, 7, 7]);
        let late = Record { ended: Some(20), ..grow(6 * SECTOR as u64, 2) };
        let records = vec![late, write(4, 7, 5, Some(8)), flush(9, 11)];
        let point = CrashPoint::new(records, vec![vec![9; 4 * SECTOR]], 12);
        let files = sectors(&point.files(&mut Survivors::None));
        assert_eq!(files, [9, 9, 9, 9, 7, 7], "a durable write has its length");
        let records = vec![grow(2 * SECTOR as u64, 2), grow(4 * SECTOR as u64, 5), flush(8, 10)];
        let point = CrashPoint::new(records, vec![vec![9; 4 * SECTOR]], 10);
        assert_eq!(sectors(&point.files(&mut Survivors::None)), [9, 9, 0, 0], "cut and grown");
    }
}
