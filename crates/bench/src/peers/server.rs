//! Block servers, each in a process of its own: how they are started, watched and ended.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::sys;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where clients and servers run. They must not take each other's time: on a machine with two CPUs
/// each side has one.
#[derive(Clone, Debug)]
pub struct Places {
    all: Vec<usize>,
    /// How many of them are the client's, from the end; with 0, client and server share all.
    clients: usize,
}

impl Places {
    /// Places for a client with `clients` threads: it has at most half of the CPUs, the servers have
    /// the rest.
    ///
    /// # Errors
    /// If the kernel does not tell on which CPUs this process may run.
    pub fn new(clients: usize) -> io::Result<Places> {
        Ok(Places::among(sys::cpus()?, clients))
    }

    /// Everybody runs everywhere.
    ///
    /// # Errors
    /// As for [`Places::new`].
    pub fn any() -> io::Result<Places> {
        Ok(Places { all: sys::cpus()?, clients: 0 })
    }

    fn among(all: Vec<usize>, clients: usize) -> Places {
        let clients = clients.min(all.len() / 2);
        Places { all, clients }
    }

    /// Where servers run.
    pub fn servers(&self) -> &[usize] {
        &self.all[..self.all.len() - self.clients]
    }

    fn client(&self) -> &[usize] {
        if self.clients == 0 { &self.all } else { &self.all[self.all.len() - self.clients..] }
    }

    /// Puts the calling thread, and those it starts, where clients run.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn be_client(&self) -> io::Result<()> {
        sys::run_on(self.client())
    }

    /// Puts the calling thread where it was before.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn leave(&self) -> io::Result<()> {
        sys::run_on(&self.all)
    }
}

/// A running server; it is killed when this is dropped.
pub struct Server {
    child: Child,
    /// What it says on standard error.
    said: File,
}

impl Server {
    /// Starts a server.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(mut command: Command, places: &Places) -> io::Result<Server> {
        let said = tempfile::tempfile()?;
        // Some end when their standard input does.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(said.try_clone()?);
        sys::end_with_this_thread(&mut command);
        // A process begins where the thread is that starts it.
        sys::run_on(places.servers())?;
        let child = command.spawn();
        places.leave()?;
        let program = command.get_program().to_string_lossy();
        let child =
            child.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
        Ok(Server { child, said })
    }

    /// Tries to connect until that succeeds, as soon as there is a socket at `socket`.
    ///
    /// # Errors
    /// If it has ended before, with what it said, or does not answer.
    pub fn connect<C>(
        &mut self,
        socket: &Path,
        mut connect: impl FnMut(&Path) -> io::Result<C>,
    ) -> io::Result<C> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("{status}: {}", self.last_words()?)));
            }
            if socket.exists() {
                match connect(socket) {
                    Ok(client) => return Ok(client),
                    Err(error) if !is_early(&error) || Instant::now() > end => return Err(error),
                    Err(_) => {}
                }
            } else if Instant::now() > end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not listen"));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// It gets no time from now on, so that it takes none of others': one that spins would.
    ///
    /// # Errors
    /// If it is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// It goes on.
    ///
    /// # Errors
    /// If it is gone.
    pub fn go_on(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// CPU time of all its threads so far, in nanoseconds.
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        sys::cpu_ns_of(self.child.id())
    }

    fn last_words(&mut self) -> io::Result<String> {
        let mut said = Vec::new();
        self.said.rewind()?;
        (&self.said).take(4096).read_to_end(&mut said)?;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

/// Whether a server that is about to listen may make clients fail so.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Drop for Server {
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
    fn clients_have_at_most_half_of_the_cpus() {
        let two = Places::among(vec![4, 7], 1);
        assert_eq!((two.servers(), two.client()), (&[4][..], &[7][..]));
        let two_threads = Places::among(vec![0, 1], 2);
        assert_eq!((two_threads.servers(), two_threads.client()), (&[0][..], &[1][..]));
        let eight = Places::among((0..8).collect(), 2);
        assert_eq!((eight.servers(), eight.client()), (&[0, 1, 2, 3, 4, 5][..], &[6, 7][..]));
        let one = Places::among(vec![3], 2);
        assert_eq!((one.servers(), one.client()), (&[3][..], &[3][..]));
    }

    #[test]
    fn a_server_that_fails_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such disk >&2; exit 3"]);
        let mut server = Server::start(command, &Places::new(1).unwrap()).unwrap();
        let error = server.connect(Path::new("/nowhere"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("no such disk"), "{error}");
    }

    #[test]
    fn a_server_ends_with_its_value() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let server = Server::start(command, &Places::new(1).unwrap()).unwrap();
        let id = server.child.id();
        assert!(server.cpu_ns().is_ok());
        // It ends too if it is not running.
        server.pause().unwrap();
        drop(server);
        assert!(sys::cpu_ns_of(id).is_err());
        let none = Server::start(Command::new("/nowhere/server"), &Places::new(1).unwrap());
        assert!(none.err().unwrap().to_string().contains("/nowhere/server"));
    }
}
