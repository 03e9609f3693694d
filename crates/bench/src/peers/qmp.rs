//! qemu-storage-daemon, or ours, told what to do over QMP on its standard input and output.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::sys;

/// A daemon that runs; it is killed when this is dropped.
pub struct StorageDaemon {
    child: Child,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
    /// That were not waited for yet.
    events: VecDeque<Value>,
}

/// QEMU's.
pub const QEMU: &str = "qemu-storage-daemon";

impl StorageDaemon {
    /// Starts a program.
    ///
    /// # Errors
    /// If it is not installed, or does not answer.
    pub fn start(program: impl AsRef<Path>) -> io::Result<StorageDaemon> {
        let mut command = Command::new(program.as_ref());
        command.args(["--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        sys::end_with_this_thread(&mut command);
        let mut child = command.spawn()?;
        let (Some(commands), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut daemon = StorageDaemon {
            child,
            commands,
            replies: BufReader::new(replies),
            events: VecDeque::new(),
        };
        daemon.execute("qmp_capabilities", json!({}))?;
        Ok(daemon)
    }

    /// Executes a command, and returns what it returns.
    ///
    /// # Errors
    /// Why it has failed.
    pub fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        writeln!(self.commands, "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut reply = self.next()?;
            if let Some(error) = reply.get("error") {
                return Err(io::Error::other(format!("{command}: {error}")));
            }
            // Its greeting is no reply.
            if reply.get("return").is_some() {
                return Ok(reply["return"].take());
            }
            if reply.get("event").is_some() {
                self.events.push_back(reply);
            }
        }
    }

    /// Waits for an event, and forgets those before.
    ///
    /// # Errors
    /// If it is gone.
    pub fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> io::Result<()> {
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.next()?,
            };
            if is_it(&event) {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.replies.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// How often its threads have gone to sleep so far.
    ///
    /// # Errors
    /// If it is gone.
    pub fn sleeps(&self) -> io::Result<u64> {
        sys::sleeps_of(self.child.id())
    }

    /// CPU time of all its threads so far, in nanoseconds.
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        sys::cpu_ns_of(self.child.id())
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_executed() {
        // Where it is installed.
        let Ok(mut daemon) = StorageDaemon::start(QEMU) else { return };
        let null = json!({"driver": "null-co", "node-name": "null"});
        daemon.execute("blockdev-add", null.clone()).unwrap();
        let error = daemon.execute("blockdev-add", null).unwrap_err();
        assert!(error.to_string().contains("blockdev-add"), "{error}");
        assert!(daemon.cpu_ns().unwrap() > 0);
    }
}
