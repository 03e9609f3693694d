//! How a figure comes about: laps of a work and of its peers in turn, medians over the rounds.
//!
//! Machines drift. So a peer is never measured before or after us but between two of our laps, and
//! what is reported is the median of the rounds, for a ratio the median of the ratios of each
//! round.

use std::any::Any;
use std::io;
use std::time::{Duration, Instant};

use crate::report::{Peer, Row};
use crate::stats::{Percentiles, median, median_of_some, range};
use crate::works::Unit;
use crate::{alloc, sys};

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Laps of each contestant.
    pub rounds: usize,
    /// How long a lap should take.
    pub lap: Duration,
    /// How long a lap at a fixed rate takes.
    pub rate_lap: Duration,
    /// A short run: the figures need not be good.
    pub quick: bool,
}

impl Plan {
    /// The plan for `--quick` and `--rounds`.
    pub fn new(quick: bool, rounds: Option<usize>) -> Plan {
        if quick {
            let (lap, rate_lap) = (Duration::from_millis(4), Duration::from_millis(20));
            Plan { rounds: rounds.unwrap_or(1), lap, rate_lap, quick }
        } else {
            let (lap, rate_lap) = (Duration::from_millis(200), Duration::from_secs(1));
            Plan { rounds: rounds.unwrap_or(5), lap, rate_lap, quick }
        }
    }
}

/// One measured stretch of work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lap {
    /// Operations done.
    pub ops: u64,
    /// Time it took.
    pub wall_ns: f64,
    /// CPU time it took, of all threads, if known.
    pub cpu_ns: Option<f64>,
    /// Allocations of all threads, if known.
    pub allocs: Option<f64>,
    /// How long operations took, if known.
    pub latency: Option<Percentiles>,
}

impl Lap {
    fn value(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Iops => self.ops as f64 / self.wall_ns * 1e9,
            Unit::CpuUsPerS => self.cpu_ns.unwrap_or(f64::NAN) / self.wall_ns * 1e6,
            _ => self.wall_ns / self.ops as f64,
        }
    }

    fn per_op(&self, total: Option<f64>) -> Option<f64> {
        total.filter(|_| self.ops > 0).map(|total| total / self.ops as f64)
    }
}

/// Runs `work`, which does `ops` operations in this process, and measures it.
pub fn lap(ops: u64, work: impl FnOnce()) -> Lap {
    let (allocs, cpu_ns, start) = (alloc::allocations(), sys::process_cpu_ns(), Instant::now());
    work();
    Lap {
        ops,
        wall_ns: start.elapsed().as_nanos() as f64,
        cpu_ns: Some((sys::process_cpu_ns() - cpu_ns) as f64),
        allocs: Some((alloc::allocations() - allocs) as f64),
        latency: None,
    }
}

/// Runs a number of operations, or nearly as many, and measures them. What it has to set up it sets
/// up outside of the lap.
pub type Bench<'a> = Box<dyn FnMut(u64) -> io::Result<Lap> + 'a>;

/// A peer before it is measured.
struct Rival<'a> {
    name: String,
    goal: Option<f64>,
    bench: Bench<'a>,
}

impl Rival<'_> {
    fn figures(&self, unit: Unit, ours: &[Lap], laps: &[Lap]) -> Peer {
        let theirs: Vec<f64> = laps.iter().map(|lap| lap.value(unit)).collect();
        let rounds = || ours.iter().zip(laps);
        let ratio = |(ours, peer): (&Lap, &Lap)| unit.ratio(ours.value(unit), peer.value(unit));
        let cpu_ratio = |(ours, peer): (&Lap, &Lap)| {
            Unit::NsPerOp.ratio(ours.per_op(ours.cpu_ns)?, peer.per_op(peer.cpu_ns)?)
        };
        Peer {
            ratio: median_of_some(rounds().map(ratio)),
            cpu_ns_per_op: median_of_some(laps.iter().map(|lap| lap.per_op(lap.cpu_ns))),
            ratio_range: range(rounds().filter_map(ratio)),
            // CPU time is a figure of its own where there is a goal for it.
            cpu_ratio: self.goal.and_then(|_| median_of_some(rounds().map(cpu_ratio))),
            cpu_ratio_range: self.goal.and_then(|_| range(rounds().filter_map(cpu_ratio))),
            goal: self.goal,
            latency: Percentiles::medians(laps.iter().map(|lap| lap.latency)),
            ..Peer::new(self.name.clone(), median(&theirs).unwrap_or(f64::NAN))
        }
    }
}

/// A work, ours and the peers'.
pub struct Contest<'a> {
    name: String,
    unit: Unit,
    ours: Bench<'a>,
    peers: Vec<Rival<'a>>,
    missing: Vec<(String, &'static str)>,
    fixed_ops: Option<u64>,
    /// Each other round goes the other way round, and the row tells how far rounds differ.
    is_wary: bool,
    /// Kept until all laps are measured.
    scene: Vec<Box<dyn Any>>,
}

impl<'a> Contest<'a> {
    /// A contest without peers.
    pub fn new(
        name: impl Into<String>,
        unit: Unit,
        ours: impl FnMut(u64) -> io::Result<Lap> + 'a,
    ) -> Contest<'a> {
        Contest {
            name: name.into(),
            unit,
            ours: Box::new(ours),
            peers: Vec::new(),
            missing: Vec::new(),
            fixed_ops: None,
            is_wary: false,
            scene: Vec::new(),
        }
    }

    /// Adds a peer.
    pub fn peer(
        mut self,
        name: impl Into<String>,
        bench: impl FnMut(u64) -> io::Result<Lap> + 'a,
    ) -> Contest<'a> {
        self.peers.push(Rival { name: name.into(), goal: None, bench: Box::new(bench) });
        self
    }

    /// Adds a peer that we mean to beat so many times, in what is measured and in CPU time.
    pub fn peer_to_beat(
        mut self,
        name: impl Into<String>,
        goal: f64,
        bench: impl FnMut(u64) -> io::Result<Lap> + 'a,
    ) -> Contest<'a> {
        self.peers.push(Rival { name: name.into(), goal: Some(goal), bench: Box::new(bench) });
        self
    }

    /// Notes a peer that is not installed, and the Debian package that brings it.
    pub fn missing(mut self, name: impl Into<String>, package: &'static str) -> Contest<'a> {
        self.missing.push((name.into(), package));
        self
    }

    /// Every contestant does this many operations a lap, instead of as many as fill the time.
    pub fn ops(mut self, ops: u64) -> Contest<'a> {
        self.fixed_ops = Some(ops);
        self
    }

    /// For what varies from lap to lap by itself: each other round goes the other way round, and the row tells the
    /// smallest and the largest ratio of a round.
    pub fn wary(mut self) -> Contest<'a> {
        self.is_wary = true;
        self
    }

    /// All laps are measured while this is there: a stranger that has a CPU, say. It is dropped at the
    /// end.
    pub fn beside(mut self, scene: impl Any) -> Contest<'a> {
        self.scene.push(Box::new(scene));
        self
    }

    /// The work itself, once, without measuring it against anything.
    pub fn run_ours(mut self, ops: u64) -> io::Result<Lap> {
        (self.ours)(ops)
    }

    /// Measures all rounds. `step` is told of each lap that is done.
    ///
    /// # Errors
    /// If our own work fails. A peer that fails is noted in the row.
    pub fn run(mut self, plan: &Plan, mut step: impl FnMut()) -> io::Result<Row> {
        let ops = self.ops_of(plan, None)?;
        let mut notes = Vec::new();
        let mut peers = Vec::new();
        for index in 0..self.peers.len() {
            match self.ops_of(plan, Some(index)) {
                Ok(ops) => peers.push((index, ops, Vec::new())),
                Err(error) => notes.push(format!("{}: {error}", self.peers[index].name)),
            }
        }
        let mut ours = Vec::new();
        for round in 0..plan.rounds {
            let is_backwards = self.is_wary && round % 2 == 1;
            if !is_backwards {
                ours.push((self.ours)(ops)?);
                step();
            }
            let count = peers.len();
            for at in 0..count {
                let at = if is_backwards { count - 1 - at } else { at };
                let (index, ops, laps) = &mut peers[at];
                laps.push((self.peers[*index].bench)(*ops)?);
                step();
            }
            if is_backwards {
                ours.push((self.ours)(ops)?);
                step();
            }
        }
        let unit = self.unit;
        let values: Vec<f64> = ours.iter().map(|lap| lap.value(unit)).collect();
        let mut row = Row::new(self.name.clone(), unit);
        row.ours = median(&values);
        row.allocs_per_op = median_of_some(ours.iter().map(|lap| lap.per_op(lap.allocs)));
        row.cpu_ns_per_op = median_of_some(ours.iter().map(|lap| lap.per_op(lap.cpu_ns)));
        row.latency = Percentiles::medians(ours.iter().map(|lap| lap.latency));
        row.notes = notes;
        row.missing = self.missing;
        for (index, _, laps) in peers {
            row.peers.push(self.peers[index].figures(unit, &ours, &laps));
        }
        if self.is_wary {
            let ranges = row.peers.iter().filter_map(|peer| peer.range_in_words(plan.rounds));
            row.notes.extend(ranges.collect::<Vec<_>>());
        }
        drop(self.scene);
        Ok(row)
    }

    /// How many operations fill a lap, found by laps that grow. They also warm up caches and pools.
    fn ops_of(&mut self, plan: &Plan, peer: Option<usize>) -> io::Result<u64> {
        let fixed = self.fixed_ops;
        let bench = match peer {
            None => &mut self.ours,
            Some(index) => &mut self.peers[index].bench,
        };
        if let Some(ops) = fixed {
            bench((ops / 16).max(256).min(ops))?;
            return Ok(ops);
        }
        let wanted_ns = plan.lap.as_nanos() as f64;
        let mut ops = 64;
        loop {
            let lap = bench(ops)?;
            if lap.wall_ns >= wanted_ns / 8.0 || ops >= 1 << 32 {
                let per_op = (lap.wall_ns / lap.ops as f64).max(0.1);
                return Ok(((wanted_ns / per_op) as u64).max(1));
            }
            ops *= 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(ns_per_op: f64) -> impl FnMut(u64) -> io::Result<Lap> {
        move |ops| {
            let wall_ns = ns_per_op * ops as f64;
            Ok(Lap { ops, wall_ns, cpu_ns: Some(wall_ns), allocs: Some(0.0), latency: None })
        }
    }

    #[test]
    fn ours_and_peers_become_a_row() {
        let contest = Contest::new("work", Unit::NsPerOp, fake(10.0))
            .peer("slow", fake(50.0))
            .peer("broken", |_| Err(io::Error::other("no")))
            .missing("absent", "a-package");
        let row = contest.run(&Plan::new(true, Some(3)), || ()).unwrap();
        assert_eq!(row.ours, Some(10.0));
        assert_eq!((row.peers.len(), row.peers[0].ratio), (1, Some(5.0)));
        assert_eq!(row.notes, ["broken: no"]);
        assert_eq!(row.missing, [("absent".to_owned(), "a-package")]);
        assert_eq!((row.allocs_per_op, row.cpu_ns_per_op), (Some(0.0), Some(10.0)));
    }

    #[test]
    fn a_wary_contest_takes_turns_both_ways_and_tells_how_far_rounds_differ() {
        let order = std::cell::RefCell::new(String::new());
        let contestant = |name: char, ns: [f64; 3]| {
            let (order, mut laps) = (&order, 0);
            move |ops: u64| {
                order.borrow_mut().push(name);
                laps += 1;
                fake(ns[(laps + 1) % 3])(ops)
            }
        };
        // The first lap of each warms up.
        let ours = contestant('a', [10.0, 10.0, 20.0]);
        let contest = Contest::new("work", Unit::NsPerOp, ours)
            .peer_to_beat("b", 1.0, contestant('b', [10.0, 20.0, 20.0]))
            .peer("c", contestant('c', [10.0, 10.0, 10.0]));
        let row = contest.ops(1 << 20).wary().run(&Plan::new(true, Some(3)), || ()).unwrap();
        assert_eq!(order.borrow().as_str(), "abcabccbaabc");
        let [b, c] = &row.peers[..] else { panic!("{row:?}") };
        assert_eq!((b.ratio, b.ratio_range), (Some(1.0), Some((1.0, 2.0))));
        assert_eq!(b.cpu_ratio_range, Some((1.0, 2.0)));
        assert_eq!((c.ratio_range, c.cpu_ratio_range), (Some((0.5, 1.0)), None));
        let told = "b: ratios of 1.00 to 2.00 in 3 rounds, of CPU time 1.00 to 2.00";
        assert_eq!(row.notes, [told, "c: ratios of 0.50 to 1.00 in 3 rounds"]);
    }

    #[test]
    fn requests_a_second_are_the_inverse() {
        let contest = Contest::new("work", Unit::Iops, fake(1000.0)).peer("slow", fake(2000.0));
        let row = contest.ops(100).run(&Plan::new(true, None), || ()).unwrap();
        assert_eq!(row.ours, Some(1e6));
        assert_eq!(row.peers[0].ratio, Some(2.0));
    }

    #[test]
    fn a_goal_is_one_for_cpu_time_too() {
        let busy = |ops: u64| {
            let wall_ns = 1500.0 * ops as f64;
            Ok(Lap { ops, wall_ns, cpu_ns: Some(3.0 * wall_ns), allocs: None, latency: None })
        };
        let contest = Contest::new("work", Unit::Iops, fake(1000.0)).peer("plain", busy);
        let contest = contest.peer_to_beat("rival", 2.0, busy).ops(100);
        let row = contest.run(&Plan::new(true, Some(3)), || ()).unwrap();
        let [plain, rival] = &row.peers[..] else { panic!("{row:?}") };
        assert_eq!((plain.cpu_ratio, plain.goal, plain.is_met()), (None, None, None));
        assert_eq!((rival.ratio, rival.cpu_ratio), (Some(1.5), Some(4.5)));
        assert_eq!((rival.goal, rival.is_met()), (Some(2.0), Some(false)));
    }

    #[test]
    fn a_lap_counts_allocations() {
        let lap = lap(1, || drop(std::hint::black_box(vec![0u8; 10])));
        assert!(lap.allocs >= Some(1.0));
    }
}
