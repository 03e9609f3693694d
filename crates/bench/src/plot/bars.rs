//! A bar for each ratio.

use std::fs;
use std::io;
use std::path::Path;

use super::{COLOURS, LogAxis, Svg, width_of};
use crate::report::Row;

/// How long the axis is.
const LENGTH: f64 = 560.0;
const TOP: f64 = 50.0;
const STEP: f64 = 20.0;

/// Draws the ratios of all rows that have any.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, rows: &[Row]) -> io::Result<()> {
    fs::write(path, draw(rows))
}

struct Bar<'a> {
    work: &'a str,
    peer: &'a str,
    ratio: f64,
    /// It is the ratio of CPU times.
    of_cpu: bool,
    goal: Option<f64>,
}

impl Bar<'_> {
    fn words(&self) -> String {
        // Two digits say little of a small one.
        let digits = if self.ratio < 0.1 { 3 } else { 2 };
        let what = if self.of_cpu { ", CPU time" } else { "" };
        format!("{:.digits$}x {}{what}", self.ratio, self.peer)
    }
}

/// A bar for each ratio, and one below it for the ratio of CPU times if there is one.
fn bars(rows: &[Row]) -> Vec<Bar<'_>> {
    let mut bars = Vec::new();
    for row in rows {
        for peer in &row.peers {
            let (work, name, goal) = (row.work.as_str(), peer.name.as_str(), peer.goal);
            for (ratio, of_cpu) in [(peer.ratio, false), (peer.cpu_ratio, true)] {
                bars.extend(ratio.map(|ratio| Bar { work, peer: name, ratio, of_cpu, goal }));
            }
        }
    }
    bars
}

fn draw(rows: &[Row]) -> String {
    let bars = bars(rows);
    let mut peers: Vec<&str> = bars.iter().map(|bar| bar.peer).collect();
    peers.sort_unstable();
    peers.dedup();
    let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
    let left = 20.0 + widest(&mut bars.iter().map(|bar| width_of(bar.work)));
    let right = left + LENGTH;
    let margin = 20.0 + widest(&mut bars.iter().map(|bar| width_of(&bar.words())));
    let bottom = TOP + STEP * bars.len() as f64;
    let mut svg = Svg::new(right + margin, bottom + 20.0);
    svg.text((left, 20.0), "start", "How many times better coblk is (logarithmic; 1 is equal)");
    let shown = bars.iter().flat_map(|bar| [Some(bar.ratio), bar.goal]).flatten();
    let axis = LogAxis::over(shown.chain([1.0]), left, right);
    for tick in axis.ticks() {
        let x = axis.place(tick);
        svg.line((x, TOP - 5.0), (x, bottom), "#dddddd");
        svg.text((x, TOP - 10.0), "middle", &format!("{tick}"));
    }
    let mut last = "";
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * index as f64;
        if bar.work != last {
            svg.line((10.0, y), (right + margin - 10.0, y), "#dddddd");
            svg.text((10.0, y + 14.0), "start", bar.work);
            last = bar.work;
        }
        let colour = peers.iter().position(|name| *name == bar.peer).unwrap_or(0) % COLOURS.len();
        draw_bar(&mut svg, &axis, bar, y, COLOURS[colour]);
    }
    svg.line((axis.place(1.0), TOP - 5.0), (axis.place(1.0), bottom), "#000000");
    svg.finish()
}

fn draw_bar(svg: &mut Svg, axis: &LogAxis, bar: &Bar<'_>, y: f64, colour: &str) {
    let (one, end) = (axis.place(1.0), axis.place(bar.ratio));
    // Level with the peer is seen too.
    let width = (end - one).abs().max(2.0);
    svg.bar((one.min(end), y + 3.0), (width, STEP - 6.0), colour, bar.of_cpu);
    let mut words_at = one.max(end) + 6.0;
    if let Some(goal) = bar.goal.map(|goal| axis.place(goal)) {
        svg.line((goal, y + 1.0), (goal, y + STEP - 1.0), "#000000");
        words_at = words_at.max(goal + 6.0);
    }
    svg.text((words_at, y + 14.0), "start", &bar.words());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Peer;
    use crate::works::Unit;

    fn row(peers: &[(&str, Option<f64>, Option<f64>)]) -> Row {
        let mut row = Row::new("null QD64", Unit::NsPerOp);
        row.peers = peers
            .iter()
            .map(|(name, ratio, cpu_ratio)| Peer {
                ratio: *ratio,
                cpu_ratio: *cpu_ratio,
                goal: cpu_ratio.map(|_| 1.5),
                ..Peer::new(*name, 1.0)
            })
            .collect();
        row
    }

    #[test]
    fn there_is_a_bar_for_each_ratio() {
        let svg =
            draw(&[row(&[("a", Some(12.0), None), ("b", Some(0.05), None), ("c", None, None)])]);
        assert_eq!(svg.matches("fill=\"#").count(), 2);
        assert!(svg.contains("12.00x a") && svg.contains("0.050x b"));
        assert!(draw(&[]).contains("</svg>"));
    }

    #[test]
    fn cpu_time_has_bars_of_its_own() {
        let svg = draw(&[row(&[("a", Some(3.0), Some(2.0))])]);
        assert_eq!(svg.matches("fill-opacity").count(), 1);
        assert!(svg.contains("3.00x a<") && svg.contains("2.00x a, CPU time"));
    }
}
