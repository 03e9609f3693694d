//! The command line: options in the order given, each of which is a call of a method of the daemon.

mod help;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;

use clap::{Arg, ArgAction, ArgMatches, Command};
use coblk::Co;

use crate::daemon::{Daemon, DaemonError};
use crate::logging::PROGRAM;
use crate::objects::ObjectTypes;
use crate::options::{MetricsOptions, from_argument};
use crate::trace_events;

/// What is to be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// Run the daemon.
    Run(CommandLine),
    /// Print a text, and exit.
    Print(String),
}

/// How the daemon is to run.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct CommandLine {
    /// What to do before it serves, in this order.
    pub jobs: Vec<Job>,
    /// `--daemonize`.
    pub daemonize: bool,
    /// `--dump-config`.
    pub dump_config: bool,
    /// `--pidfile`.
    pub pid_file: Option<PathBuf>,
    /// `--trace`, every one.
    pub trace: Vec<OsString>,
}

/// An option that makes something, with its text. It is read when its turn comes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Job {
    option: &'static str,
    text: OsString,
}

/// What an option does with its text.
type Perform = fn(&OsStr, &Rc<Daemon>, &Co<'_>) -> Result<(), DaemonError>;

/// The options that make something.
const JOBS: [(&str, Perform); 7] = [
    ("blockdev", |text, daemon, co| {
        daemon.blockdev_add(co, from_argument(text, "driver")?).map(drop)
    }),
    ("chardev", |text, daemon, co| daemon.chardev_add(co, from_argument(text, "backend")?)),
    ("export", |text, daemon, co| daemon.export_add(co, from_argument(text, "type")?)),
    ("metrics", |text, daemon, co| daemon.metrics_start(co, MetricsOptions::from_argument(text)?)),
    ("monitor", |text, daemon, co| daemon.monitor_add(co, &from_argument(text, "chardev")?)),
    ("nbd-server", |text, daemon, co| daemon.nbd_server_start(co, from_argument(text, "addr")?)),
    ("object", |text, daemon, co| daemon.object_add(co, from_argument(text, "qom-type")?)),
];

impl Job {
    /// An option, by its name, and its text. `None` if there is no such option.
    pub fn new(option: &str, text: impl Into<OsString>) -> Option<Job> {
        let (option, _) = JOBS.iter().find(|(name, _)| *name == option)?;
        Some(Job { option, text: text.into() })
    }

    /// Does it.
    ///
    /// # Errors
    /// What is wrong with the text, or cannot be done.
    pub fn perform(&self, daemon: &Rc<Daemon>, co: &Co<'_>) -> Result<(), DaemonError> {
        match JOBS.iter().find(|(name, _)| *name == self.option) {
            Some((_, perform)) => perform(&self.text, daemon, co),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} {}", self.option, self.text.display())
    }
}

/// Why a command line cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CommandLineError(String);

/// Reads a command line, whose first argument is the program's name, for a daemon with these types of
/// objects.
///
/// # Errors
/// If there is an option that is unknown, or lacks its text.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    types: &ObjectTypes,
) -> Result<Request, CommandLineError> {
    let matches = command().try_get_matches_from(arguments).map_err(|error| {
        let text = error.to_string();
        CommandLineError(text.trim_start_matches("error: ").trim_end().to_owned())
    })?;
    if matches.get_flag("help") {
        return Ok(Request::Print(help::HELP.to_owned()));
    }
    if matches.get_flag("version") {
        return Ok(Request::Print(format!("{PROGRAM} version {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let trace = matches.get_many("trace").into_iter().flatten().cloned();
    let trace: Vec<OsString> = trace.collect();
    if trace.iter().any(|text| text == "help" || text == "?") {
        return Ok(Request::Print(trace_events::list()));
    }
    let jobs = jobs(&matches);
    if let Some(text) = jobs.iter().find_map(|job| help::of(job, types)) {
        return Ok(Request::Print(text));
    }
    Ok(Request::Run(CommandLine {
        jobs,
        // What is printed is to be seen.
        daemonize: matches.get_flag("daemonize") && !matches.get_flag("dump-config"),
        dump_config: matches.get_flag("dump-config"),
        pid_file: matches.get_one::<PathBuf>("pidfile").cloned(),
        trace,
    }))
}

fn command() -> Command {
    let text = |name: &'static str| {
        let text = Arg::new(name).long(name).action(ArgAction::Append);
        text.value_parser(clap::value_parser!(OsString))
    };
    let flag = |name: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue);
    let path = Arg::new("pidfile").long("pidfile").value_parser(clap::value_parser!(PathBuf));
    Command::new(PROGRAM)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .override_usage(format!("{PROGRAM} [options]"))
        // As getopt_long takes them.
        .infer_long_args(true)
        .args(JOBS.map(|(name, _)| text(name)))
        .arg(text("trace").short('T'))
        .arg(flag("help").short('h'))
        .arg(flag("version").short('V'))
        .arg(flag("daemonize").overrides_with("daemonize"))
        .arg(flag("dump-config").overrides_with("dump-config"))
        .arg(path.overrides_with("pidfile"))
}

fn jobs(matches: &ArgMatches) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (option, _) in JOBS {
        let places = matches.indices_of(option).into_iter().flatten();
        let texts = matches.get_many::<OsString>(option).into_iter().flatten();
        let of_option = texts.map(|text| Job { option, text: text.clone() });
        jobs.extend(places.zip(of_option));
    }
    jobs.sort_by_key(|(place, _)| *place);
    jobs.into_iter().map(|(_, job)| job).collect()
}

/// Options as lines of a shell.
pub fn to_shell(options: &[(&'static str, OsString)]) -> Vec<u8> {
    let is_plain = |it: &u8| it.is_ascii_alphanumeric() || b"-_=.,:/@%+".contains(it);
    let mut lines = PROGRAM.as_bytes().to_vec();
    for (name, text) in options {
        lines.extend_from_slice(format!(" \\\n    --{name} ").as_bytes());
        let text = text.as_bytes();
        if !text.is_empty() && text.iter().all(is_plain) {
            lines.extend_from_slice(text);
            continue;
        }
        let parts: Vec<&[u8]> = text.split(|it| *it == b'\'').collect();
        lines.push(b'\'');
        lines.extend(parts.join(b"'\\''".as_slice()));
        lines.push(b'\'');
    }
    lines.push(b'\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types() -> ObjectTypes {
        ObjectTypes::default()
    }

    fn run(arguments: &[&str]) -> CommandLine {
        let arguments = [&["coblk-storage-daemon"], arguments].concat();
        match parse(arguments.into_iter().map(OsString::from), &types()).unwrap() {
            Request::Run(line) => line,
            Request::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn c84_options_keep_their_order() {
        let line = run(&[
            "--object",
            "a",
            "--blockdev",
            "b",
            "--export=c",
            "--blockdev",
            "d",
            "--nbd-server",
            "e",
        ]);
        let jobs: Vec<String> = line.jobs.iter().map(Job::to_string).collect();
        let expected =
            ["--object a", "--blockdev b", "--export c", "--blockdev d", "--nbd-server e"];
        assert_eq!(jobs, expected);
    }

    #[test]
    fn names_may_be_cut_short() {
        let line = run(&["--pid", "x", "--daemon", "--block", "", "-T", "a*", "--trace", "b"]);
        assert_eq!(line.pid_file.as_deref(), Some("x".as_ref()));
        assert!(line.daemonize);
        assert_eq!(line.jobs, [Job::new("blockdev", "").unwrap()]);
        assert_eq!(line.trace, ["a*", "b"]);
    }

    #[test]
    fn options_are_quoted_for_a_shell() {
        let options =
            [("blockdev", "null-co,node-name=a".into()), ("object", OsString::from("it's"))];
        let expected = "coblk-storage-daemon \\\n    --blockdev null-co,node-name=a \\\n    \
                        --object 'it'\\''s'\n";
        assert_eq!(to_shell(&options), expected.as_bytes());
    }

    #[test]
    fn what_is_unknown_is_named() {
        for (arguments, named) in
            [(&["--frob"][..], "--frob"), (&["frob"], "frob"), (&["--export"], "--export")]
        {
            let arguments = [&["coblk-storage-daemon"], arguments].concat();
            let error = parse(arguments.into_iter().map(OsString::from), &types());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
