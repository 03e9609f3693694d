//! `page`: the measurements behind the pictures of docs/performance.md, and the pictures, in one go.
//! What was measured is kept beside them, so that `plot` can draw it again.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::compare::args::CommonArgs;
use crate::compare::{in_place, served};
use crate::measure::Plan;
use crate::micro;
use crate::peers::programs::Protocol;
use crate::plot::results;
use crate::report::Report;
use crate::works::Work;

/// What a lap at a fixed rate takes, in laps of other works: at low rates there is little to see in
/// a short time.
const RATE_LAPS: u32 = 10;
/// Size of the image that is read from the page cache.
const IMAGE_BYTES: u64 = 64 << 20;

/// Arguments of `page`.
#[derive(Args, Clone, Debug)]
pub struct PageArgs {
    /// Where the pictures go, and results.json, of which they are drawn.
    #[arg(long, value_name = "DIR", default_value = "docs/performance")]
    out: PathBuf,
    /// Our server; see `compare nbd`.
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// How long a lap takes, in milliseconds; at a fixed rate ten times as long. 100 by default, and
    /// 50 with --quick.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    lap: Option<u32>,
}

/// Measures, draws, and names the files.
///
/// # Errors
/// If there is no server of ours, one of our works fails, or a file cannot be written.
pub fn run(
    arguments: &PageArgs,
    quick: bool,
    rounds: Option<u16>,
    report: &mut Report,
) -> io::Result<()> {
    let rounds = rounds.map_or(if quick { 3 } else { 5 }, usize::from);
    let lap_ms = arguments.lap.unwrap_or(if quick { 50 } else { 100 });
    let lap = Duration::from_millis(lap_ms.into());
    let plan = Plan { rounds, lap, rate_lap: lap * RATE_LAPS, quick };
    let works = vec![Work::WorkerQd1, Work::WorkerQd64, Work::WorkerOneCpu, Work::WorkerTaken];
    micro::run(&micro::Options { works, ..micro::Options::default() }, &plan, report)?;
    for protocol in [Protocol::Nbd, Protocol::VhostUser] {
        served::curves(protocol, arguments.server.clone(), &plan, report)?;
    }
    let only = vec!["page cache".to_owned()];
    let common = CommonArgs { only, size: Some(IMAGE_BYTES), ..CommonArgs::default() };
    in_place::run(&common, &plan, report)?;
    fs::create_dir_all(&arguments.out)?;
    let lines: Vec<String> =
        report.rows().iter().map(|row| format!("{}\n", row.to_json())).collect();
    let recorded = arguments.out.join("results.json");
    fs::write(&recorded, lines.concat())?;
    for file in results::draw_all(&[recorded], &arguments.out)? {
        eprintln!("{}", file.display());
    }
    Ok(())
}
