//! The life of the process: what is said on the command line is done in its order, then it serves,
//! and ends in order.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use coblk::AioContext;
use coblk::aio::DEFAULT_POLL_MAX;

use crate::command_line::{self, CommandLine, Request};
use crate::daemon::{Daemon, DaemonError};
use crate::daemonize::{self, Started};
use crate::pid_file::{PidFile, PidFileError};
use crate::{logging, signals};

/// The name before messages.
pub const PROGRAM: &str = "coblk-storage-daemon";

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An option of the command line cannot be done.
    #[error("{argument}: {source}")]
    Job {
        /// The option, as it was given.
        argument: String,
        /// Why.
        source: DaemonError,
    },
    /// The pid file cannot be written.
    #[error("cannot create PID file: {0}")]
    PidFile(#[from] PidFileError),
    /// The process cannot be set up.
    #[error("{what}: {source}")]
    System {
        /// What is missing.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match command_line::parse(arguments) {
        Ok(Request::Run(line)) => line,
        Ok(Request::Print(text)) => {
            return match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(source) => failed(&StartError::System { what: "cannot print", source }),
            };
        }
        Err(error) => return failed(&error),
    };
    let started = if line.daemonize { daemonize::start() } else { Ok(Started::Foreground) };
    match started {
        Ok(Started::Parent(code)) => return code,
        Ok(Started::Foreground | Started::Background) => {}
        Err(source) => return failed(&StartError::System { what: "cannot daemonize", source }),
    }
    if let Err(error) = logging::start(&line.trace) {
        return failed(&error);
    }
    match serve(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: {error}");
    ExitCode::FAILURE
}

fn serve(line: &CommandLine) -> Result<(), StartError> {
    let no_loop = |source| StartError::System { what: "cannot make an event loop", source };
    let ctx =
        AioContext::builder().name("main").poll_max(DEFAULT_POLL_MAX).build().map_err(no_loop)?;
    let daemon = Daemon::new(&ctx);
    let _signals = signals::watch(&ctx, &daemon)
        .map_err(|source| StartError::System { what: "cannot watch for signals", source })?;
    let served = set_up(&ctx, &daemon, line).and_then(|pid_file| {
        if line.dump_config {
            let text = command_line::to_shell(&daemon.configuration());
            std::io::stdout()
                .write_all(text.as_bytes())
                .map_err(|source| StartError::System { what: "cannot print", source })?;
        } else if daemon.quit_cause().is_none() {
            if line.daemonize {
                daemonize::tell_parent()
                    .map_err(|source| StartError::System { what: "cannot daemonize", source })?;
            }
            daemon.begin();
            ctx.run_until(|| daemon.quit_cause().is_some());
        }
        // It goes when everything else has.
        Ok(pid_file)
    });
    ctx.run(|co| daemon.co_shutdown(co));
    served.map(drop)
}

/// Does what the command line says, in its order, and writes the pid file. Stops where it is when it
/// is told to end.
fn set_up(
    ctx: &AioContext,
    daemon: &std::rc::Rc<Daemon>,
    line: &CommandLine,
) -> Result<Option<PidFile>, StartError> {
    for job in &line.jobs {
        // A signal may have come meanwhile.
        ctx.poll(false);
        if daemon.quit_cause().is_some() {
            return Ok(None);
        }
        ctx.run(|co| job.perform(daemon, co)).map_err(|source| {
            StartError::Job { argument: job.to_string(), source } //
        })?;
    }
    Ok(line.pid_file.as_deref().map(PidFile::create).transpose()?)
}
