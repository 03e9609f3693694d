//! The daemon as a process of its own, and how to ask about it.
// Not every test program uses all of it.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod both;
pub mod chain_script;
pub mod fake;
pub mod qmp;
pub mod servers;
pub mod stage;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coblk_tests::tools;
use rustix::process::{Pid, Signal, kill_process};

/// Whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Length of images.
pub const SIZE: u64 = 16 << 20;

/// A peer older than 10 refuses inactive nodes by the option's name, so there is nothing to compare with.
pub fn expect_no_inactive_nodes() {
    let output = tools::output(
        "timeout",
        ["10", "qemu-storage-daemon", "--blockdev", "null-co,node-name=f,active=off"],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Parameter 'active' is unexpected"), "{said}");
}

/// A directory with an image, for one daemon.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        File::create(dir.path().join("disk.img")).unwrap().set_len(SIZE).unwrap();
        Place { dir }
    }

    /// One whose files are in memory: syncs take no time.
    pub fn in_memory() -> Place {
        Place { dir: tempfile::tempdir_in("/dev/shm").expect("a tmpfs") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("nbd.sock")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.path("pid")
    }

    /// `@` stands for this directory in what is said to a daemon.
    pub fn fill_in(&self, argument: &str) -> String {
        argument.replace('@', tools::text(self.dir.path()))
    }

    /// A daemon with these arguments, cut at blanks.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coblk-storage-daemon"));
        command.args(arguments.split_whitespace().map(|it| self.fill_in(it)));
        command.stdin(Stdio::null()).env_remove("RUST_LOG");
        command
    }

    /// Runs one that is to end by itself.
    pub fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts one, and waits until it serves.
    pub fn start(&self, arguments: &str) -> Daemon {
        self.start_command(self.command(&format!("{arguments} --pidfile @/pid")))
    }

    /// Starts a command that writes the usual pid file, and waits until it serves.
    pub fn start_command(&self, mut command: Command) -> Daemon {
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut daemon = Daemon { child };
        let pid_file = self.pid_file();
        daemon.wait_until("the daemon serves", || {
            std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
        });
        daemon
    }

    /// The image, exported over NBD as "disk", writable.
    pub fn start_nbd(&self) -> Daemon {
        self.start(NBD)
    }

    /// Where clients find an export.
    pub fn uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", tools::text(&self.socket()))
    }

    /// An honest client is served.
    pub fn check(&self) {
        for command in ["write -P 7 4096 4096", "read -P 7 4096 4096"] {
            let said = tools::run("qemu-io", ["-f", "raw", "-c", command, &self.uri("disk")]);
            assert!(said.contains("4096/4096") && !said.contains("failed"), "{said}");
        }
    }
}

/// The image over NBD.
pub const NBD: &str = "--blockdev file,node-name=disk,filename=@/disk.img \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk,writable=on";

/// A daemon that runs. It is killed if the test fails.
pub struct Daemon {
    child: Child,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it says from now on; to be read.
    pub fn take_stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for something that the daemon does; fails if it ends instead.
    pub fn wait_until(&mut self, what: &str, condition: impl FnMut() -> bool) {
        let Daemon { child } = self;
        let mut condition = condition;
        wait_until(what, || {
            if condition() {
                return true;
            }
            if let Some(status) = child.try_wait().unwrap() {
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    stderr.read_to_string(&mut said).unwrap();
                }
                panic!("the daemon ended with {status}, and not: {what}\n{said}");
            }
            false
        });
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_until("the daemon ends", || child.try_wait().unwrap().is_some());
        child.wait().unwrap()
    }

    /// Ends it with a signal, and what it said.
    pub fn stop(self, signal: Signal) {
        self.signal(signal);
        let status = self.wait();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal. One that stops the process has stopped all of its threads on return.
pub fn kill(pid: u32, signal: Signal) {
    let process = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(process, signal).unwrap();
    if signal == Signal::STOP {
        wait_until("all threads are stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.flatten().all(|thread| {
                // One that has ended meanwhile does nothing either.
                let stat = std::fs::read_to_string(thread.path().join("stat"));
                stat.map_or(true, |stat| stat.rsplit(") ").next().unwrap().starts_with(['T', 'Z']))
            })
        });
    }
}

/// Waits for something that comes sooner or later.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Connects as soon as a server listens.
pub fn connect(socket: &Path) -> UnixStream {
    let mut stream = None;
    wait_until("somebody listens", || {
        stream = UnixStream::connect(socket).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// So many nodes that their daemon takes a while to start.
pub fn many_nodes() -> String {
    let node =
        |number| format!(" --blockdev file,node-name=n{number},filename=@/disk.img,read-only=on");
    (0..400).map(node).collect()
}

/// Starts a daemon, and connects to it before it has started: again, until that is so.
pub fn until_early(command: impl Fn(&Place) -> Command) -> (Place, Child, UnixStream) {
    for _ in 0..50 {
        let place = Place::new();
        let mut daemon = command(&place).spawn().unwrap();
        let client = connect(&place.socket());
        if !place.pid_file().exists() {
            return (place, daemon, client);
        }
        kill(daemon.id(), Signal::KILL);
        daemon.wait().unwrap();
    }
    panic!("the daemon is always faster");
}

/// What a program wrote to the standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a daemon has said so far, collected by a thread.
pub fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let said = Arc::new(Mutex::new(String::new()));
    let all = Arc::clone(&said);
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(bytes @ 1..) = from.read(&mut some) {
            all.lock().unwrap().push_str(&String::from_utf8_lossy(&some[..bytes]));
        }
    });
    said
}
