//! [`Disturbance`]: requests that fail, or are held.

/// What is asked of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes are read.
    Read,
    /// Bytes are written, or zeroed.
    Write,
    /// Bytes are discarded.
    Discard,
    /// The length changes.
    Truncate,
    /// What was written becomes durable.
    Flush,
}

/// When a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before it has its effect.
    Before,
    /// After it, before the answer.
    After,
}

/// Which requests fail or are held: the one that comes after `skip` others of these kinds, and those
/// that follow, `times` in all.
#[derive(Clone, Debug)]
pub struct Disturbance {
    /// No kinds are all kinds.
    pub kinds: Vec<Kind>,
    /// How many are left alone before.
    pub skip: u64,
    /// How many are met.
    pub times: u64,
    /// The errno that they fail with.
    pub errno: Option<i32>,
    /// Up to so many sectors of a write that fails are written.
    pub part: Option<u64>,
    /// When they are held.
    pub hold: Option<Moment>,
}

impl Disturbance {
    /// One request after `skip` others fails.
    pub fn fail(errno: i32, skip: u64) -> Disturbance {
        Disturbance { kinds: vec![], skip, times: 1, errno: Some(errno), part: Some(3), hold: None }
    }

    /// One request after `skip` others is held.
    pub fn hold(moment: Moment, skip: u64) -> Disturbance {
        Disturbance { kinds: vec![], skip, times: 1, errno: None, part: None, hold: Some(moment) }
    }

    /// Only requests of this kind count, and are met.
    pub fn of(mut self, kind: Kind) -> Disturbance {
        self.kinds.push(kind);
        self
    }
}

#[derive(Default)]
pub(super) struct Disturbances {
    all: Vec<Disturbance>,
    met: u64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Default)]
pub(super) struct Verdict {
    pub(super) errno: Option<i32>,
    pub(super) part: Option<u64>,
    pub(super) hold: Option<Moment>,
}

impl Disturbances {
    pub(super) fn add(&mut self, disturbance: Disturbance) {
        self.all.push(disturbance);
    }

    pub(super) fn met(&self) -> u64 {
        self.met
    }

    pub(super) fn judge(&mut self, kind: Kind) -> Verdict {
        let mut verdict = Verdict::default();
        for it in &mut self.all {
            if !it.kinds.is_empty() && !it.kinds.contains(&kind) {
                continue;
            }
            if it.skip > 0 {
                it.skip -= 1;
            } else if it.times > 0 {
                it.times -= 1;
                self.met += 1;
                verdict.errno = verdict.errno.or(it.errno);
                verdict.part = verdict.part.or(it.part);
                verdict.hold = verdict.hold.or(it.hold);
            }
        }
        verdict
    }
}
