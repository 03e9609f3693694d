//! The works that are measured. Each is named once, here, and keeps its name.

/// In what a work is measured, and which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds an operation.
    NsPerOp,
    /// Bytes for each of something.
    BytesEach,
    /// Memory mappings of a process.
    Mappings,
    /// Wake-ups a second.
    WakeUpsPerS,
    /// Microseconds of CPU time a second.
    CpuUsPerS,
    /// How many times the throughput of one.
    TimesOne,
    /// Requests a second.
    Iops,
}

impl Unit {
    /// The unit as it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Unit::NsPerOp => "ns/op",
            Unit::BytesEach => "bytes each",
            Unit::Mappings => "mappings",
            Unit::WakeUpsPerS => "wake-ups/s",
            Unit::CpuUsPerS => "cpu us/s",
            Unit::TimesOne => "x one",
            Unit::Iops => "IOPS",
        }
    }

    /// How much better we are; above 1 we are. `None` where it cannot be said.
    pub fn ratio(self, ours: f64, peer: f64) -> Option<f64> {
        let ratio = match self {
            Unit::TimesOne | Unit::Iops => ours / peer,
            _ => peer / ours,
        };
        ratio.is_finite().then_some(ratio)
    }
}

/// One work of `micro`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A coroutine is resumed and suspends.
    ResumeSuspend,
    /// A coroutine is created on a pooled stack, runs, and ends.
    CreateRunEnd,
    /// Coroutines that create and resume each other; the cost of one.
    Nesting,
    /// One of very many suspended coroutines: time to create it and run it to its suspension.
    SuspendedTime,
    /// The same: resident memory.
    SuspendedMemory,
    /// The same: mappings of the whole process.
    SuspendedMappings,
    /// A bottom half is scheduled and run, one a poll.
    BhLocal,
    /// The same, 64 a poll.
    BhLocalBatch,
    /// A bottom half is scheduled from another thread.
    BhRemote,
    /// A timer is armed for now and fires, one a poll.
    Timer,
    /// A coroutine wakes one of another context, one pair of them.
    WakeQd1,
    /// The same, 64 pairs.
    WakeQd64,
    /// An empty job goes to a worker thread and back, one at a time.
    WorkerQd1,
    /// The same as `WorkerQd1`, with all threads on one CPU.
    WorkerOneCpu,
    /// The same as `WorkerQd1`, while a stranger has one CPU.
    WorkerTaken,
    /// The same, 64 at a time.
    WorkerQd64,
    /// A read from the null driver through the whole stack, one at a time.
    NullQd1,
    /// The same, 64 at a time.
    NullQd64,
    /// As `NullQd1`, for a driver that suspends.
    NullAioQd1,
    /// As `NullQd64`, for a driver that suspends.
    NullAioQd64,
    /// As `NullQd64`, below eight `raw` nodes, one upon the other.
    ChainQd64,
    /// As `NullAioQd64`, below eight `raw` nodes.
    ChainAioQd64,
    /// A context with nothing to do.
    IdleWakeUps,
    /// The same: CPU time.
    IdleCpu,
    /// Null requests on two contexts against one.
    TwoContexts,
}

impl Work {
    /// All works of `micro`, in the order of its table.
    pub const ALL: [Work; 25] = [
        Work::ResumeSuspend,
        Work::CreateRunEnd,
        Work::Nesting,
        Work::SuspendedTime,
        Work::SuspendedMemory,
        Work::SuspendedMappings,
        Work::BhLocal,
        Work::BhLocalBatch,
        Work::BhRemote,
        Work::Timer,
        Work::WakeQd1,
        Work::WakeQd64,
        Work::WorkerQd1,
        Work::WorkerOneCpu,
        Work::WorkerTaken,
        Work::WorkerQd64,
        Work::NullQd1,
        Work::NullQd64,
        Work::NullAioQd1,
        Work::NullAioQd64,
        Work::ChainQd64,
        Work::ChainAioQd64,
        Work::IdleWakeUps,
        Work::IdleCpu,
        Work::TwoContexts,
    ];

    /// Its name, in tables, in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Work::ResumeSuspend => "resume+suspend",
            Work::CreateRunEnd => "create+run+end",
            Work::Nesting => "nesting 1000 deep",
            Work::SuspendedTime => "suspended: create",
            Work::SuspendedMemory => "suspended: memory",
            Work::SuspendedMappings => "suspended: mappings",
            Work::BhLocal => "bh local",
            Work::BhLocalBatch => "bh local x64",
            Work::BhRemote => "bh remote",
            Work::Timer => "timer arm+fire",
            Work::WakeQd1 => "wake across contexts QD1",
            Work::WakeQd64 => "wake across contexts QD64",
            Work::WorkerQd1 => "worker QD1",
            Work::WorkerOneCpu => "worker QD1, one CPU",
            Work::WorkerTaken => "worker QD1, one CPU taken",
            Work::WorkerQd64 => "worker QD64",
            Work::NullQd1 => "null QD1",
            Work::NullQd64 => "null QD64",
            Work::NullAioQd1 => "null-aio QD1",
            Work::NullAioQd64 => "null-aio QD64",
            Work::ChainQd64 => "null below 8 raw QD64",
            Work::ChainAioQd64 => "null-aio below 8 raw QD64",
            Work::IdleWakeUps => "idle: wake-ups",
            Work::IdleCpu => "idle: cpu",
            Work::TwoContexts => "two contexts",
        }
    }

    /// What it is measured in.
    pub fn unit(self) -> Unit {
        match self {
            Work::SuspendedMemory => Unit::BytesEach,
            Work::SuspendedMappings => Unit::Mappings,
            Work::IdleWakeUps => Unit::WakeUpsPerS,
            Work::IdleCpu => Unit::CpuUsPerS,
            Work::TwoContexts => Unit::TimesOne,
            _ => Unit::NsPerOp,
        }
    }

    /// Whether system calls are counted for it, in a child of its own.
    pub fn counts_syscalls(self) -> bool {
        self.unit() == Unit::NsPerOp && !matches!(self, Work::SuspendedTime | Work::WorkerTaken)
    }

    /// The work of that name.
    pub fn by_name(name: &str) -> Option<Work> {
        Work::ALL.into_iter().find(|work| work.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for work in Work::ALL {
            assert_eq!(Work::by_name(work.name()), Some(work));
        }
    }

    #[test]
    fn a_ratio_above_one_is_ours() {
        assert_eq!(Unit::NsPerOp.ratio(10.0, 100.0), Some(10.0));
        assert_eq!(Unit::Iops.ratio(100.0, 10.0), Some(10.0));
        assert_eq!(Unit::NsPerOp.ratio(0.0, 1.0), None);
    }
}
