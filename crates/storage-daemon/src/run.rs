//! The life of the process: what is said on the command line is done in its order, then it serves,
//! and ends in order.

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use coblk::AioContext;

use crate::builder::DaemonBuilder;
use crate::command_line::{self, CommandLine, Job, Request};
use crate::daemon::{Daemon, DaemonError};
use crate::daemonize::{self, Started};
use crate::logging::{self, PROGRAM};
use crate::pid_file::{PidFile, PidFileError};
use crate::signals;
use crate::wait_mode::context_builder;

/// For how long calls that hold nothing are waited for.
const PATIENCE: Duration = Duration::from_secs(1);

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
        source: Box<DaemonError>,
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
    main_with(Daemon::builder(), arguments)
}

/// The same, with a daemon that has more than that of this crate.
pub fn main_with(
    builder: DaemonBuilder,
    arguments: impl IntoIterator<Item = OsString>,
) -> ExitCode {
    let line = match command_line::parse(arguments, builder.object_types()) {
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
    match serve(builder, &line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    // The reader may have gone.
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: {error}");
    ExitCode::FAILURE
}

fn serve(builder: DaemonBuilder, line: &CommandLine) -> Result<(), StartError> {
    let no_loop = |source| StartError::System { what: "cannot make an event loop", source };
    let context = context_builder().map_err(no_loop)?.name("main");
    let ctx = context.build().map_err(no_loop)?;
    let daemon = builder.build(&ctx);
    let _signals = signals::watch(&ctx, &daemon)
        .map_err(|source| StartError::System { what: "cannot watch for signals", source })?;
    if line.dump_config {
        daemon.wait_for_no_client();
    }
    let served = set_up(&ctx, &daemon, line).and_then(|pid_file| {
        if line.dump_config {
            let text = command_line::to_shell(&daemon.configuration());
            std::io::stdout()
                .write_all(&text)
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
    run_within(&ctx, PATIENCE, || ctx.coroutines().is_empty());
    let left = ctx.coroutines();
    let ended = served.map(drop);
    if left.is_empty() {
        return ended;
    }
    // Calls that do not come back: the context would wait for them.
    for coroutine in left {
        tracing::warn!("is left behind: {coroutine}");
    }
    let failed = ended.is_err();
    ended.err().into_iter().for_each(|error| {
        self::failed(&error);
    });
    std::process::exit(i32::from(failed))
}

/// Does one of them. `None` if a signal has come, and it is not done a second later: it may wait for a
/// disk that does not answer, and finds out when it comes back.
fn perform(ctx: &AioContext, daemon: &Rc<Daemon>, job: &Job) -> Option<Result<(), DaemonError>> {
    let done = Rc::new(RefCell::new(None));
    let (own_job, own_daemon, own_done) = (job.clone(), Rc::clone(daemon), Rc::clone(&done));
    ctx.spawn("start", move |co| {
        let result = own_job.perform(&own_daemon, co);
        own_done.replace(Some(result));
    });
    ctx.run_until(|| done.borrow().is_some() || daemon.quit_cause().is_some());
    run_within(ctx, PATIENCE, || done.borrow().is_some());
    done.take()
}

/// Polls until something is so, or the time is up.
fn run_within(ctx: &AioContext, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let is_over = Rc::new(Cell::new(false));
    let told = Rc::clone(&is_over);
    let timer = ctx.timer(move |_| told.set(true));
    timer.arm_after(limit);
    ctx.run_until(|| is_so() || is_over.get());
}

/// Does what the command line says, in its order, and writes the pid file. Stops where it is when it
/// is told to end.
fn set_up(
    ctx: &AioContext,
    daemon: &Rc<Daemon>,
    line: &CommandLine,
) -> Result<Option<PidFile>, StartError> {
    for job in &line.jobs {
        // A signal may have come meanwhile.
        ctx.try_poll();
        if daemon.quit_cause().is_some() {
            return Ok(None);
        }
        match perform(ctx, daemon, job) {
            Some(Ok(())) => {}
            None | Some(Err(DaemonError::ShuttingDown)) => return Ok(None),
            Some(Err(source)) => {
                return Err(StartError::Job {
                    argument: job.to_string(),
                    source: Box::new(source),
                });
            }
        }
    }
    Ok(line.pid_file.as_deref().map(PidFile::create).transpose()?)
}
