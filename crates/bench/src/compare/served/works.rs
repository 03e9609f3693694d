//! The rows of `compare nbd` and `compare vhost-user`.

use crate::fio;
use crate::floors::Wait;
use crate::peers::programs::{Program, Protocol};
use crate::report::At;
use crate::workload::{Job, Pattern, ReadWrite};
use crate::works::Unit;

/// Length of small requests.
const SMALL_BYTES: usize = 4096;
/// Length of large requests, and how many are in flight: enough that neither side waits for the
/// other's copy.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_DEPTH: usize = 4;
/// How many small requests are in flight.
const DEPTHS: [usize; 2] = [1, 32];
/// How many are on each of several connections.
const THREADS_DEPTH: usize = 32;
/// How many are for the curve of latencies or of throughput.
pub const CURVE_DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Requests a second of an open loop, and how many may be in flight.
const RATES: [u64; 4] = [0, 1000, 10_000, 100_000];
const RATE_DEPTH: usize = 32;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A null device: what the server itself costs.
    Null,
    /// A file that is in the page cache.
    Cached,
}

/// What is different in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// The queue is packed.
    Packed,
    /// The server marks what it writes to the client's memory, as while a guest moves.
    Logged,
}

impl Special {
    fn words(self) -> &'static str {
        match self {
            Special::Packed => ", packed",
            Special::Logged => ", dirty log",
        }
    }
}

/// One row. Each keeps its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// How clients talk to the server.
    pub protocol: Protocol,
    /// What it serves.
    pub device: Device,
    /// What clients do.
    pub kind: ReadWrite,
    /// Length of a request.
    pub block_bytes: usize,
    /// Requests in flight on each queue.
    pub depth: usize,
    /// Queues, or connections, each with a thread of the client, and of NBD with one of the server.
    pub queues: usize,
    /// Requests a second of an open loop; without, each is made when another is done.
    pub per_s: Option<u64>,
    /// A stranger has one of the servers' CPUs.
    pub taken: bool,
    /// What is different from our own server as it is otherwise, which is then beside it.
    pub special: Option<Special>,
}

impl Work {
    /// All rows of a protocol, in their order.
    pub fn all(protocol: Protocol) -> Vec<Work> {
        let mut works = Vec::new();
        let queues: &[usize] = if protocol == Protocol::Nbd { &[1] } else { &[1, 2] };
        for device in [Device::Null, Device::Cached] {
            for kind in [ReadWrite::RandRead, ReadWrite::RandWrite] {
                for queues in queues.iter().copied() {
                    works.extend(DEPTHS.map(|depth| {
                        let work = Work::plain(protocol, device, kind);
                        Work { depth, queues, ..work }
                    }));
                }
            }
            if protocol == Protocol::Nbd {
                works.push(Work {
                    depth: THREADS_DEPTH,
                    queues: 2,
                    ..Work::plain(protocol, device, ReadWrite::RandRead)
                });
                works.extend([ReadWrite::Read, ReadWrite::Write].map(|kind| {
                    let (block_bytes, depth) = (LARGE_BYTES, LARGE_DEPTH);
                    Work { block_bytes, depth, ..Work::plain(protocol, device, kind) }
                }));
            }
        }
        let beside_a_stranger = [
            (Device::Null, ReadWrite::RandRead),
            (Device::Cached, ReadWrite::RandRead),
            (Device::Cached, ReadWrite::RandWrite),
        ];
        works.extend(beside_a_stranger.map(|(device, kind)| {
            Work { taken: true, ..Work::plain(protocol, device, kind) } //
        }));
        if protocol == Protocol::VhostUser {
            works.extend([ReadWrite::RandRead, ReadWrite::RandWrite].map(|kind| {
                let plain = Work::plain(protocol, Device::Null, kind);
                Work { special: Some(Special::Logged), depth: THREADS_DEPTH, ..plain }
            }));
        }
        works.extend(Work::at_rates(protocol));
        if protocol == Protocol::VhostUser {
            let plain = Work::plain(protocol, Device::Null, ReadWrite::RandRead);
            let special = Some(Special::Packed);
            works.push(Work { depth: THREADS_DEPTH, special, ..plain });
        }
        works
    }

    /// Reads of nothing, over all depths and rates, and beside a stranger.
    pub fn of_curves(protocol: Protocol) -> Vec<Work> {
        let plain = Work::plain(protocol, Device::Null, ReadWrite::RandRead);
        let depths = CURVE_DEPTHS.map(|depth| Work { depth, ..plain });
        let taken = [Work { taken: true, ..plain }];
        depths.into_iter().chain(Work::at_rates(protocol)).chain(taken).collect()
    }

    fn at_rates(protocol: Protocol) -> [Work; RATES.len()] {
        let plain = Work::plain(protocol, Device::Null, ReadWrite::RandRead);
        RATES.map(|rate| Work { per_s: Some(rate), depth: RATE_DEPTH, ..plain })
    }

    /// Small requests, one at a time.
    pub fn plain(protocol: Protocol, device: Device, kind: ReadWrite) -> Work {
        let (block_bytes, depth, queues) = (SMALL_BYTES, 1, 1);
        let (per_s, taken, special) = (None, false, None);
        Work { protocol, device, kind, block_bytes, depth, queues, per_s, taken, special }
    }

    /// Its name.
    pub fn name(&self) -> String {
        let device = match self.device {
            Device::Null => "null",
            Device::Cached => "page cache",
        };
        let (protocol, kind, depth) = (self.protocol.name(), self.kind.name(), self.depth);
        let size = fio::size_word(self.block_bytes as u64);
        let queues = if self.queues > 1 { format!(" x{}", self.queues) } else { String::new() };
        let taken = if self.taken { ", one CPU taken" } else { "" };
        let special = self.special.map_or("", Special::words);
        match self.per_s {
            None => format!("{protocol} {device} {kind} {size} QD{depth}{queues}{taken}{special}"),
            Some(0) => format!("{protocol} {device} {kind} {size} at 0/s"),
            Some(rate) => format!("{protocol} {device} {kind} {size} at {}k/s", rate / 1000),
        }
    }

    /// What is measured: throughput, or CPU time at a given one.
    pub fn unit(&self) -> Unit {
        if self.per_s.is_some() { Unit::CpuUsPerS } else { Unit::Iops }
    }

    /// Where it lies among works that differ in that alone.
    pub fn at(&self) -> At {
        self.per_s.map_or(At::Depth(self.depth), At::Rate)
    }

    /// What a client does.
    pub fn job(&self) -> Job {
        Job {
            pattern: Pattern { kind: self.kind, read_percent: 100 },
            block_bytes: self.block_bytes,
            depth: self.depth,
            range_bytes: u64::MAX,
            step_bytes: 0,
            latency: false,
            seed: 1,
        }
    }

    /// Whether several threads of an NBD server are measured.
    pub fn is_threaded(&self) -> bool {
        self.protocol == Protocol::Nbd && self.queues > 1
    }

    /// The others, and how many times ours should be as good; then the floors.
    pub fn peers(&self) -> Vec<(Program, Option<f64>)> {
        if self.special.is_some() {
            return Vec::new();
        }
        if self.is_threaded() {
            return vec![(Program::QemuStorageDaemon, Some(5.0)), (Program::Nbdkit, None)];
        }
        let others: &[(Program, f64)] = match self.protocol {
            Protocol::Nbd => &[(Program::QemuStorageDaemon, 1.5), (Program::Nbdkit, 1.0)],
            Protocol::VhostUser => &[(Program::QemuStorageDaemon, 2.0)],
        };
        // Goals are for what a server does when it has its CPU, and all there is to do.
        let has_goal = self.per_s.is_none() && !self.taken;
        let others = others.iter().map(|(peer, goal)| (peer.clone(), has_goal.then_some(*goal)));
        let floors = Wait::ALL.map(|wait| (Program::Bare(self.protocol, wait), None));
        others.chain(floors).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_stay() {
        let protocols = [Protocol::Nbd, Protocol::VhostUser];
        let works: Vec<Work> = protocols.into_iter().flat_map(Work::all).collect();
        let mut names: Vec<String> = works.iter().map(Work::name).collect();
        for name in [
            "nbd null randread 4k QD1",
            "nbd page cache randwrite 4k QD32",
            "nbd page cache write 1m QD4",
            "nbd null randread 4k QD32 x2",
            "vhost-user null randwrite 4k QD32",
            "vhost-user page cache randread 4k QD1 x2",
            "nbd null randread 4k QD1, one CPU taken",
            "vhost-user page cache randwrite 4k QD1, one CPU taken",
            "vhost-user null randread 4k QD32, dirty log",
            "vhost-user null randread 4k at 0/s",
            "nbd null randread 4k at 100k/s",
            "vhost-user null randread 4k QD32, packed",
        ] {
            assert!(names.iter().any(|it| it == name), "{name}: {names:?}");
        }
        assert_eq!(names.len(), 14 + 16 + 2 * 7 + 3);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), works.len());
    }
}
