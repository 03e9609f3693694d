//! A bar for each ratio.

use std::fs;
use std::io;
use std::path::Path;

use super::{COLOURS, LogAxis, Svg};
use crate::report::Row;

const LEFT: f64 = 330.0;
const RIGHT: f64 = 900.0;
const TOP: f64 = 50.0;
const STEP: f64 = 20.0;

/// Draws the ratios of all rows that have any.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, rows: &[Row]) -> io::Result<()> {
    fs::write(path, draw(rows))
}

fn draw(rows: &[Row]) -> String {
    let bars: Vec<(&Row, &str, f64)> = rows
        .iter()
        .flat_map(|row| row.peers.iter().map(move |peer| (row, peer)))
        .filter_map(|(row, peer)| Some((row, peer.name.as_str(), peer.ratio?)))
        .collect();
    let mut peers: Vec<&str> = bars.iter().map(|(_, peer, _)| *peer).collect();
    peers.sort_unstable();
    peers.dedup();
    let bottom = TOP + STEP * bars.len() as f64;
    let mut svg = Svg::new(RIGHT + 80.0, bottom + 40.0);
    svg.text((LEFT, 20.0), "start", "How many times better coblk is (logarithmic; 1 is equal)");
    let axis = LogAxis::over(bars.iter().map(|bar| bar.2).chain([1.0]), LEFT, RIGHT);
    for decade in axis.decades() {
        let x = axis.place(decade);
        svg.line((x, TOP - 5.0), (x, bottom), "#dddddd");
        svg.text((x, TOP - 10.0), "middle", &format!("{decade}"));
    }
    let mut last = "";
    for (index, (row, peer, ratio)) in bars.iter().enumerate() {
        let y = TOP + STEP * index as f64;
        if row.work != last {
            svg.text((10.0, y + 13.0), "start", &row.work);
            last = &row.work;
        }
        let colour = peers.iter().position(|name| name == peer).unwrap_or(0) % COLOURS.len();
        let (one, end) = (axis.place(1.0), axis.place(*ratio));
        svg.bar((one.min(end), y + 3.0), ((end - one).abs(), STEP - 6.0), COLOURS[colour]);
        let words = format!("{ratio:.2}x {peer}");
        svg.text((one.max(end) + 5.0, y + 13.0), "start", &words);
    }
    svg.line((axis.place(1.0), TOP - 5.0), (axis.place(1.0), bottom), "#000000");
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Peer;
    use crate::works::Unit;

    #[test]
    fn there_is_a_bar_for_each_ratio() {
        let mut row = Row::new("null QD64", Unit::NsPerOp);
        for (name, ratio) in [("a", Some(12.0)), ("b", Some(0.5)), ("c", None)] {
            let name = name.into();
            let (cpu_ns_per_op, cpu_ratio, goal) = (None, None, None);
            row.peers.push(Peer { name, value: 1.0, ratio, cpu_ns_per_op, cpu_ratio, goal });
        }
        let svg = draw(&[row]);
        assert_eq!(svg.matches("fill=\"#").count(), 2);
        assert!(svg.contains("12.00x a") && svg.contains("0.50x b"));
        assert!(draw(&[]).contains("</svg>"));
    }
}
