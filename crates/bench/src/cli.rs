//! The command line.

use std::io;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::args::{CommonArgs, CompareArgs, wanted};
use crate::compare::fuse::{self, FuseArgs};
use crate::compare::img::{self, ImgArgs};
use crate::compare::jobs::JobsArgs;
use crate::compare::nbd_client::{self, ClientArgs};
use crate::compare::rbd::{self, RbdArgs};
use crate::compare::{self, served, served::ServedArgs};
use crate::floors::{self, ServeArgs};
use crate::jobs::{self, FileArgs, NullArgs};
use crate::measure::Plan;
use crate::micro;
use crate::page::{self, PageArgs};
use crate::peers::programs::Protocol;
use crate::peers::stranger;
use crate::plot::results::{self, PlotArgs};
use crate::report::{Format, Report};
use crate::works::Work;

/// What coblk costs, beside its peers, in one run.
///
/// Ratios above 1 mean that coblk is better.
#[derive(Debug, Parser)]
#[command(name = "coblk-bench", version)]
struct Cli {
    /// Print one JSON object a line, and nothing else, on standard output.
    #[arg(long, global = true)]
    json: bool,
    /// Print the table in Markdown.
    #[arg(long, global = true, conflicts_with = "json")]
    markdown: bool,
    /// A short run; its figures are only good for a look.
    #[arg(long, global = true)]
    quick: bool,
    /// Rounds in which ours and the peers' take turns; the median counts.
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The parts: coroutines, bottom halves, timers, wake-ups, workers, null requests.
    Micro(MicroArgs),
    /// Requests that do nothing, through the whole stack.
    Null(NullArgs),
    /// Requests to an image, in fio's words.
    File(FileArgs),
    /// Our engines beside `qemu-img bench` and bare loops, on one image; or our servers beside
    /// others'.
    Compare(CompareCommand),
    /// A bare server: the floor that `compare nbd` and `compare vhost-user` measure ours beside.
    Serve(ServeArgs),
    /// Measure and draw what docs/performance.md shows.
    Page(PageArgs),
    /// Draw recorded results as SVG: throughput over depth, latency and CPU time over the rate.
    Plot(PlotArgs),
    /// Name all works of `micro`, `compare`, `compare fuse`, `compare img`, `compare nbd`,
    /// `compare nbd-client`, `compare rbd`, `compare vhost-user`, `compare qcow2` and `compare jobs`,
    /// one a line.
    List,
    /// Keep one CPU busy.
    #[command(hide = true)]
    Spin { cpu: usize },
    /// One work and nothing else, for a tool that watches this process.
    #[command(hide = true)]
    Child { work: String, ops: u64 },
}

#[derive(Args, Debug)]
struct MicroArgs {
    /// Measure only works whose name contains this; may be given again.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many coroutines to suspend at once.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    suspended: u64,
    /// How long to watch an idle context, in seconds.
    #[arg(long, value_name = "SECONDS")]
    idle: Option<f64>,
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
struct CompareCommand {
    #[command(subcommand)]
    what: Option<Compared>,
    #[command(flatten)]
    engines: CompareArgs,
}

#[derive(Debug, Subcommand)]
enum Compared {
    /// Our FUSE export beside QEMU's.
    Fuse(FuseArgs),
    /// Commands of our coblk-img beside those of qemu-img, and a plain loop.
    Img(ImgArgs),
    /// Reads from the page cache, with some of each turn of the loop in place: how many are best.
    InPlace(CommonArgs),
    /// Our NBD server beside those of QEMU and nbdkit.
    Nbd(ServedArgs),
    /// Our NBD client beside QEMU's and libnbd's.
    NbdClient(ClientArgs),
    /// Our RBD driver beside fio's and QEMU's.
    Rbd(RbdArgs),
    /// Our vhost-user-blk export beside QEMU's.
    VhostUser(ServedArgs),
    /// Our qcow2 driver beside a raw image of ours and QEMU's driver.
    Qcow2(CommonArgs),
    /// Jobs of our storage daemon beside those of QEMU's, and a plain loop.
    Jobs(JobsArgs),
}

impl Cli {
    fn format(&self) -> Format {
        match (self.json, self.markdown) {
            (true, _) => Format::Json,
            (_, true) => Format::Markdown,
            _ => Format::Table,
        }
    }
}

/// Does what the command line says.
///
/// # Errors
/// If a measurement fails.
pub fn run() -> io::Result<()> {
    let cli = Cli::parse();
    let plan = Plan::new(cli.quick, cli.rounds.map(usize::from));
    let mut report = Report::new(cli.format());
    match cli.command {
        Command::Micro(arguments) => {
            micro::run(&micro_options(&arguments, &plan)?, &plan, &mut report)?;
        }
        Command::Null(arguments) => jobs::null(&arguments, &plan, &mut report)?,
        Command::File(arguments) => jobs::file(&arguments, &plan, &mut report)?,
        Command::Compare(CompareCommand { what, engines }) => match what {
            None => compare::run(&engines, &plan, &mut report)?,
            Some(Compared::Fuse(arguments)) => fuse::run(&arguments, &plan, &mut report)?,
            Some(Compared::Img(arguments)) => img::run(&arguments, &plan, &mut report)?,
            Some(Compared::InPlace(arguments)) => {
                compare::in_place::run(&arguments, &plan, &mut report)?;
            }
            Some(Compared::Nbd(arguments)) => {
                served::run(Protocol::Nbd, &arguments, &plan, &mut report)?;
            }
            Some(Compared::NbdClient(arguments)) => {
                nbd_client::run(&arguments, &plan, &mut report)?;
            }
            Some(Compared::Rbd(arguments)) => rbd::run(&arguments, &plan, &mut report)?,
            Some(Compared::Qcow2(arguments)) => {
                compare::qcow2::run(&arguments, &plan, &mut report)?;
            }
            Some(Compared::Jobs(arguments)) => {
                compare::jobs::run(&arguments, &plan, &mut report)?;
            }
            Some(Compared::VhostUser(arguments)) => {
                served::run(Protocol::VhostUser, &arguments, &plan, &mut report)?;
            }
        },
        Command::Serve(arguments) => return floors::serve(&arguments),
        Command::Page(arguments) => page::run(&arguments, cli.quick, cli.rounds, &mut report)?,
        Command::Plot(arguments) => return results::run(&arguments),
        Command::List => list(),
        Command::Spin { cpu } => return stranger::spin(cpu),
        Command::Child { work, ops } => return child(&work, ops),
    }
    report.finish()
}

fn list() {
    Work::ALL.iter().for_each(|work| println!("{}", work.name()));
    compare::works::Work::all().iter().for_each(|work| println!("{}", work.name()));
    compare::qcow2::names().iter().for_each(|name| println!("{name}"));
    compare::jobs::names().iter().for_each(|name| println!("{name}"));
    img::names().iter().for_each(|name| println!("{name}"));
    fuse::Work::all().iter().for_each(|work| println!("{}", work.name()));
    nbd_client::names().iter().for_each(|name| println!("{name}"));
    rbd::Work::all().iter().for_each(|work| println!("{}", work.name()));
    for protocol in [Protocol::Nbd, Protocol::VhostUser] {
        served::works::Work::all(protocol).iter().for_each(|work| println!("{}", work.name()));
    }
}

fn micro_options(arguments: &MicroArgs, plan: &Plan) -> io::Result<micro::Options> {
    let works = wanted(Work::ALL.to_vec(), &arguments.only, |work| work.name().to_owned())?;
    let idle = arguments.idle.unwrap_or(if plan.quick { 0.2 } else { 5.0 });
    let idle = Duration::try_from_secs_f64(idle)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| io::Error::other("--idle must be a positive number of seconds"))?;
    Ok(micro::Options { works, suspended: arguments.suspended, idle })
}

fn child(work: &str, ops: u64) -> io::Result<()> {
    if work == "suspended" {
        return micro::suspended_child(ops);
    }
    match Work::by_name(work) {
        Some(work) => micro::run_alone(work, ops),
        None => compare::qcow2::run_alone(work, ops),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let cli = Cli::parse_from(["coblk-bench", "micro", "--quick", "--json", "--only", "null"]);
        assert!(cli.quick && cli.json);
        let Command::Micro(arguments) = cli.command else { panic!("not micro") };
        let options = micro_options(&arguments, &Plan::new(true, None)).unwrap();
        assert_eq!(options.works.len(), 6);
        assert!(Cli::try_parse_from(["coblk-bench", "--rounds", "0", "micro"]).is_err());
    }
}
