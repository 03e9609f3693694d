//! The few statistics that a median of rounds needs.

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
    fn rounds_by_size() {
        assert_eq!(rounded(1234.567), 1234.6);
        assert_eq!(rounded(12.3456), 12.35);
        assert_eq!(rounded(0.000_012_3), 0.0);
        assert_eq!(rounded(0.015_63), 0.0156);
    }
}
