//! Latency over queue depth.

use std::fs;
use std::io;
use std::path::Path;

use super::{COLOURS, LogAxis, Svg};
use crate::report::time;

const LEFT: f64 = 80.0;
const RIGHT: f64 = 640.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 400.0;

/// Latencies at some depths.
#[derive(Clone, Debug)]
pub struct Curve {
    name: String,
    /// Queue depth, and nanoseconds.
    points: Vec<(usize, f64)>,
}

impl Curve {
    /// A curve without points.
    pub fn new(name: String) -> Curve {
        Curve { name, points: Vec::new() }
    }

    /// Adds a point; depths come in ascending order.
    pub fn push(&mut self, depth: usize, latency_ns: f64) {
        self.points.push((depth, latency_ns));
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
pub fn write(path: &Path, curves: &[Curve]) -> io::Result<()> {
    fs::write(path, draw(curves))
}

fn draw(curves: &[Curve]) -> String {
    let mut svg = Svg::new(RIGHT + 200.0, BOTTOM + 60.0);
    svg.text((LEFT, 20.0), "start", "Latency of O_DIRECT 4 KiB reads over queue depth");
    let mut depths: Vec<usize> =
        curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0)).collect();
    depths.sort_unstable();
    depths.dedup();
    let across = |depth: usize| {
        let index = depths.iter().position(|it| *it == depth).unwrap_or(0);
        LEFT + (RIGHT - LEFT) * index as f64 / (depths.len().max(2) - 1) as f64
    };
    let all = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let up = LogAxis::over(all, BOTTOM, TOP);
    for decade in up.decades() {
        svg.line((LEFT, up.place(decade)), (RIGHT, up.place(decade)), "#dddddd");
        svg.text((LEFT - 8.0, up.place(decade) + 4.0), "end", &time(decade));
    }
    for depth in &depths {
        svg.line((across(*depth), TOP), (across(*depth), BOTTOM), "#eeeeee");
        svg.text((across(*depth), BOTTOM + 18.0), "middle", &depth.to_string());
    }
    svg.text(((LEFT + RIGHT) / 2.0, BOTTOM + 40.0), "middle", "requests in flight");
    for (index, curve) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<(f64, f64)> =
            curve.points.iter().map(|(depth, ns)| (across(*depth), up.place(*ns))).collect();
        svg.curve(&points, colour, curve.name.starts_with("qemu"));
        let y = TOP + 20.0 * index as f64;
        svg.bar((RIGHT + 15.0, y - 9.0), (12.0, 12.0), colour);
        svg.text((RIGHT + 33.0, y + 2.0), "start", &curve.name);
    }
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_drawn() {
        let mut ours = Curve::new("threads p50".into());
        let mut theirs = Curve::new("qemu threads mean".into());
        assert!(ours.is_empty());
        for depth in [1, 2, 4] {
            ours.push(depth, 1000.0 * depth as f64);
            theirs.push(depth, 5000.0 * depth as f64);
        }
        let svg = draw(&[ours, theirs]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.contains("10 us"));
        assert!(draw(&[]).contains("</svg>"));
    }
}
