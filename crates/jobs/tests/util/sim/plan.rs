//! [`Plan`]: what one run is to show.

use fastrand::Rng;

/// The text of a panic that was ordered.
pub const PANIC: &str = "as the plan says";

/// How many requests a sweep goes over: the seeds that follow each other meet one request after the other.
const SWEEP: u64 = 97;

/// What becomes of one request to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It fails, and has done nothing.
    Errno(i32),
    /// It fails, and has done half of it.
    Short,
    /// It waits, until it is released.
    Hang,
    /// Its driver panics.
    Panic,
}

/// What a user does while that request is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    None,
    Pause,
    /// A cancellation by force.
    Cancel,
    /// One that is not.
    CancelSoftly,
    Complete,
    Speed,
    /// Drains of one disk, or of all.
    Drain(Option<usize>),
    /// What only this kind of job knows.
    Other,
    /// The end of all jobs.
    Quit,
    /// The end of all contexts, with what is under way there.
    Unwind,
}

/// How a job ends if neither the fault nor the command ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    CancelSoftly,
    Cancel,
}

/// What a seed says.
#[derive(Clone, Debug)]
pub struct Plan {
    pub contexts: usize,
    /// Which request meets the fault, of all after the job's start.
    pub at: u64,
    /// That fault, and how many requests of that disk meet it.
    pub fault: (Fault, u64),
    pub command: Command,
    pub ending: Ending,
    pub auto_finalize: bool,
    /// Time between two looks at all contexts, in nanoseconds.
    pub tick_ns: i64,
}

impl Plan {
    pub fn new(seed: u64, rng: &mut Rng) -> Plan {
        let errno = Fault::Errno([libc::EIO, libc::ENOSPC][rng.usize(..2)]);
        let faults = [Fault::None, errno, errno, Fault::Short, Fault::Hang, Fault::Panic];
        let disk = Some(rng.usize(..3)).filter(|disk| *disk < 2);
        let commands = [
            Command::None,
            Command::Pause,
            Command::Cancel,
            Command::CancelSoftly,
            Command::Complete,
            Command::Speed,
            Command::Drain(disk),
            Command::Drain(disk),
            Command::Other,
            Command::Quit,
            Command::Unwind,
        ];
        let endings = [Ending::Complete, Ending::Complete, Ending::CancelSoftly, Ending::Cancel];
        Plan {
            contexts: 2 + rng.usize(..2),
            at: seed % SWEEP,
            fault: (faults[rng.usize(..faults.len())], [1, 1, 3][rng.usize(..3)]),
            command: commands[rng.usize(..commands.len())],
            ending: endings[rng.usize(..endings.len())],
            auto_finalize: rng.bool(),
            tick_ns: [5_000, 20_000, 100_000][rng.usize(..3)],
        }
    }
}
