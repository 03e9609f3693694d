//! Curves over one axis: queue depths, or rates.

use std::fs;
use std::io;
use std::path::Path;

use super::{COLOURS, LogAxis, Stroke, Svg, short, width_of};

const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 400.0;

/// What a picture is of.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it.
    pub across: &'a str,
    /// How values are written.
    pub value: fn(f64) -> String,
}

/// Values at some places.
#[derive(Clone, Debug)]
pub struct Curve {
    name: String,
    colour: usize,
    stroke: Stroke,
    points: Vec<(u64, f64)>,
}

impl Curve {
    /// A curve without points. Those that belong together have one colour, by its number.
    pub fn new(name: String, colour: usize, stroke: Stroke) -> Curve {
        Curve { name, colour, stroke, points: Vec::new() }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a point; places come in ascending order.
    pub fn push(&mut self, place: u64, value: f64) {
        self.points.push((place, value));
    }

    /// Whether it has no points.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

/// Draws all curves into one picture.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, axes: &Axes<'_>, curves: &[Curve]) -> io::Result<()> {
    fs::write(path, draw(axes, curves))
}

pub(super) fn draw(axes: &Axes<'_>, curves: &[Curve]) -> String {
    let names = curves.iter().map(|curve| width_of(&curve.name)).fold(0.0, f64::max);
    let mut svg = Svg::new(RIGHT + 70.0 + names, BOTTOM + 60.0);
    svg.text((LEFT, 20.0), "start", axes.title);
    let mut places: Vec<u64> =
        curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0)).collect();
    places.sort_unstable();
    places.dedup();
    let across = |place: u64| {
        let index = places.iter().position(|it| *it == place).unwrap_or(0);
        LEFT + (RIGHT - LEFT) * index as f64 / (places.len().max(2) - 1) as f64
    };
    let all = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let up = LogAxis::over(all, BOTTOM, TOP);
    for tick in up.ticks() {
        svg.line((LEFT, up.place(tick)), (RIGHT, up.place(tick)), "#dddddd");
        svg.text((LEFT - 8.0, up.place(tick) + 4.0), "end", &(axes.value)(tick));
    }
    for place in &places {
        svg.line((across(*place), TOP), (across(*place), BOTTOM), "#eeeeee");
        svg.text((across(*place), BOTTOM + 18.0), "middle", &short(*place as f64));
    }
    svg.text(((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), "middle", axes.across);
    for (index, curve) in curves.iter().enumerate() {
        let colour = COLOURS[curve.colour % COLOURS.len()];
        let points: Vec<(f64, f64)> =
            curve.points.iter().map(|(place, value)| (across(*place), up.place(*value))).collect();
        svg.curve(&points, colour, curve.stroke);
        let y = TOP + 20.0 * index as f64;
        svg.curve(&[(RIGHT + 15.0, y), (RIGHT + 45.0, y)], colour, curve.stroke);
        svg.text((RIGHT + 53.0, y + 4.0), "start", &curve.name);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::time;

    #[test]
    fn every_curve_is_drawn() {
        let mut ours = Curve::new("threads mean".into(), 0, Stroke::Solid);
        let mut theirs = Curve::new("qemu threads mean".into(), 1, Stroke::Dashed);
        assert!(ours.is_empty());
        for depth in [1, 2, 4] {
            ours.push(depth, 1000.0 * depth as f64);
            theirs.push(depth, 5000.0 * depth as f64);
        }
        let axes = Axes { title: "reads", across: "requests in flight", value: time };
        let svg = draw(&axes, &[ours, theirs]);
        // Each is drawn again beside its name.
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert_eq!(svg.matches("stroke-dasharray").count(), 2);
        assert!(svg.contains("10 us") && svg.contains(">reads<"));
        assert!(draw(&axes, &[]).contains("</svg>"));
    }
}
