//! `--daemonize`: the program starts itself again, in a session of its own, and waits until that one
//! serves (contract: C85). No process with threads is ever forked.
//!
//! ```text
//!   parent                                child, with the same arguments
//!   ------                                -----
//!   start(): spawn child, with a pipe     start(): finds PARENT set; a session of its own
//!            as its standard output                opens everything; errors go to the
//!   reads the pipe                                 standard error that both share
//!   one byte: exit 0        <--           tell_parent(): writes it, then lets go of
//!   no byte:  exit 1                               the terminal and of the directory
//! ```

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::Mode;

/// Set for the child: the pid of its parent.
const PARENT: &str = "COBLK_DAEMON_PARENT";
/// What the child says when it serves.
const READY: &[u8] = b"R";

/// Which process this is.
pub enum Started {
    /// The process stays as it is.
    Foreground,
    /// The daemon.
    Background,
    /// The one that has started the daemon, and now exits.
    Parent(ExitCode),
}

/// The pid of the process that has started this one as a daemon.
pub fn parent() -> Option<u32> {
    env::var(PARENT).ok()?.parse().ok()
}

/// Whether this process is a daemon that its parent waits for.
pub fn is_starting() -> bool {
    let own_parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    own_parent.is_some() && own_parent == parent().and_then(|pid| i32::try_from(pid).ok())
}

/// Becomes a daemon, or starts one and waits until it serves.
pub fn start() -> io::Result<Started> {
    // The variable alone could have come from anywhere.
    if is_starting() {
        rustix::process::setsid()?;
        // As QEMU's daemons: what they make is not for others.
        rustix::process::umask(Mode::WGRP | Mode::RWXO);
        return Ok(Started::Background);
    }
    let own = env::current_exe()?;
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut daemon = Command::new(own)
        .arg0(name)
        .args(arguments)
        .env(PARENT, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(pipe) = daemon.stdout.take() {
        pipe.take(READY.len() as u64).read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(Started::Parent(ExitCode::SUCCESS));
    }
    // It has said why; and it is not left behind.
    daemon.wait()?;
    Ok(Started::Parent(ExitCode::FAILURE))
}

/// Tells the parent that everything has started, and lets go of what the daemon has in common with
/// others.
pub fn tell_parent() -> io::Result<()> {
    env::set_current_dir(Path::new("/"))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut stdout = io::stdout();
    // A parent that is gone was killed, and waits no more.
    let _ = stdout.write_all(READY).and_then(|()| stdout.flush());
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
