//! One round: a writer that is killed at a random moment, and what it had acknowledged by then.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coblk_tests::images::sparse_image;
use coblk_tests::random::Random;
use coblk_tests::sectors::SECTOR_BYTES;

/// Sectors of the image.
pub const SECTORS: usize = 1024;
/// Bytes of the image.
pub const IMAGE_BYTES: usize = SECTORS * SECTOR_BYTES;
/// Far more than is written while lines fit into a pipe that is not read.
const LOG_BYTES: u64 = 64 << 20;

/// How the writer writes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub engine: &'static str,
    pub cache: &'static str,
}

/// Both engines, with the page cache and without.
pub const WAYS: [Way; 4] = [
    Way { engine: "threads", cache: "buffered" },
    Way { engine: "threads", cache: "direct" },
    Way { engine: "io_uring", cache: "buffered" },
    Way { engine: "io_uring", cache: "direct" },
];

/// What is written beside the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Nothing.
    None,
    /// A log of all writes.
    Writes,
    /// The same, while the flushes above it are a lie.
    Lie,
}

/// A moment at which data was acknowledged as durable.
pub struct Point {
    /// What the log counted then.
    pub log_entries: usize,
    /// The version that each sector must have had at least.
    pub required: Vec<u64>,
}

/// What is left of a writer.
pub struct Remains {
    pub image: PathBuf,
    pub log: PathBuf,
    /// In order.
    pub points: Vec<Point>,
}

/// Lets a writer run until it has said a number of lines that is drawn from `seed`, and kills it.
pub fn run(dir: &Path, way: Way, seed: u64, log: Log) -> Remains {
    let image = sparse_image(dir, "disk.img", IMAGE_BYTES as u64);
    let log_path = sparse_image(dir, "writes.log", LOG_BYTES);
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-writer"));
    command.arg(&image).args([way.engine, way.cache, &seed.to_string()]);
    if log != Log::None {
        command.arg(&log_path);
    }
    if log == Log::Lie {
        command.arg("lie");
    }
    let mut writer = command.stdout(Stdio::piped()).spawn().expect("the writer");
    let mut said = BufReader::new(writer.stdout.take().expect("a pipe"));
    let mut lines = Vec::new();
    let mut next_line = || {
        let mut line = Vec::new();
        said.read_until(b'\n', &mut line).expect("the pipe of the writer");
        // A line that was cut by the end of the writer was not said.
        (line.pop() == Some(b'\n')).then(|| String::from_utf8(line).expect("text"))
    };
    let last_words = 20 + Random::new(seed).below(400);
    for _ in 0..last_words {
        match next_line() {
            Some(line) => lines.push(line),
            None => break,
        }
    }
    writer.kill().expect("to kill the writer");
    lines.extend(std::iter::from_fn(&mut next_line));
    let status = writer.wait().expect("the end of the writer");
    assert_eq!(status.signal(), Some(9), "{way:?}, seed {seed}: it ended by itself, {status}");
    let points = points(&lines);
    let acknowledged = points.last().is_some_and(|it| it.required.iter().any(|it| *it > 0));
    assert!(acknowledged, "{way:?}, seed {seed}: killed before anything was durable");
    Remains { image, log: log_path, points }
}

/// What the lines of a writer say was durable, and when.
fn points(lines: &[String]) -> Vec<Point> {
    let (mut covered, mut points) = (Vec::new(), Vec::new());
    let mut required = vec![0; SECTORS];
    let mut require = |first: u64, count: u64, version: u64| {
        for sector in &mut required[first as usize..(first + count) as usize] {
            *sector = version.max(*sector);
        }
        required.clone()
    };
    for line in lines {
        let mut words = line.split(' ');
        let kind = words.next().expect("a word");
        let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
        let (log_entries, required) = match (kind, &numbers[..]) {
            ("W", &[first, count, version]) => {
                covered.push((first, count, version));
                continue;
            }
            ("D", &[first, count, version, entries]) => (entries, require(first, count, version)),
            ("F", &[entries]) => {
                for (first, count, version) in covered.drain(..) {
                    require(first, count, version);
                }
                (entries, require(0, 0, 0))
            }
            _ => panic!("the writer said '{line}'"),
        };
        points.push(Point { log_entries: log_entries as usize, required });
    }
    points
}
