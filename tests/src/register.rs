//! [`Registers`]: what each sector of a disk may read as, while requests overlap and after a crash.
//!
//! A sector is a register with a history: contents, and when the request for each began and ended. A
//! read may show each content whose request had begun, unless another one came wholly after that and
//! wholly before the read. After a crash the same holds, with a flush in the place of the read: what a
//! flush that was answered covers, hides what came wholly before it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use crate::recorded::SECTOR;

/// The content of a sector, as a number.
pub type Print = u64;

/// The print of a sector of zeroes.
pub fn zero_print() -> Print {
    print_of(&[0; SECTOR])
}

/// The print of a sector.
pub fn print_of(sector: &[u8]) -> Print {
    let mut hasher = DefaultHasher::new();
    hasher.write(sector);
    hasher.finish()
}

#[derive(Clone, Copy, Debug)]
struct Version {
    print: Print,
    begun: u64,
    /// When it was answered.
    ended: Option<u64>,
    /// Whether with an error.
    failed: bool,
    /// Durable when it is done.
    durable: bool,
    /// It may leave what is there: a discard.
    is_hint: bool,
}

impl Version {
    /// When it was answered with success.
    fn done(&self) -> Option<u64> {
        self.ended.filter(|_| !self.failed)
    }
}

/// The sectors of a disk.
#[derive(Clone, Default)]
pub struct Registers {
    sectors: Vec<Vec<Version>>,
    /// Begin and end of flushes that were answered with success.
    flushes: Vec<(u64, u64)>,
    /// Where a content was written first.
    known: HashMap<Print, (usize, u64)>,
}

/// A change that is on its way.
#[derive(Clone, Debug)]
#[must_use = "a change ends"]
pub struct Change {
    range: Range<usize>,
    begun: u64,
}

impl Registers {
    /// A disk with this content, which is durable.
    pub fn new(content: &[u8]) -> Registers {
        let first = |print| Version {
            print,
            begun: 0,
            ended: Some(0),
            failed: false,
            durable: true,
            is_hint: false,
        };
        let sectors: Vec<Vec<Version>> =
            content.chunks(SECTOR).map(|it| vec![first(print_of(it))]).collect();
        let known = (0..).zip(&sectors).map(|(at, it)| (it[0].print, (at, 0))).collect();
        Registers { sectors, flushes: vec![], known }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// A change of sectors from `first` on begins; `prints` are the new contents. A hint may leave the old
    /// ones.
    pub fn begin(&mut self, first: usize, prints: &[Print], begun: u64, is_hint: bool) -> Change {
        for (at, print) in (first..).zip(prints) {
            let version = Version {
                print: *print,
                begun,
                ended: None,
                failed: false,
                durable: false,
                is_hint,
            };
            self.sectors[at].push(version);
            self.known.entry(*print).or_insert((at, begun));
        }
        Change { range: first..first + prints.len(), begun }
    }

    /// A change was answered: if that is an error, some of it may have happened.
    pub fn end(&mut self, change: &Change, ended: u64, durable: bool, failed: bool) {
        for sector in &mut self.sectors[change.range.clone()] {
            let version = sector.iter_mut().find(|it| it.begun == change.begun);
            let version = version.expect("a change that began");
            (version.ended, version.durable, version.failed) = (Some(ended), durable, failed);
        }
    }

    /// A flush was answered with success.
    pub fn flushed(&mut self, begun: u64, ended: u64) {
        self.flushes.push((begun, ended));
    }

    /// What a read of a sector found, that began and ended then.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_read(
        &self,
        at: usize,
        found: Print,
        begun: u64,
        ended: u64,
    ) -> Result<(), String> {
        let covered = |it: &Version| it.done().is_some_and(|done| done <= begun);
        self.check(at, found, ended, covered)
    }

    /// What a sector holds after a crash at `moment`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_crash(&self, at: usize, found: Print, moment: u64) -> Result<(), String> {
        let answered = self.flushes.iter().filter(|flush| flush.1 <= moment);
        let barrier = answered.map(|flush| flush.0).max().unwrap_or(1);
        let covered = |it: &Version| {
            it.done().is_some_and(|done| done <= barrier || it.durable && done <= moment)
        };
        self.check(at, found, moment, covered)
    }

    fn check(
        &self,
        at: usize,
        found: Print,
        moment: u64,
        covered: impl Fn(&Version) -> bool,
    ) -> Result<(), String> {
        let versions = || self.sectors[at].iter().filter(|it| it.begun <= moment);
        // Requests that ended before this moment have been replaced.
        let covers = versions().filter(|it| !it.is_hint && covered(it)).map(|it| it.begun);
        let replaced = covers.max().unwrap_or(0);
        let stays = |it: &&Version| it.ended.is_none_or(|it| it > replaced) || it.begun == replaced;
        if versions().filter(stays).any(|it| it.print == found) {
            return Ok(());
        }
        let may_be: Vec<u64> = versions().filter(stays).map(|it| it.begun).collect();
        let what = match self.known.get(&found) {
            Some(_) if versions().any(|it| it.print == found) => {
                let version = versions().rfind(|it| it.print == found);
                format!("what was written at {}", version.map_or(0, |it| it.begun))
            }
            _ if found == zero_print() => "zeroes".to_owned(),
            Some((other, begun)) => format!("what was written at {begun} to sector {other}"),
            None => "what was never written".to_owned(),
        };
        Err(format!("sector {at} has {what}, and not what was written at one of {may_be:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Registers {
        Registers::new(&[0; 4 * SECTOR])
    }

    #[test]
    fn a_read_sees_the_last_write_or_those_beside_it() {
        let mut disk = disk();
        let one = disk.begin(1, &[11], 2, false);
        disk.end(&one, 4, false, false);
        let two = disk.begin(1, &[22], 6, false);
        let three = disk.begin(1, &[33], 7, false);
        assert!(disk.check_read(1, 11, 5, 8).is_ok(), "no other has ended");
        assert!(disk.check_read(1, zero_print(), 5, 8).is_err(), "replaced");
        assert!(disk.check_read(1, 22, 3, 5).is_err(), "it had not begun");
        disk.end(&two, 9, false, false);
        disk.end(&three, 9, false, false);
        assert!(disk.check_read(1, 11, 10, 11).is_err(), "replaced by either");
        for either in [22, 33] {
            assert!(disk.check_read(1, either, 10, 11).is_ok(), "they overlapped");
        }
        assert!(disk.check_read(0, zero_print(), 10, 11).is_ok());
        assert!(disk.check_read(0, 11, 10, 11).unwrap_err().contains("to sector 1"));
    }

    #[test]
    fn a_crash_leaves_what_was_flushed_or_later() {
        let mut disk = disk();
        for (print, begun) in [(11, 2), (22, 10), (33, 20)] {
            let change = disk.begin(0, &[print], begun, false);
            disk.end(&change, begun + 2, false, false);
        }
        disk.flushed(13, 15);
        assert!(disk.check_crash(0, 11, 14).is_ok(), "the flush is not answered");
        assert!(disk.check_crash(0, 11, 15).is_err(), "lost");
        assert!(disk.check_crash(0, 22, 25).is_ok() && disk.check_crash(0, 33, 25).is_ok());
        assert!(disk.check_crash(0, zero_print(), 25).is_err());
        assert!(disk.check_crash(0, 33, 19).is_err(), "it had not begun");
    }

    #[test]
    fn a_hint_may_leave_what_was_there() {
        let mut disk = disk();
        let one = disk.begin(0, &[11], 2, false);
        disk.end(&one, 3, true, false);
        let discard = disk.begin(0, &[zero_print()], 4, true);
        disk.end(&discard, 5, false, false);
        disk.flushed(6, 7);
        for either in [11, zero_print()] {
            assert!(
                disk.check_crash(0, either, 8).is_ok() && disk.check_read(0, either, 8, 9).is_ok()
            );
        }
        assert!(disk.check_crash(1, 11, 8).is_err());
    }
    #[test]
    fn what_failed_may_be_there_until_it_is_replaced() {
        let mut disk = disk();
        let failed = disk.begin(0, &[11], 2, false);
        disk.end(&failed, 3, false, true);
        for either in [11, zero_print()] {
            assert!(disk.check_read(0, either, 4, 5).is_ok());
        }
        let after = disk.begin(0, &[22], 6, false);
        disk.end(&after, 7, false, false);
        assert!(disk.check_read(0, 11, 8, 9).is_err() && disk.check_read(0, 22, 8, 9).is_ok());
        assert!(disk.check_crash(0, 11, 9).is_ok(), "the later one is not durable");
    }
}
