//! What a check is asked for, and its outcome.

use std::fmt;

use coblk_block::{CheckReport, Repair};

/// Most findings that are kept as texts.
const MAX_FINDINGS: usize = 1000;
/// Steps of the progress of a whole check.
const STEPS: u64 = 1000;

/// What a check does.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct CheckOptions<'a> {
    /// What is mended.
    pub repair: Repair,
    /// Is called now and then with how much is done, and how much there is to do, in any unit.
    pub progress: &'a dyn Fn(u64, u64),
}

impl CheckOptions<'_> {
    /// A check that mends `repair`, and does not say how far it is.
    pub fn new(repair: Repair) -> CheckOptions<'static> {
        CheckOptions { repair, progress: &|_, _| () }
    }
}

impl fmt::Debug for CheckOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions").field("repair", &self.repair).finish_non_exhaustive()
    }
}

/// The outcome of a check.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Check {
    /// The figures.
    pub report: CheckReport,
    /// What was found, in words, as far as there is room; what was mended, first.
    pub findings: Vec<String>,
}

impl Check {
    pub(super) fn find(&mut self, what: impl FnOnce() -> String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(what());
        }
    }

    /// Counts corruptions.
    pub(super) fn corrupt(&mut self, times: u64, what: impl FnOnce() -> String) {
        self.report.corruptions = self.report.corruptions.saturating_add(times);
        self.find(what);
    }

    /// Counts places that could not be checked.
    pub(super) fn fail(&mut self, times: u64, what: impl FnOnce() -> String) {
        self.report.check_errors = self.report.check_errors.saturating_add(times);
        self.find(what);
    }
}

/// How far a check is that may be one of two.
#[derive(Clone, Copy)]
pub(super) struct Progress<'a> {
    tell: &'a dyn Fn(u64, u64),
    from: u64,
    to: u64,
}

impl<'a> Progress<'a> {
    /// Of one check.
    pub(super) fn whole(tell: &'a dyn Fn(u64, u64)) -> Progress<'a> {
        Progress { tell, from: 0, to: STEPS }
    }

    /// Of the check before a repair, and of the one after it.
    pub(super) fn halves(tell: &'a dyn Fn(u64, u64)) -> [Progress<'a>; 2] {
        let half = STEPS / 2;
        [Progress { tell, from: 0, to: half }, Progress { tell, from: half, to: STEPS }]
    }

    /// `done` of `all` parts are done.
    pub(super) fn tell(&self, done: u64, all: u64) {
        let steps = self.to - self.from;
        let done = u128::from(steps) * u128::from(done.min(all)) / u128::from(all.max(1));
        (self.tell)(self.from + done as u64, STEPS);
    }
}
