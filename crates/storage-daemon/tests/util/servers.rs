//! NBD servers that a node is opened on: the daemon's own, and other people's.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use rustix::process::Signal;

use super::{kill, wait_until};

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Own,
    QemuNbd,
    Nbdkit,
}

pub const PROGRAMS: [Program; 3] = [Program::Own, Program::QemuNbd, Program::Nbdkit];

/// A server of an image, at a unix socket. It is killed if the test fails.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
}

impl Server {
    /// Serves `image`, writable, as "disk".
    pub fn start(program: Program, image: &Path, socket: &Path) -> Server {
        let (image, path) = (tools::text(image), tools::text(socket));
        let command = match program {
            Program::Own => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_coblk-storage-daemon"));
                command.args(["--blockdev", &format!("file,node-name=disk,filename={image}")]);
                command.args(["--nbd-server", &format!("addr.type=unix,addr.path={path}")]);
                command.args(["--export", "nbd,id=e0,node-name=disk,writable=on"]);
                command
            }
            Program::QemuNbd => {
                let mut command = tools::command("qemu-nbd");
                command.args(["-t", "-f", "raw", "-e", "8", "-x", "disk", "-k", path, image]);
                command
            }
            Program::Nbdkit => {
                let mut command = tools::command("nbdkit");
                command.args(["-f", "-U", path, "file", image]);
                command
            }
        };
        Server::run(command, socket)
    }

    /// Runs a command that listens at a socket, and waits until it does.
    pub fn run(mut command: Command, socket: &Path) -> Server {
        // What a server that was killed has left.
        let _ = std::fs::remove_file(socket);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let server = Server { child, socket: socket.to_owned() };
        // A client that goes before it is greeted is more than some servers expect.
        wait_until("the server greets", || {
            UnixStream::connect(socket).is_ok_and(|mut it| it.read_exact(&mut [0; 18]).is_ok())
        });
        server
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    /// Kills it, and sees it dead.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
