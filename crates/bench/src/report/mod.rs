//! Rows, as a table for people or as one JSON object a line for programs.

mod latencies;
mod peer;

use std::io::{self, Write};

use serde_json::{Map, Number, Value, json};

use crate::stats::{Percentiles, rounded};
use crate::works::Unit;

pub use peer::Peer;

/// Where a row lies on the axis of a plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Requests in flight.
    Depth(usize),
    /// Requests a second that the client makes.
    Rate(u64),
}

/// What is known about one work. A field that is not known is left out.
#[derive(Clone, Debug)]
pub struct Row {
    /// The work's name.
    pub work: String,
    /// What the figures are in.
    pub unit: Unit,
    /// Our figure.
    pub ours: Option<f64>,
    /// The peers'.
    pub peers: Vec<Peer>,
    /// Peers that are not installed, with the Debian package that brings them.
    pub missing: Vec<(String, &'static str)>,
    /// Allocations in steady state.
    pub allocs_per_op: Option<f64>,
    /// System calls in steady state.
    pub syscalls_per_op: Option<f64>,
    /// CPU time of all our threads.
    pub cpu_ns_per_op: Option<f64>,
    /// How long requests took.
    pub latency: Option<Percentiles>,
    /// Its place among rows that differ in that alone.
    pub at: Option<At>,
    /// Further figures of this row, by name with unit.
    pub more: Vec<(&'static str, f64)>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl Row {
    /// A row without figures.
    pub fn new(work: impl Into<String>, unit: Unit) -> Row {
        Row {
            work: work.into(),
            unit,
            ours: None,
            peers: Vec::new(),
            missing: Vec::new(),
            allocs_per_op: None,
            syscalls_per_op: None,
            cpu_ns_per_op: None,
            latency: None,
            at: None,
            more: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The row as a JSON object.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("work".into(), json!(self.work));
        object.insert("unit".into(), json!(self.unit.name()));
        if let Some(ours) = self.ours {
            object.insert("ours".into(), json!(rounded(ours)));
        }
        let by_peer = |value: &dyn Fn(&Peer) -> Option<f64>| -> Map<String, Value> {
            let known = self.peers.iter().filter_map(|peer| Some((peer, value(peer)?)));
            known.map(|(peer, value)| (peer.name.clone(), json!(rounded(value)))).collect()
        };
        let latency = |index: usize| {
            by_peer(&|peer| peer.latency.map(|latency| latency.named()[index].1)) //
        };
        for (field, map) in [
            ("peers", by_peer(&|peer| Some(peer.value))),
            ("ratio", by_peer(&|peer| peer.ratio)),
            ("peers_cpu_ns_per_op", by_peer(&|peer| peer.cpu_ns_per_op)),
            ("cpu_ratio", by_peer(&|peer| peer.cpu_ratio)),
            ("goal", by_peer(&|peer| peer.goal)),
            ("peers_p50_ns", latency(0)),
            ("peers_p99_ns", latency(1)),
            ("peers_p999_ns", latency(2)),
            ("peers_max_ns", latency(3)),
        ] {
            if !map.is_empty() {
                object.insert(field.into(), Value::Object(map));
            }
        }
        for (field, value) in [
            ("allocs_per_op", self.allocs_per_op),
            ("syscalls_per_op", self.syscalls_per_op),
            ("cpu_ns_per_op", self.cpu_ns_per_op),
        ] {
            if let Some(value) = value {
                object.insert(field.into(), count(value));
            }
        }
        match self.at {
            Some(At::Depth(depth)) => object.insert("depth".into(), json!(depth)),
            Some(At::Rate(per_s)) => object.insert("rate_per_s".into(), json!(per_s)),
            None => None,
        };
        let latency = self.latency.map(Percentiles::named);
        for (field, value) in latency.iter().flatten().chain(&self.more) {
            object.insert((*field).into(), count(*value));
        }
        if !self.missing.is_empty() {
            let missing = self.missing.iter().map(|(peer, package)| (peer.clone(), json!(package)));
            object.insert("missing".into(), Value::Object(missing.collect()));
        }
        if !self.notes.is_empty() {
            object.insert("notes".into(), json!(self.notes));
        }
        Value::Object(object)
    }
}

/// A number as JSON: without a fraction when it has none.
fn count(value: f64) -> Value {
    let value = rounded(value);
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Value::Number(Number::from(value as i64));
    }
    json!(value)
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table at the end.
    Table,
    /// The same in Markdown, for docs/performance.md.
    Markdown,
    /// A JSON object a line, as they come.
    Json,
}

/// Where rows go.
pub struct Report {
    format: Format,
    rows: Vec<Row>,
}

impl Report {
    /// A report without rows.
    pub fn new(format: Format) -> Report {
        Report { format, rows: Vec::new() }
    }

    /// Takes a row.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn add(&mut self, row: Row) -> io::Result<()> {
        if self.format == Format::Json {
            let mut out = io::stdout().lock();
            writeln!(out, "{}", row.to_json())?;
            out.flush()?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Prints what is left to print.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn finish(&self) -> io::Result<()> {
        let text = match self.format {
            Format::Table => table(&self.rows),
            Format::Markdown => markdown(&self.rows),
            Format::Json => return Ok(()),
        };
        io::stdout().write_all(text.as_bytes())
    }
}

const COLUMNS: usize = 12;
const HEADER: [&str; COLUMNS] = [
    "work",
    "unit",
    "ours",
    "allocs",
    "syscalls",
    "cpu ns",
    "peer",
    "peer's",
    "cpu ns",
    "ratio",
    "cpu ratio",
    "goal",
];

/// Words are set to the left, figures to the right.
fn is_words(column: usize) -> bool {
    matches!(column, 0 | 1 | 6 | 11)
}

/// The columns to print: all but those that say nothing of any row.
fn columns(rows: &[Row]) -> Vec<usize> {
    let with_goals = rows.iter().any(|row| row.peers.iter().any(|peer| peer.goal.is_some()));
    let says = |column: &usize| match column {
        // They are counted in this process, and goals are for others.
        3 | 4 => !with_goals,
        10 | 11 => with_goals,
        _ => true,
    };
    (0..COLUMNS).filter(says).collect()
}

/// The header, and one line for each peer.
fn lines(rows: &[Row]) -> Vec<[String; COLUMNS]> {
    let mut lines = vec![HEADER.map(str::to_owned)];
    for row in rows {
        let mut peers = row.peers.iter();
        let mut line = Default::default();
        fill_peer(&mut line, peers.next());
        line[0] = row.work.clone();
        line[1] = row.unit.name().to_owned();
        line[2] = figure(row.ours);
        line[3] = figure(row.allocs_per_op);
        line[4] = figure(row.syscalls_per_op);
        line[5] = figure(row.cpu_ns_per_op);
        lines.push(line);
        for peer in peers {
            let mut line = Default::default();
            fill_peer(&mut line, Some(peer));
            lines.push(line);
        }
    }
    lines
}

/// The rows as a table in Markdown, and below it what does not fit into a column.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::new();
    let columns = columns(rows);
    for (index, line) in lines(rows).iter().enumerate() {
        let cells: Vec<&str> = columns.iter().map(|column| line[*column].as_str()).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if index == 0 {
            let rule = columns.iter().map(|it| if is_words(*it) { "---" } else { "---:" });
            text.push_str(&format!("| {} |\n", rule.collect::<Vec<_>>().join(" | ")));
        }
    }
    text.push_str(&latencies::markdown(rows));
    text.push_str(&footnotes(rows).replace("\n  ", "\n- "));
    text
}

/// The rows as a table, and below it what does not fit into a column.
pub fn table(rows: &[Row]) -> String {
    let lines = lines(rows);
    let widths: Vec<usize> = (0..HEADER.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let mut cells = String::new();
        for column in columns(rows) {
            let (cell, width) = (&line[column], widths[column]);
            let cell = if is_words(column) {
                format!("{cell:<width$}  ")
            } else {
                format!("{cell:>width$}  ")
            };
            cells.push_str(&cell);
        }
        text.push_str(cells.trim_end());
        text.push('\n');
    }
    text.push_str(&latencies::table(rows));
    text.push_str(&footnotes(rows));
    text
}

fn fill_peer(line: &mut [String; COLUMNS], peer: Option<&Peer>) {
    if let Some(peer) = peer {
        line[6] = peer.name.clone();
        line[7] = figure(Some(peer.value));
        line[8] = figure(peer.cpu_ns_per_op);
        let times = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |it| format!("{it:.2}x"));
        line[9] = times(peer.ratio);
        line[10] = times(peer.cpu_ratio);
        if let (Some(goal), Some(met)) = (peer.goal, peer.is_met()) {
            line[11] = format!("{goal}x {}", if met { "met" } else { "missed" });
        }
    }
}

fn footnotes(rows: &[Row]) -> String {
    let mut notes: Vec<String> = Vec::new();
    for row in rows {
        let more: Vec<String> =
            row.more.iter().map(|(name, value)| for_people(name, *value)).collect();
        if !more.is_empty() {
            notes.push(format!("{}: {}", row.work, more.join(", ")));
        }
        notes.extend(row.notes.iter().map(|note| format!("{}: {note}", row.work)));
    }
    for (peer, package) in rows.iter().flat_map(|row| &row.missing) {
        let note = format!("{peer} is not installed; Debian package {package} brings it");
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    let text: String = notes.iter().map(|note| format!("  {note}\n")).collect();
    if text.is_empty() { text } else { format!("\n{text}") }
}

/// A further figure of a row for people: `p99_ns` with 12345 as `p99 12.3 us`.
fn for_people(name: &str, value: f64) -> String {
    if let Some(what) = name.strip_suffix("_ns") {
        return format!("{} {}", what.replace('_', " "), time(value));
    }
    let units = [("mib_per_s", "MiB/s"), ("ns_per_op", "ns/op"), ("watched_s", "s watched")];
    match units.iter().find(|(field, _)| *field == name) {
        Some((_, unit)) => format!("{} {unit}", figure(Some(value))),
        None => format!("{} {}", name.replace('_', " "), figure(Some(value))),
    }
}

/// Nanoseconds for people.
pub fn time(ns: f64) -> String {
    let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
    let (unit, name) =
        units.into_iter().find(|(unit, _)| ns >= unit * 0.999).unwrap_or((1.0, "ns"));
    let value = format!("{:.1}", ns / unit);
    format!("{} {name}", value.strip_suffix(".0").unwrap_or(&value))
}

/// A number for people.
fn figure(value: Option<f64>) -> String {
    let Some(value) = value else { return "-".to_owned() };
    match value.abs() {
        10_000.0.. => {
            let digits = format!("{value:.0}");
            grouped(&digits)
        }
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.0005.. => format!("{value:.3}"),
        _ => "0".to_owned(),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new("null QD64", Unit::NsPerOp);
        row.ours = Some(91.0);
        row.peers.push(Peer {
            ratio: Some(12.637),
            cpu_ns_per_op: Some(1149.0),
            ..Peer::new("qemu null-co", 1150.0)
        });
        row.allocs_per_op = Some(0.0);
        row.syscalls_per_op = Some(0.000_001);
        row.cpu_ns_per_op = Some(91.0);
        row
    }

    #[test]
    fn json_has_the_fields_a_row_has() {
        assert_eq!(
            row().to_json(),
            json!({
                "work": "null QD64", "unit": "ns/op", "ours": 91.0,
                "peers": {"qemu null-co": 1150.0}, "ratio": {"qemu null-co": 12.64},
                "peers_cpu_ns_per_op": {"qemu null-co": 1149.0},
                "allocs_per_op": 0, "syscalls_per_op": 0, "cpu_ns_per_op": 91,
            })
        );
        let empty = Row::new("idle: cpu", Unit::CpuUsPerS).to_json();
        assert_eq!(empty, json!({"work": "idle: cpu", "unit": "cpu us/s"}));
    }

    #[test]
    fn the_table_names_what_is_missing() {
        let mut row = row();
        row.missing.push(("qemu null-aio".into(), "qemu-utils"));
        row.more.push(("p99_ns", 12_345.0));
        let text = table(&[row.clone(), row]);
        assert!(text.starts_with("work"));
        assert!(text.contains("12.64x"));
        assert!(text.contains("p99 12.3 us"));
        assert_eq!(text.matches("Debian package qemu-utils").count(), 1);
    }

    #[test]
    fn markdown_is_the_same_table() {
        let mut row = row();
        row.notes.push("a note".into());
        let text = markdown(&[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[..3].iter().all(|line| line.matches(" | ").count() == COLUMNS - 3));
        assert!(lines[1].starts_with("| --- | --- | ---: |"));
        assert!(lines[2].starts_with("| null QD64 | ns/op | 91.0 | 0 |"), "{text}");
        assert!(lines[2].ends_with("| 12.64x |"));
        assert_eq!(lines[3..], ["", "- null QD64: a note"]);
    }

    #[test]
    fn goals_have_columns_where_there_are_goals() {
        let mut row = row();
        assert!(!table(&[row.clone()]).contains("goal"));
        (row.peers[0].goal, row.peers[0].cpu_ratio) = (Some(2.0), Some(1.9));
        let json = row.to_json();
        assert_eq!(json["cpu_ratio"]["qemu null-co"], 1.9);
        assert_eq!(json["goal"]["qemu null-co"], 2.0);
        let text = table(&[row.clone()]);
        assert!(text.contains("12.64x      1.90x  2x missed"), "{text}");
        assert!(!text.contains("allocs"));
        row.peers[0].cpu_ratio = Some(2.0);
        assert!(markdown(&[row]).contains("| 12.64x | 2.00x | 2x met |"));
    }

    #[test]
    fn times_for_people() {
        assert_eq!(time(100.0), "100 ns");
        assert_eq!(time(1e4), "10 us");
        assert_eq!(time(1_234_567.0), "1.2 ms");
        assert_eq!(time(1e9), "1 s");
        assert_eq!(for_people("eventfd_writes_per_op", 0.5), "eventfd writes per op 0.500");
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(figure(None), "-");
        assert_eq!(figure(Some(0.0)), "0");
        assert_eq!(figure(Some(5.1234)), "5.123");
        assert_eq!(figure(Some(1_234_567.0)), "1,234,567");
        assert_eq!(grouped("123456"), "123,456");
    }
}
