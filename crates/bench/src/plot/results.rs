//! `plot`: pictures of results that were recorded with `--json`, of one run or of several.
//!
//! A picture shows works that differ in one thing alone, the number of requests in flight or their
//! rate, with a colour for each contestant. Where several results are of the same work, their median
//! counts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::Stroke;
use super::curve::{self, Axes, Curve};
use crate::report::time;
use crate::stats::median;

/// Arguments of `plot`.
#[derive(Args, Clone, Debug)]
pub struct PlotArgs {
    /// Results: what `--json` printed, a row a line.
    #[arg(required = true, value_name = "RESULTS")]
    files: Vec<PathBuf>,
    /// Where pictures go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// Draws all that can be drawn, and names the files.
///
/// # Errors
/// If a file cannot be read or written, is not of results, or there is nothing to draw.
pub fn run(arguments: &PlotArgs) -> io::Result<()> {
    draw_all(&arguments.files, &arguments.out)?.iter().for_each(|it| println!("{}", it.display()));
    Ok(())
}

/// Draws into a directory all that results in some files can be drawn of. The pictures' files.
///
/// # Errors
/// As of [`run`].
pub fn draw_all(files: &[PathBuf], out: &Path) -> io::Result<Vec<PathBuf>> {
    let mut rows = Vec::new();
    for file in files {
        let text = fs::read_to_string(file);
        let named = |error: String| io::Error::other(format!("{}: {error}", file.display()));
        rows.extend(parse(&text.map_err(|error| named(error.to_string()))?).map_err(named)?);
    }
    let pictures = pictures(&rows);
    if pictures.is_empty() {
        let message = "no work was measured at several depths or rates: nothing to draw";
        return Err(io::Error::other(message));
    }
    fs::create_dir_all(out)?;
    let write = |(name, svg): (String, String)| {
        let path = out.join(format!("{name}.svg"));
        fs::write(&path, svg).map(|()| path)
    };
    pictures.into_iter().map(write).collect()
}

/// The rows in lines of JSON; an error names the line.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(index, line)| {
        let wrong = |what: &dyn std::fmt::Display| format!("line {}: {what}", index + 1);
        let row: Value = serde_json::from_str(line).map_err(|error| wrong(&error))?;
        if row["work"].is_string() { Ok(row) } else { Err(wrong(&"not a row of results")) }
    });
    rows.collect()
}

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Throughput,
    Median,
    Tail,
    Cpu,
}

impl Kind {
    /// The first words of a picture's title, and what lies below.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Kind::Throughput => ("Throughput", "requests in flight"),
            Kind::Median => ("Median latency", "requests a second"),
            Kind::Tail => ("p99 latency", "requests a second"),
            Kind::Cpu => ("CPU time", "requests a second"),
        }
    }

    fn value(self) -> fn(f64) -> String {
        match self {
            Kind::Throughput => |per_s| format!("{}/s", super::short(per_s)),
            Kind::Median | Kind::Tail => time,
            Kind::Cpu => |share| format!("{} %", super::short(share)),
        }
    }
}

/// Values by contestant and by place.
type Points = BTreeMap<String, BTreeMap<u64, Vec<f64>>>;

/// All pictures by the names of their files, without an ending.
fn pictures(rows: &[Value]) -> Vec<(String, String)> {
    let mut all: BTreeMap<(Kind, String), Points> = BTreeMap::new();
    for row in rows {
        let (work, unit) = (row["work"].as_str().unwrap_or_default(), row["unit"].as_str());
        let mut add = |kind, place, curve: String, value: f64| {
            let points = all.entry((kind, family(work))).or_default();
            points.entry(curve).or_default().entry(place).or_default().push(value);
        };
        if let Some(depth) = row["depth"].as_u64() {
            for (name, value) in figures(row, "ours", "peers") {
                let per_s = if unit == Some("ns/op") { 1e9 / value } else { value };
                add(Kind::Throughput, depth, name, per_s);
            }
        }
        if let Some(rate) = row["rate_per_s"].as_u64() {
            for (name, us_per_s) in figures(row, "ours", "peers") {
                add(Kind::Cpu, rate, name, us_per_s / 1e4);
            }
            for (kind, part) in [(Kind::Median, "p50_ns"), (Kind::Tail, "p99_ns")] {
                for (name, ns) in figures(row, part, &format!("peers_{part}")) {
                    add(kind, rate, name, ns);
                }
            }
        }
    }
    let drawn = all.into_iter().filter_map(|((kind, family), points)| draw(kind, &family, points));
    drawn.collect()
}

/// Figures of a row by contestant, ours first.
fn figures(row: &Value, ours: &str, peers: &str) -> Vec<(String, f64)> {
    let ours = row[ours].as_f64().map(|value| ("coblk".to_owned(), value));
    let peers = row[peers].as_object().into_iter().flatten();
    let peers = peers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
    ours.into_iter().chain(peers).filter(|(_, value)| value.is_finite()).collect()
}

/// A work's name without its depth or rate, and without the word for a row of a latency curve.
fn family(work: &str) -> String {
    let work = work.strip_prefix("latency ").unwrap_or(work);
    let work = work.split_once(" at ").map_or(work, |(work, _)| work);
    let is_depth = |word: &str| {
        word.strip_prefix("QD").is_some_and(|depth| depth.parse::<u64>().is_ok()) //
    };
    let words: Vec<&str> = work
        .split(' ')
        .map(|word| match word.strip_suffix(',') {
            Some(depth) if is_depth(depth) => ",",
            _ => word,
        })
        .filter(|word| !is_depth(word))
        .collect();
    words.join(" ").replace(" ,", ",")
}

/// A picture, if there are curves in it.
fn draw(kind: Kind, family: &str, points: Points) -> Option<(String, String)> {
    let mut names: Vec<&String> = points.keys().collect();
    // Ours has the first colour; the floors, the last, and a stroke of their own.
    names.sort_by_key(|name| (name.as_str() != "coblk", is_floor(name), *name));
    let mut curves = Vec::new();
    for (colour, name) in names.into_iter().enumerate() {
        let stroke = if is_floor(name) { Stroke::Dashed } else { Stroke::Solid };
        let mut curve = Curve::new(name.clone(), colour, stroke);
        for (place, values) in &points[name] {
            curve.push(*place, median(values).unwrap_or(f64::NAN));
        }
        if points[name].len() > 1 {
            curves.push(curve);
        }
    }
    if curves.is_empty() {
        return None;
    }
    let (what, across) = kind.words();
    let title = match kind {
        // A logarithm of it does not exist.
        Kind::Cpu => format!("{what} of one CPU: {family} (0 is at the bottom)"),
        _ => format!("{what}: {family}"),
    };
    let svg = curve::draw(&Axes { title: &title, across, value: kind.value() }, &curves);
    Some((file_name(&format!("{what} {family}")), svg))
}

fn is_floor(name: &str) -> bool {
    name.starts_with("bare ")
}

/// Words as a file's name.
fn file_name(words: &str) -> String {
    let words = words.to_lowercase();
    let words = words.split(|it: char| !it.is_alphanumeric() && it != '_');
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULTS: &str = r#"
{"work":"nbd null randread 4k QD1","unit":"IOPS","depth":1,"ours":50000,"peers":{"a<b":20000}}
{"work":"latency nbd null randread 4k QD32","unit":"IOPS","depth":32,"ours":1e6,"peers":{"a<b":3e5}}
{"work":"nbd null randread 4k at 0/s","unit":"cpu us/s","rate_per_s":0,"ours":0,"peers":{"a<b":0}}
{"work":"nbd null randread 4k at 1k/s","unit":"cpu us/s","rate_per_s":1000,"ours":20000,
"p50_ns":20000,"p99_ns":50000,"p999_ns":90000,"peers":{"a<b":40000},"peers_p50_ns":{"a<b":30000}}
"#;

    fn rows(text: &str) -> Vec<Value> {
        parse(&text.replace(",\n\"p50", ",\"p50")).unwrap()
    }

    #[test]
    fn there_is_a_picture_for_each_family() {
        let names: Vec<String> = pictures(&rows(RESULTS)).into_iter().map(|it| it.0).collect();
        let wanted = ["throughput-nbd-null-randread-4k", "cpu-time-nbd-null-randread-4k"];
        // At one rate alone there are latencies: no curve.
        assert_eq!(names, wanted);
        let more = RESULTS.replace("1k/s", "10k/s").replace("1000,", "10000,");
        let all = pictures(&[rows(RESULTS), rows(&more)].concat());
        let [_, median, tail, _] = &all[..] else { panic!("{all:?}") };
        let names = [&median.0, &tail.0];
        assert_eq!(
            names,
            ["median-latency-nbd-null-randread-4k", "p99-latency-nbd-null-randread-4k"]
        );
        assert!(median.1.contains(">coblk<") && median.1.contains(">a&lt;b<"));
        assert!(tail.1.contains(">coblk<") && !tail.1.contains(">a&lt;b<"), "it has none");
    }

    #[test]
    fn the_median_of_several_runs_counts() {
        let other = RESULTS.replace("50000,", "70000,");
        let third = RESULTS.replace("50000,", "1,");
        let points = |text: &[&str]| {
            let rows: Vec<Value> = text.iter().flat_map(|text| rows(text)).collect();
            pictures(&rows)[0].1.clone()
        };
        assert_eq!(points(&[RESULTS, &other, &third]), points(&[RESULTS]));
        assert_ne!(points(&[&other]), points(&[RESULTS]));
    }

    #[test]
    fn families() {
        for (work, is) in [
            ("nbd null randread 4k QD1", "nbd null randread 4k"),
            ("nbd null randread 4k QD1, one CPU taken", "nbd null randread 4k, one CPU taken"),
            ("vhost-user null randread 4k QD32 x2", "vhost-user null randread 4k x2"),
            ("nbd null randread 4k at 100k/s", "nbd null randread 4k"),
            ("latency O_DIRECT threads randread QD8", "O_DIRECT threads randread"),
        ] {
            assert_eq!(family(work), is);
        }
        assert_eq!(file_name("CPU time: a / b, c"), "cpu-time-a-b-c");
    }

    #[test]
    fn what_is_no_result_is_named_with_its_line() {
        assert!(parse("\n{\"work\":\"x\"}\n{").unwrap_err().starts_with("line 3: "));
        assert_eq!(parse("[1]").unwrap_err(), "line 1: not a row of results");
        assert!(
            pictures(&parse("{\"work\":\"x\",\"depth\":-1,\"ours\":\"?\"}").unwrap()).is_empty()
        );
    }
}
