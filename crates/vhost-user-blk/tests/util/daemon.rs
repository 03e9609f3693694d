//! An export in a process of its own: the test program, started again with a variable set.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coblk_aio::AioContext;
use coblk_block::{BlockNode, drivers};
use coblk_vhost_user_blk::{VhostUserBlk, VhostUserBlkOptions};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Where the daemon finds its image and its socket.
const DAEMON: &str = "COBLK_VHOST_DAEMON";

/// What the test `daemon` does: nothing, unless [`start`] has started the program. Then it serves
/// until it is killed.
pub fn run_if_asked() {
    let Ok(directory) = std::env::var(DAEMON) else { return };
    let directory = Path::new(&directory);
    let ctx = AioContext::for_test().unwrap();
    let image = drivers::File::options().open(directory.join("disk")).unwrap();
    let node = BlockNode::new("disk", image);
    let socket = directory.join("vhost.sock");
    let _export =
        VhostUserBlk::listen(&ctx, socket, &node, VhostUserBlkOptions::default()).unwrap();
    println!("\nready {}", std::process::id());
    ctx.run_until(|| false);
}

/// The daemon, until it is dropped.
pub struct Daemon {
    /// It, or what wraps it.
    child: Child,
    pid: Pid,
}

impl Daemon {
    /// Starts it, under the command `wrapper` if that is not empty.
    pub fn start(directory: &Path, wrapper: &[&str]) -> Daemon {
        let program = std::env::current_exe().unwrap();
        let mut words = wrapper.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .args(["--exact", "daemon", "--nocapture"])
            .env(DAEMON, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().find_map(|line| {
            let pid = line.unwrap().strip_prefix("ready ")?.parse().unwrap();
            Pid::from_raw(pid)
        });
        Daemon { child, pid: ready.expect("the daemon does not start") }
    }

    /// Stops all of its threads, and returns when they stand. Not of one in a wrapper.
    pub fn pause(&self) {
        kill_process(self.pid, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(self.pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    pub fn go_on(&self) {
        kill_process(self.pid, Signal::CONT).unwrap();
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
}

impl Drop for Daemon {
    /// Kills it. A wrapper ends by itself then.
    fn drop(&mut self) {
        let _ = kill_process(self.pid, Signal::KILL);
        let _ = self.child.wait();
    }
}
