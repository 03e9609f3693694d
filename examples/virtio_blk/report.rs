//! What happened: counted while it runs, shown while it runs and at the end.

use std::time::Duration;

use coblk::virtio_blk::BlkStatus;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::verify::Mismatch;

/// How many failures are told one by one.
const TOLD: u64 = 10;
/// How often the progress bar moves; a line is printed once a second.
const TICK: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(1);
/// What takes longer counts as this long.
const LONGEST_NS: u64 = 60_000_000_000;

/// What was done in one direction.
struct Direction {
    requests: u64,
    bytes: u64,
    /// In nanoseconds, to three digits.
    latency: Histogram<u64>,
}

/// What a workload has come to.
pub struct Results {
    read: Direction,
    write: Direction,
    /// How long it ran.
    pub elapsed: Duration,
    /// Blocks that were read and held what they should.
    pub verified: u64,
    /// Blocks that were read, and of which nothing is known.
    pub unknown: u64,
    /// Blocks that did not hold what they should.
    pub mismatches: u64,
    /// Requests that failed.
    pub failures: u64,
}

impl Results {
    /// Nothing so far.
    pub fn new() -> Results {
        let direction = || Direction {
            requests: 0,
            bytes: 0,
            latency: Histogram::new_with_max(LONGEST_NS, 3).expect("valid bounds"),
        };
        Results {
            read: direction(),
            write: direction(),
            elapsed: Duration::ZERO,
            verified: 0,
            unknown: 0,
            mismatches: 0,
            failures: 0,
        }
    }

    /// A request has completed.
    pub fn completed(&mut self, is_read: bool, bytes: u64, latency: Duration) {
        let direction = if is_read { &mut self.read } else { &mut self.write };
        direction.requests += 1;
        direction.bytes += bytes;
        direction.latency.saturating_record(latency.as_nanos() as u64);
    }

    /// A request has failed.
    pub fn failed(&mut self, is_read: bool, offset: u64, status: BlkStatus) {
        self.failures += 1;
        if self.failures <= TOLD {
            let what = if is_read { "read" } else { "write" };
            eprintln!("error: {what} at offset {offset}: {status:?}");
        }
    }

    /// A block was wrong.
    pub fn mismatch(&mut self, mismatch: &Mismatch) {
        self.mismatches += 1;
        if self.mismatches <= TOLD {
            eprintln!("mismatch: {mismatch}");
        }
    }

    /// Whether all went well so far.
    pub fn is_good(&self) -> bool {
        self.failures == 0 && self.mismatches == 0
    }

    fn requests(&self) -> u64 {
        self.read.requests + self.write.requests
    }

    fn bytes(&self) -> u64 {
        self.read.bytes + self.write.bytes
    }

    /// The table for people, on standard output.
    pub fn print(&self) {
        let seconds = self.elapsed.as_secs_f64();
        println!(
            "\n{:>7} {:>12} {:>10} {:>13} {:>10} {:>10} {:>10} {:>10}",
            "", "requests", "IOPS", "bandwidth", "p50", "p99", "p99.9", "max"
        );
        for (name, direction) in [("read", &self.read), ("write", &self.write)] {
            if direction.requests == 0 {
                continue;
            }
            let at = |percent| nanoseconds(direction.latency.value_at_percentile(percent));
            println!(
                "{name:>7} {:>12} {:>10} {:>11}/s {:>10} {:>10} {:>10} {:>10}",
                direction.requests,
                thousands(direction.requests as f64 / seconds),
                bytes(direction.bytes as f64 / seconds),
                at(50.0),
                at(99.0),
                at(99.9),
                nanoseconds(direction.latency.max())
            );
        }
        println!();
    }
}

/// Shows how far it has come: a bar on a terminal, a line a second elsewhere. On standard error.
pub struct Progress {
    bar: ProgressBar,
    /// `None` if the end is not known by time.
    limit: Option<Duration>,
    next: Duration,
    last: (Duration, u64, u64),
}

impl Progress {
    /// For something called `name` that takes `limit`, if that is known, and else `requests`.
    pub fn new(name: &'static str, limit: Option<Duration>, requests: u64) -> Progress {
        let length = limit.map_or(requests, |limit| limit.as_millis() as u64);
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let template = "{prefix:>7} [{bar:40}] {percent:>3} %  {msg}";
        bar.set_style(ProgressStyle::with_template(template).expect("a valid template"));
        bar.set_prefix(name);
        let next = if bar.is_hidden() { LINE } else { TICK };
        Progress { bar, limit, next, last: (Duration::ZERO, 0, 0) }
    }

    /// Shows it, if it is time to.
    pub fn show(&mut self, elapsed: Duration, results: &Results) {
        if elapsed < self.next {
            return;
        }
        let hidden = self.bar.is_hidden();
        self.next = elapsed + if hidden { LINE } else { TICK };
        let (last, requests, bytes_done) = self.last;
        self.last = (elapsed, results.requests(), results.bytes());
        let seconds = (elapsed - last).as_secs_f64();
        let iops = thousands((results.requests() - requests) as f64 / seconds);
        let rate = bytes((results.bytes() - bytes_done) as f64 / seconds);
        if hidden {
            let name = self.bar.prefix();
            eprintln!("{name:>7} {:4.0} s  {iops} IOPS  {rate}/s", elapsed.as_secs_f64());
            return;
        }
        self.bar.set_message(format!("{iops} IOPS  {rate}/s"));
        let position = self.limit.map_or(results.requests(), |_| elapsed.as_millis() as u64);
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// `1.5 MiB`.
pub fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), units[unit])
}

/// `123 k`.
fn thousands(count: f64) -> String {
    match count {
        ..1e3 => three_digits(count),
        ..1e6 => format!("{} k", three_digits(count / 1e3)),
        _ => format!("{} M", three_digits(count / 1e6)),
    }
}

fn nanoseconds(count: u64) -> String {
    let count = count as f64;
    match count {
        ..1e3 => format!("{count:.0} ns"),
        ..1e6 => format!("{} us", three_digits(count / 1e3)),
        ..1e9 => format!("{} ms", three_digits(count / 1e6)),
        _ => format!("{} s", three_digits(count / 1e9)),
    }
}

/// As many decimals as make three digits, and none that say nothing.
fn three_digits(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
