//! [`JobStatus`] and [`Verb`]: the states of a job, and what can be asked of it in each.

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// It is made, and has not begun.
    Created,
    /// It works.
    Running,
    /// It rests.
    Paused,
    /// It has done its work, and goes on until it is told to complete.
    Ready,
    /// It rests after having been ready.
    Standby,
    /// It waits for others of its group.
    Waiting,
    /// It waits to be finalized.
    Pending,
    /// It has failed or was cancelled, and undoes what it has done.
    Aborting,
    /// It is over, and waits to be dismissed.
    Concluded,
    /// It is gone.
    Null,
}

/// What can be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To give up.
    Cancel,
    /// To rest.
    Pause,
    /// To go on.
    Resume,
    /// To work at another speed.
    SetSpeed,
    /// To work in another mode.
    Change,
    /// To end, when it is ready.
    Complete,
    /// To make its end take effect.
    Finalize,
    /// To go, when it is over.
    Dismiss,
}

impl JobStatus {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            JobStatus::Created => "created",
            JobStatus::Running => "running",
            JobStatus::Paused => "paused",
            JobStatus::Ready => "ready",
            JobStatus::Standby => "standby",
            JobStatus::Waiting => "waiting",
            JobStatus::Pending => "pending",
            JobStatus::Aborting => "aborting",
            JobStatus::Concluded => "concluded",
            JobStatus::Null => "null",
        }
    }

    /// Whether `next` may follow.
    pub fn may_become(self, next: JobStatus) -> bool {
        use JobStatus::*;
        let followers: &[JobStatus] = match self {
            Created => &[Running, Aborting, Null],
            Running => &[Paused, Ready, Waiting, Aborting],
            Paused => &[Running],
            Ready => &[Standby, Waiting, Aborting],
            Standby => &[Ready],
            Waiting => &[Pending, Aborting],
            Pending => &[Concluded, Aborting],
            Aborting => &[Concluded],
            Concluded => &[Null],
            Null => &[],
        };
        followers.contains(&next)
    }

    /// Whether a job in this state can be asked for that.
    pub fn accepts(self, verb: Verb) -> bool {
        use JobStatus::*;
        let until_standby = matches!(self, Created | Running | Paused | Ready | Standby);
        match verb {
            Verb::Cancel => until_standby || matches!(self, Waiting | Pending),
            Verb::Pause | Verb::Resume | Verb::SetSpeed | Verb::Change => until_standby,
            Verb::Complete => matches!(self, Ready | Standby),
            Verb::Finalize => self == Pending,
            Verb::Dismiss => self == Concluded,
        }
    }
}

impl Verb {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::SetSpeed => "set-speed",
            Verb::Change => "change",
            Verb::Complete => "complete",
            Verb::Finalize => "finalize",
            Verb::Dismiss => "dismiss",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::JobStatus::*;
    use super::*;

    const ALL: [JobStatus; 10] =
        [Created, Running, Paused, Ready, Standby, Waiting, Pending, Aborting, Concluded, Null];

    #[test]
    fn j3_states_follow_each_other_to_the_end() {
        let ways = |from: JobStatus| ALL.iter().filter(|next| from.may_become(**next)).count();
        assert_eq!(ALL.map(ways), [3, 4, 1, 3, 1, 2, 2, 1, 1, 0]);
        assert!(Aborting.may_become(Concluded) && !Concluded.may_become(Running));
        assert!(!Running.may_become(Running) && !Running.may_become(Concluded));
    }

    #[test]
    fn j5_verbs_are_for_some_states() {
        let states = |verb| ALL.map(|state| if state.accepts(verb) { '1' } else { '0' });
        let text = |verb| states(verb).iter().collect::<String>();
        assert_eq!(text(Verb::Cancel), "1111111000");
        assert_eq!(text(Verb::Pause), "1111100000");
        for verb in [Verb::Resume, Verb::SetSpeed, Verb::Change] {
            assert_eq!(text(verb), "1111100000");
        }
        assert_eq!(text(Verb::Complete), "0001100000");
        assert_eq!(text(Verb::Finalize), "0000001000");
        assert_eq!(text(Verb::Dismiss), "0000000010");
    }
}
