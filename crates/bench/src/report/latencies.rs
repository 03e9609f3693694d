//! Latencies of ours and of the peers, as a table of their own: a line for each contestant.

use super::{Row, figure};
const HEADER: [&str; 6] = ["latency", "of", "p50 us", "p99 us", "p99.9 us", "longest us"];

/// A header and a line for each contestant whose latencies are known; nothing if there are none.
fn lines(rows: &[Row]) -> Vec<[String; 6]> {
    let mut lines = Vec::new();
    for row in rows {
        let ours = row.latency.map(|latency| ("coblk", latency));
        let peers = row.peers.iter();
        let peers = peers.filter_map(|peer| Some((peer.name.as_str(), peer.latency?)));
        for (index, (name, latency)) in ours.into_iter().chain(peers).enumerate() {
            let work = if index == 0 { row.work.as_str() } else { "" };
            let [p50, p99, p999, max] = latency.named().map(|(_, ns)| figure(Some(ns / 1e3)));
            lines.push([work.to_owned(), name.to_owned(), p50, p99, p999, max]);
        }
    }
    if !lines.is_empty() {
        lines.insert(0, HEADER.map(str::to_owned));
    }
    lines
}

/// The table in Markdown, with an empty line before it.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    for (index, line) in lines(rows).iter().enumerate() {
        let before = if index == 0 { "\n" } else { "" };
        text.push_str(&format!("{before}| {} |\n", line.join(" | ")));
        if index == 0 {
            text.push_str("| --- | --- | ---: | ---: | ---: | ---: |\n");
        }
    }
    text
}

/// The table, with an empty line before it.
pub(super) fn table(rows: &[Row]) -> String {
    let lines = lines(rows);
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0) //
    };
    let (work, name) = (width(0), width(1));
    let mut text = String::new();
    for (index, [first, second, p50, p99, p999, max]) in lines.iter().enumerate() {
        let before = if index == 0 { "\n" } else { "" };
        text.push_str(&format!(
            "{before}{first:<work$}  {second:<name$}  {p50:>9}  {p99:>9}  {p999:>9}  {max:>10}\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Peer;
    use super::*;
    use crate::stats::Percentiles;
    use crate::works::Unit;

    #[test]
    fn each_contestant_has_a_line() {
        let mut row = Row::new("nbd", Unit::Iops);
        assert_eq!((table(&[row.clone()]), markdown(&[row.clone()])), Default::default());
        let latency =
            Percentiles { p50_ns: 20_000.0, p99_ns: 45_500.0, p999_ns: 1.2e7, max_ns: 3e7 };
        row.latency = Some(latency);
        row.peers.push(Peer { latency: Some(latency), ..Peer::new("bare nbd, blocking", 1.0) });
        row.peers.push(Peer::new("unknown", 1.0));
        let text = markdown(&[row.clone()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[3], "| nbd | coblk | 20.0 | 45.5 | 12,000 | 30,000 |");
        assert_eq!(lines[4..], ["|  | bare nbd, blocking | 20.0 | 45.5 | 12,000 | 30,000 |"]);
        assert_eq!(table(&[row]).lines().count(), 4);
    }
}
