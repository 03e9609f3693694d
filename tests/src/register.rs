//! [`Registers`]: what each sector of a disk may read as, while requests overlap and after a crash.
//!
//! A sector is a register with a history: contents, and when the request for each began and ended. A
//! read may show each content whose request had begun, unless another one came wholly after that and
//! wholly before the read. After a crash the same holds, with a flush in the place of the read: what a
//! flush that was answered covers, hides what came wholly before it.

use std::collections::{BTreeSet, HashMap};
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

    /// Whether it is durable at `moment`, when what was answered before `barrier` is.
    fn is_covered(&self, barrier: u64, moment: u64) -> bool {
        self.done().is_some_and(|done| done <= barrier || self.durable && done <= moment)
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

    /// When a change of at least one sector began, and was answered.
    pub fn times(&self, change: &Change) -> (u64, Option<u64>) {
        let version = self.sectors[change.range.start].iter().find(|it| it.begun == change.begun);
        (change.begun, version.and_then(|it| it.ended))
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
        self.check(at, &self.begun_by(at, ended), found, covered)
    }

    /// What a sector holds after a crash at `moment`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn check_crash(&self, at: usize, found: Print, moment: u64) -> Result<(), String> {
        let barrier = self.barrier(moment);
        self.check(at, &self.begun_by(at, moment), found, |it| it.is_covered(barrier, moment))
    }

    /// What was answered by then is durable at `moment`.
    fn barrier(&self, moment: u64) -> u64 {
        let answered = self.flushes.iter().filter(|flush| flush.1 <= moment);
        answered.map(|flush| flush.0).max().unwrap_or(1)
    }

    /// Contents of a sector whose requests had begun at `moment`.
    fn begun_by(&self, at: usize, moment: u64) -> Vec<Version> {
        self.sectors[at].iter().filter(|it| it.begun <= moment).copied().collect()
    }

    /// What sectors hold after a crash at `moment`, where a change of all of them has one moment, the same
    /// everywhere, between its begin and its answer: it has happened then, and is durable; or it has not, if it
    /// was not answered.
    ///
    /// # Errors
    /// Says for each moment that it may have which sector is wrong.
    pub fn check_instant(
        &self,
        found: &[Print],
        change: &Change,
        moment: u64,
    ) -> Result<(), String> {
        let is_it = |it: &Version| it.begun == change.begun;
        let (_, ended) = self.times(change);
        let (barrier, is_answered) = (self.barrier(moment), ended.is_some_and(|it| it <= moment));
        let covered = |it: &Version| it.is_covered(barrier, moment);
        let at_one = |at: usize, instant: Option<u64>| {
            let others = self.sectors[at].iter().filter(|it| !is_it(it) && it.begun <= moment);
            let mut versions: Vec<Version> = others.copied().collect();
            if let (Some(it), Some(begun)) = (self.sectors[at].iter().find(|it| is_it(it)), instant)
            {
                let (ended, durable) = (Some(begun), true);
                versions.push(Version { begun, ended, durable, failed: false, ..*it });
            }
            self.check(at, &versions, found[at], covered)
        };
        let last = ended.unwrap_or(moment).min(moment);
        let instants = self.steps(change.begun..last + 1).into_iter().map(Some);
        let never = (!is_answered).then_some(None);
        // Where nothing else was beside it, one moment is as another.
        let is_beside =
            |it: &Version| it.begun <= last && it.ended.is_none_or(|it| it >= change.begun);
        let is_busy = |at: &usize| self.sectors[*at].iter().any(|it| !is_it(it) && is_beside(it));
        let (busy, calm): (Vec<usize>, Vec<usize>) = change.range.clone().partition(is_busy);
        let calm = [None, Some(change.begun)]
            .map(|instant| calm.iter().try_for_each(|at| at_one(*at, instant)));
        any_instant(never.into_iter().chain(instants), |instant| {
            calm[usize::from(instant.is_some())].clone()?;
            busy.iter().try_for_each(|at| at_one(*at, instant))
        })
    }

    /// What sectors hold that were read at one moment in `time`, the same for all of them.
    ///
    /// # Errors
    /// Says for each of the moments which sector is wrong.
    pub fn check_read_at_once(&self, found: &[Print], time: Range<u64>) -> Result<(), String> {
        any_instant(self.steps(time).into_iter().map(Some), |instant| {
            let instant = instant.expect("a moment");
            let mut all = found.iter().enumerate();
            all.try_for_each(|(at, found)| self.check_read(at, *found, instant, instant))
        })
    }

    /// When something has begun or ended in that time, and its begin.
    fn steps(&self, time: Range<u64>) -> BTreeSet<u64> {
        let all = self.sectors.iter().flatten();
        let all = all.flat_map(|it| [Some(it.begun), it.ended]).flatten();
        all.filter(|it| time.contains(it)).chain([time.start]).collect()
    }

    fn check(
        &self,
        at: usize,
        versions: &[Version],
        found: Print,
        covered: impl Fn(&Version) -> bool,
    ) -> Result<(), String> {
        let versions = || versions.iter();
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

/// Looks for a moment at which all sectors are right.
fn any_instant(
    instants: impl Iterator<Item = Option<u64>>,
    are_right: impl Fn(Option<u64>) -> Result<(), String>,
) -> Result<(), String> {
    let mut faults = Vec::new();
    for instant in instants {
        match are_right(instant) {
            Ok(()) => return Ok(()),
            Err(fault) => faults.push(format!("\n  {instant:?}: {fault}")),
        }
    }
    Err(format!("it has no moment:{}", faults.concat()))
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
    fn a_change_of_all_has_one_moment_everywhere() {
        let mut disk = disk();
        let all = disk.begin(0, &[1, 2, 3, 4], 10, false);
        for (at, print, begun) in [(0, 11, 12), (1, 22, 15), (2, 33, 18)] {
            let change = disk.begin(at, &[print], begun, false);
            disk.end(&change, begun + 1, false, false);
        }
        disk.end(&all, 30, true, false);
        disk.flushed(40, 41);
        for right in [[1, 2, 3, 4], [11, 22, 33, 4], [1, 22, 33, 4], [1, 2, 33, 4]] {
            assert_eq!(disk.check_instant(&right, &all, 41), Ok(()));
            assert_eq!(disk.check_instant(&right, &all, 50), Ok(()));
        }
        for wrong in [[11, 2, 33, 4], [11, 22, 3, 4], [11, 22, 33, zero_print()]] {
            assert!(disk.check_instant(&wrong, &all, 41).is_err(), "{wrong:?}");
        }
        let zero = zero_print();
        assert!(disk.check_instant(&[11, zero, zero, zero], &all, 14).is_ok(), "not yet");
        assert!(disk.check_instant(&[11, 2, 3, 4], &all, 14).is_ok(), "before the write");
        assert!(disk.check_instant(&[11, zero, 3, 4], &all, 14).is_err(), "in part");
        assert!(disk.check_instant(&[zero; 4], &all, 29).is_ok(), "nothing is durable");
        assert!(disk.check_instant(&[zero; 4], &all, 30).is_err(), "it was answered");
    }

    #[test]
    fn what_is_read_at_once_is_of_one_moment() {
        let mut disk = disk();
        for (at, begun) in [(0, 10), (1, 12), (2, 14)] {
            let change = disk.begin(at, &[11], begun, false);
            disk.end(&change, begun + 1, false, false);
        }
        let zero = zero_print();
        for right in [[zero; 4], [11, zero, zero, zero], [11, 11, zero, zero], [11, 11, 11, zero]] {
            assert!(disk.check_read_at_once(&right, 5..20).is_ok(), "{right:?}");
        }
        assert!(disk.check_read_at_once(&[zero, 11, zero, zero], 5..20).is_err());
        assert!(disk.check_read_at_once(&[zero; 4], 11..20).is_err(), "that was answered");
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
