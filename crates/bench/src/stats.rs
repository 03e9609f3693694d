//! The few statistics that a median of rounds needs.

use hdrhistogram::Histogram;

/// The middle of the values, the mean of the two in the middle if their number is even. `None` of
/// none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// [`median`] of what is there; `None` if nothing is.
pub fn median_of_some(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    median(&values.flatten().collect::<Vec<_>>())
}

/// The smallest and the largest; `None` if there is nothing.
pub fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (least, most) = range.unwrap_or((value, value));
        Some((f64::min(least, value), f64::max(most, value)))
    })
}

/// How long requests took: half of them, all but 1 in 100, all but 1 in 1000, and all, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    pub p50_ns: f64,
    pub p99_ns: f64,
    pub p999_ns: f64,
    pub max_ns: f64,
}

impl Percentiles {
    /// Those of a histogram; none of an empty one.
    pub fn of(latencies: &Histogram<u64>) -> Option<Percentiles> {
        let at = |quantile| latencies.value_at_quantile(quantile) as f64;
        let all = Percentiles {
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: latencies.max() as f64,
        };
        (!latencies.is_empty()).then_some(all)
    }

    /// The median of each, of those that are there; of the longest, the longest: one stall in all rounds
    /// is one too many.
    pub fn medians(
        rounds: impl Iterator<Item = Option<Percentiles>> + Clone,
    ) -> Option<Percentiles> {
        let of = |part: fn(Percentiles) -> f64| {
            median_of_some(rounds.clone().map(|round| round.map(part)))
        };
        Some(Percentiles {
            p50_ns: of(|it| it.p50_ns)?,
            p99_ns: of(|it| it.p99_ns)?,
            p999_ns: of(|it| it.p999_ns)?,
            max_ns: rounds.flatten().map(|it| it.max_ns).fold(0.0, f64::max),
        })
    }

    /// Each with the name it has in JSON.
    pub fn named(self) -> [(&'static str, f64); 4] {
        let Percentiles { p50_ns, p99_ns, p999_ns, max_ns } = self;
        [("p50_ns", p50_ns), ("p99_ns", p99_ns), ("p999_ns", p999_ns), ("max_ns", max_ns)]
    }
}

/// Cut to three significant digits after the point or so, for people and for short JSON.
pub fn rounded(value: f64) -> f64 {
    let scale = if value.abs() >= 100.0 {
        10.0
    } else if value.abs() >= 1.0 {
        100.0
    } else {
        10_000.0
    };
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median_of_some([None, Some(1.0), None].into_iter()), Some(1.0));
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut latencies = crate::workload::new_histogram();
        assert_eq!(Percentiles::of(&latencies), None);
        // 1 to 2000, each once; the histogram keeps three digits, all of these.
        (1..=2000).for_each(|ns| latencies.record(ns).unwrap());
        let all = Percentiles { p50_ns: 1000.0, p99_ns: 1980.0, p999_ns: 1998.0, max_ns: 2000.0 };
        assert_eq!(Percentiles::of(&latencies), Some(all));
        let times = |factor: f64| {
            let [p50_ns, p99_ns, p999_ns, max_ns] = all.named().map(|(_, ns)| ns * factor);
            Some(Percentiles { p50_ns, p99_ns, p999_ns, max_ns })
        };
        let rounds = [times(3.0), None, times(1.0), times(9.0)];
        let medians = Percentiles { max_ns: 18_000.0, ..times(3.0).unwrap() };
        assert_eq!(Percentiles::medians(rounds.into_iter()), Some(medians));
        assert_eq!(Percentiles::medians([None].into_iter()), None);
    }

    #[test]
    fn rounds_by_size() {
        assert_eq!(rounded(1234.567), 1234.6);
        assert_eq!(rounded(12.3456), 12.35);
        assert_eq!(rounded(0.000_012_3), 0.0);
        assert_eq!(rounded(0.015_63), 0.0156);
    }
}
