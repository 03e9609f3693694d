//! The command line, and the life of the process.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use coblk::{AioContext, Co};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::commands::{self, Tool};
use crate::failure::Failure;
use crate::image::Images;
use crate::interrupt::Interrupt;
use crate::output;

/// The name before messages.
const PROGRAM: &str = "coblk-img";

/// Makes, converts, compares and checks disk images.
///
/// Commands, options and exit codes are those of qemu-img.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, infer_long_args = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Amend(commands::amend::Amend),
    Bench(commands::bench::Bench),
    Bitmap(commands::bitmap::Bitmap),
    Check(commands::check::Check),
    Commit(commands::commit::Commit),
    Compare(commands::compare::Compare),
    Convert(commands::convert::Convert),
    Create(commands::create::Create),
    Dd(commands::dd::Dd),
    Info(commands::info::Info),
    Map(commands::map::Map),
    Measure(commands::measure::Measure),
    Rebase(commands::rebase::Rebase),
    Resize(commands::resize::Resize),
    Snapshot(commands::snapshot::Snapshot),
}

impl Command {
    /// What `--object` has, each time.
    fn objects(&self) -> &[OsString] {
        match self {
            Command::Amend(it) => &it.named.objects.objects,
            Command::Bench(it) => &it.named.objects.objects,
            Command::Bitmap(it) => &it.objects.objects,
            Command::Check(it) => &it.named.objects.objects,
            Command::Commit(it) => &it.named.objects.objects,
            Command::Compare(it) => &it.objects.objects,
            Command::Convert(it) => &it.objects.objects,
            Command::Create(it) => &it.objects.objects,
            Command::Dd(it) => &it.named.objects.objects,
            Command::Info(it) => &it.named.objects.objects,
            Command::Map(it) => &it.named.objects.objects,
            Command::Measure(it) => &it.named.objects.objects,
            Command::Rebase(it) => &it.named.objects.objects,
            Command::Resize(it) => &it.named.objects.objects,
            Command::Snapshot(it) => &it.named.objects.objects,
        }
    }

    fn co_run(&self, tool: &Tool<'_, '_>) -> Result<(), Failure> {
        match self {
            Command::Amend(amend) => amend.co_run(tool),
            Command::Bench(bench) => bench.co_run(tool),
            Command::Bitmap(bitmap) => bitmap.co_run(tool),
            Command::Check(check) => check.co_run(tool),
            Command::Commit(commit) => commit.co_run(tool),
            Command::Compare(compare) => compare.co_run(tool),
            Command::Convert(convert) => convert.co_run(tool),
            Command::Create(create) => create.co_run(tool),
            Command::Dd(dd) => dd.co_run(tool),
            Command::Info(info) => info.co_run(tool),
            Command::Map(map) => map.co_run(tool),
            Command::Measure(measure) => measure.co_run(tool),
            Command::Rebase(rebase) => rebase.co_run(tool),
            Command::Resize(resize) => resize.co_run(tool),
            Command::Snapshot(snapshot) => snapshot.co_run(tool),
        }
    }
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return end_of_parsing(&error),
    };
    start_log();
    let interrupt = match Interrupt::listen() {
        Ok(interrupt) => interrupt,
        Err(error) => return failed(&Failure::new(format!("cannot listen to signals: {error}"))),
    };
    let ctx = match AioContext::builder().name("main").build() {
        Ok(ctx) => ctx,
        Err(error) => return failed(&Failure::new(format!("cannot make an event loop: {error}"))),
    };
    let result = ctx.run(|co| run(co, &cli.command, &interrupt));
    let code = match &result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(failure),
    };
    if result.is_err() {
        interrupt.end_process();
    }
    code
}

fn run(co: &Co<'_>, command: &Command, interrupt: &Interrupt) -> Result<(), Failure> {
    let images = Images::new();
    let tool = Tool { co, images: &images, interrupt };
    let made = commands::objects::co_make(&tool, command.objects());
    let result = made.and_then(|()| command.co_run(&tool));
    // After a failure, too: what is in memory belongs to the images.
    let closed = images.co_close_all(co);
    result.and(closed)
}

/// Help and versions are printed, and are no error.
fn end_of_parsing(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            match output::print(&error.render().to_string()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error.into()),
            }
        }
        _ => {
            let text = error.render().to_string();
            failed(&Failure::new(text.trim_start_matches("error: ").trim_end()))
        }
    }
}

fn failed(failure: &Failure) -> ExitCode {
    if let Some(text) = failure.text() {
        // The reader may have gone.
        let _ = writeln!(std::io::stderr(), "{PROGRAM}: {text}");
        if failure.is_usage {
            let _ = writeln!(std::io::stderr(), "Try '{PROGRAM} --help'");
        }
    }
    ExitCode::from(failure.code)
}

/// Warnings and errors of the layers go to the standard error.
fn start_log() {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Another subscriber is there in a program of tests.
    let _ =
        log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init();
}
