//! Pictures of the results, as SVG written by hand: a few lines, bars and words need no library.

pub mod bars;
pub mod curve;
pub mod results;

use std::fmt::Write;

/// Colours that are told apart, also by readers who do not see all of them.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999"];

/// A picture that grows element by element.
struct Svg {
    width: f64,
    height: f64,
    elements: String,
}

impl Svg {
    fn new(width: f64, height: f64) -> Svg {
        Svg { width, height, elements: String::new() }
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"/>"#
        ));
    }

    /// A bar, or a pale one.
    fn bar(&mut self, corner: (f64, f64), size: (f64, f64), colour: &str, pale: bool) {
        let ((x, y), (width, height)) = (corner, size);
        let pale = if pale { r#" fill-opacity="0.4""# } else { "" };
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"{pale}/>"#
        ));
    }

    fn curve(&mut self, points: &[(f64, f64)], colour: &str, stroke: Stroke) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dash = match stroke {
            Stroke::Solid => "",
            Stroke::Dashed => r#" stroke-dasharray="7 4""#,
            Stroke::Dotted => r#" stroke-dasharray="2 3""#,
        };
        self.add(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#,
            points.join(" ")
        ));
    }

    /// `anchor` is start, middle or end.
    fn text(&mut self, at: (f64, f64), anchor: &str, words: &str) {
        let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let (x, y) = at;
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#
        ));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.elements, "{element}");
    }

    fn finish(self) -> String {
        let Svg { width, height, elements } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{elements}</svg>\n"
        )
    }
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// What counts.
    Solid,
    /// The same of another program.
    Dashed,
    /// What comes with it.
    Dotted,
}

/// How wide some words are, more or less: fonts differ.
fn width_of(words: &str) -> f64 {
    7.0 * words.chars().count() as f64
}

/// A number in few letters: `10 k` for 10,000.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        1e6.. => (value / 1e6, " M"),
        1e3.. => (value / 1e3, " k"),
        _ => (value, ""),
    };
    format!("{}{unit}", (value * 100.0).round() / 100.0)
}

/// A logarithmic axis: values to places.
#[derive(Clone, Copy, Debug)]
struct LogAxis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl LogAxis {
    /// From place `from` to place `to`, from one of [`LogAxis::ticks`] to another, with all `values`
    /// between them.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> LogAxis {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high == 0.0 {
            (low, high) = (1.0, 10.0);
        }
        let steps = steps(low, high);
        let at_most = steps.iter().rev().find(|step| **step <= low * 1.000_001);
        let low = at_most.copied().unwrap_or(low);
        let at_least = steps.iter().find(|step| **step >= high * 0.999_999 && **step > low);
        LogAxis { low, high: at_least.copied().unwrap_or(high), from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value / self.low).log10() / (self.high / self.low).log10();
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Where it is marked: 1, 2 and 5 of each decade, or 1 alone if those are many.
    fn ticks(&self) -> Vec<f64> {
        let mut ticks = steps(self.low, self.high);
        ticks.retain(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001);
        if ticks.len() > 10 {
            ticks.retain(|tick| (tick.log10() - tick.log10().round()).abs() < 0.001);
        }
        ticks
    }
}

/// 1, 2 and 5 of each decade, from below `low` to above `high`.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (first..=last).flat_map(|decade| [1.0, 2.0, 5.0].map(|it| it * 10f64.powi(decade))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_is_no_longer_than_it_must_be() {
        let axis = LogAxis::over([0.6, 30.0].into_iter(), 0.0, 200.0);
        assert_eq!((axis.low, axis.high), (0.5, 50.0));
        assert_eq!(axis.ticks(), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert!((axis.place(5.0) - 100.0).abs() < 1e-6);
        assert_eq!(axis.place(0.000_1), 0.0);
        let long = LogAxis::over([2.0, 200_000.0].into_iter(), 0.0, 1.0);
        assert_eq!(long.ticks(), [10.0, 100.0, 1e3, 1e4, 1e5]);
        assert!(LogAxis::over(std::iter::empty(), 0.0, 1.0).high > 1.0);
        assert_eq!(LogAxis::over([1.0].into_iter(), 0.0, 1.0).ticks(), [1.0, 2.0]);
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.5, 32.0, 1500.0, 100_000.0, 2e6].map(short);
        assert_eq!(all, ["0", "0.5", "32", "1.5 k", "100 k", "2 M"]);
    }

    #[test]
    fn words_are_escaped() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text((0.0, 0.0), "start", "a < b & c");
        let text = svg.finish();
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(text.contains("a &lt; b &amp; c"));
    }
}
