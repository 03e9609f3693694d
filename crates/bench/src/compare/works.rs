//! The rows of `compare`.

use crate::engine::Engine;

/// How a file is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads of what the page cache has.
    Cached,
    /// The same, but every request goes to the engine: none is answered in place.
    CachedByEngine,
    /// O_DIRECT reads.
    DirectRead,
    /// O_DIRECT writes.
    DirectWrite,
}

impl Access {
    /// Whether it bypasses the page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, Access::DirectRead | Access::DirectWrite)
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        self == Access::DirectWrite
    }
}

/// One row of `compare`. Each is named once, by [`Work::name`], and keeps its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Null requests.
    Null,
    /// Null requests through a virtqueue.
    VirtioNull,
    /// Cached reads through a virtqueue.
    VirtioCached(Engine),
    /// Requests to an image, so many at a time.
    File(Access, Engine, usize),
    /// Reads by workers, one at a time, while a stranger has one CPU.
    WorkerTaken,
}

/// Requests in flight where a row does not say otherwise.
pub const DEPTH: usize = 64;

impl Work {
    /// What [`Work::WorkerTaken`] is without the stranger.
    pub const BY_WORKERS: Work = Work::File(Access::CachedByEngine, Engine::Threads, 1);

    /// All rows, in their order.
    pub fn all() -> Vec<Work> {
        let mut works = vec![Work::Null, Work::VirtioNull];
        let accesses =
            [Access::Cached, Access::CachedByEngine, Access::DirectRead, Access::DirectWrite];
        for access in accesses {
            for engine in Engine::ALL {
                works.extend([1, DEPTH].map(|depth| Work::File(access, engine, depth)));
            }
        }
        works.push(Work::WorkerTaken);
        works.push(Work::VirtioCached(Engine::Threads));
        works.push(Work::VirtioCached(Engine::IoUring));
        works
    }

    /// Requests in flight.
    pub fn depth(self) -> usize {
        match self {
            Work::File(_, _, depth) => depth,
            Work::WorkerTaken => 1,
            _ => DEPTH,
        }
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Work::Null => format!("null QD{DEPTH}"),
            Work::WorkerTaken => format!("{}, one CPU taken", Work::BY_WORKERS.name()),
            Work::VirtioNull => format!("virtio null QD{DEPTH}"),
            Work::VirtioCached(engine) => {
                format!("virtio page cache {} QD{DEPTH}", engine.name())
            }
            Work::File(access, engine, depth) => {
                let engine = engine.name();
                match access {
                    Access::Cached => format!("page cache {engine} QD{depth}"),
                    Access::CachedByEngine => {
                        format!("page cache {engine} not in place QD{depth}")
                    }
                    Access::DirectRead => format!("O_DIRECT {engine} read QD{depth}"),
                    Access::DirectWrite => format!("O_DIRECT {engine} write QD{depth}"),
                }
            }
        }
    }

    /// The engine it needs.
    pub fn engine(self) -> Option<Engine> {
        match self {
            Work::Null | Work::VirtioNull => None,
            Work::VirtioCached(engine) | Work::File(_, engine, _) => Some(engine),
            Work::WorkerTaken => Some(Engine::Threads),
        }
    }

    /// Requests a lap: enough for a second or less on each side.
    pub fn ops(self) -> u64 {
        match self {
            Work::Null | Work::VirtioNull => 2_000_000,
            Work::VirtioCached(_) => 100_000,
            Work::File(access, _, 1) if access.is_direct() => 3_000,
            Work::File(access, _, _) if access.is_direct() => 20_000,
            Work::File(_, _, 1) | Work::WorkerTaken => 20_000,
            Work::File(..) => 60_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_stay() {
        let mut names: Vec<String> = Work::all().into_iter().map(Work::name).collect();
        for name in [
            "null QD64",
            "virtio null QD64",
            "page cache threads QD1",
            "page cache io_uring not in place QD64",
            "page cache threads not in place QD1, one CPU taken",
            "O_DIRECT io_uring write QD64",
            "virtio page cache threads QD64",
        ] {
            assert!(names.iter().any(|it| it == name), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Work::all().len());
    }
}
