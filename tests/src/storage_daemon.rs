//! [`StorageDaemon`]: the program `coblk-storage-daemon`, running.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{ffi::OsStr, thread};

use crate::tools;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that serves, in a directory of its own. Killed with the value, if it was not
/// [stopped](Self::stop).
pub struct StorageDaemon {
    /// Where its files are.
    pub dir: PathBuf,
    /// It, or what it runs in.
    child: Child,
}

impl StorageDaemon {
    /// Starts `program`, in `wrapper`, which may be empty, and waits until it serves. In arguments
    /// `DIR` stands for `dir`.
    #[track_caller]
    pub fn start(program: &Path, dir: &Path, wrapper: &[&str], args: &[&str]) -> StorageDaemon {
        let place = tools::text(dir);
        let pid_file = dir.join("pid");
        let mut words: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        words.push(tools::text(program).to_owned());
        words.extend(args.iter().map(|word| word.replace("DIR", place)));
        words.extend(["--pidfile".to_owned(), tools::text(&pid_file).to_owned()]);
        let log = File::create(dir.join("log")).expect("a log");
        let mut command = tools::command(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let mut daemon = StorageDaemon { dir: dir.to_owned(), child };
        let ended = |daemon: &mut StorageDaemon| daemon.child.try_wait().expect("its status");
        let give_up = Instant::now() + PATIENCE;
        while fs::read(&pid_file).unwrap_or_default().is_empty() {
            if let Some(status) = ended(&mut daemon) {
                panic!("{words:?} has ended with {status}: {}", daemon.log());
            }
            assert!(Instant::now() < give_up, "{words:?} does not serve: {}", daemon.log());
            thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("its log")
    }

    /// Its process number.
    pub fn pid(&self) -> String {
        fs::read_to_string(self.dir.join("pid")).expect("its pid file").trim().to_owned()
    }

    /// The socket of its NBD server.
    pub fn nbd_socket(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }

    /// What its metrics say. Needs `--metrics unix:DIR/metrics.sock`.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let socket = self.dir.join("metrics.sock");
        let args = ["-sS", "--fail", "--max-time", "20", "--unix-socket", tools::text(&socket)];
        let page = tools::run("curl", [&args[..], &["http://daemon/metrics"]].concat());
        assert!(page.ends_with("# EOF\n"), "{page}");
        Metrics(page)
    }

    /// Tells it to end, which it does, in order.
    #[track_caller]
    pub fn stop(mut self) {
        tools::run("kill", ["-TERM", &self.pid()]);
        let give_up = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                break status;
            }
            assert!(Instant::now() < give_up, "it does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        // What it runs in ends with it.
        if let Ok(pid) = fs::read_to_string(self.dir.join("pid")) {
            let _ =
                tools::command("kill").args([OsStr::new("-KILL"), pid.trim().as_ref()]).status();
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// What a daemon's metrics said at a moment.
pub struct Metrics(pub String);

impl Metrics {
    /// The number behind a name with its labels, all in the order of the page.
    #[track_caller]
    pub fn number(&self, name: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let number = line.unwrap_or_else(|| panic!("no {name} in:\n{}", self.0));
        number.parse().expect("a number")
    }
}

/// Waits for something that must become true, and panics if it does not.
#[track_caller]
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < give_up, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
