//! [`Peer`]: what we are compared with.

use crate::stats::Percentiles;

/// A peer's figures for a work.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its figure, in the row's unit.
    pub value: f64,
    /// Above 1, we are better.
    pub ratio: Option<f64>,
    /// The smallest and the largest of a round.
    pub ratio_range: Option<(f64, f64)>,
    /// Its CPU time.
    pub cpu_ns_per_op: Option<f64>,
    /// The ratio of the CPU times, where that is a figure of its own. Above 1, we are better.
    pub cpu_ratio: Option<f64>,
    /// The smallest and the largest of a round.
    pub cpu_ratio_range: Option<(f64, f64)>,
    /// What both ratios are meant to be at least.
    pub goal: Option<f64>,
    /// How long its requests took.
    pub latency: Option<Percentiles>,
}

impl Peer {
    /// A peer of which only its figure is known.
    pub fn new(name: impl Into<String>, value: f64) -> Peer {
        Peer {
            name: name.into(),
            value,
            ratio: None,
            ratio_range: None,
            cpu_ns_per_op: None,
            cpu_ratio: None,
            cpu_ratio_range: None,
            goal: None,
            latency: None,
        }
    }

    /// How far its rounds differ.
    pub fn range_in_words(&self, rounds: usize) -> Option<String> {
        let (least, most) = self.ratio_range?;
        let name = &self.name;
        let cpu = self.cpu_ratio_range.map_or(String::new(), |(least, most)| {
            format!(", of CPU time {least:.2} to {most:.2}") //
        });
        Some(format!("{name}: ratios of {least:.2} to {most:.2} in {rounds} rounds{cpu}"))
    }

    /// Whether the goal is met, if there is one.
    pub fn is_met(&self) -> Option<bool> {
        let goal = self.goal?;
        Some([self.ratio, self.cpu_ratio].iter().all(|ratio| ratio.is_some_and(|it| it >= goal)))
    }
}
