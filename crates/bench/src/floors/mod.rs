//! Floors: the least that can do a work. A row's ratio to its floor says how much of its figure is
//! ours, and how much is the kernel's and the machine's.
//!
//! Those that serve run in a process of their own, as other servers do: `coblk-bench serve` is this
//! program once more. They check what they are sent, as a server must, and do nothing else.

pub mod hand_over;
mod input;
pub mod loopback;
pub mod nbd;
mod queues;
mod session;
pub mod store;
pub mod vhost_user;
mod virtqueue;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;

use crate::peers::programs::Protocol;
use store::Store;

/// How a floor waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It looks for work without end, and keeps a CPU busy: nothing answers sooner.
    Spinning,
    /// It sleeps in the kernel: nothing that has no work costs less.
    Blocking,
}

impl Wait {
    /// Both.
    pub const ALL: [Wait; 2] = [Wait::Spinning, Wait::Blocking];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Wait::Spinning => "spinning",
            Wait::Blocking => "blocking",
        }
    }
}

impl FromStr for Wait {
    type Err = String;

    fn from_str(word: &str) -> Result<Wait, String> {
        let found = Wait::ALL.into_iter().find(|wait| wait.name() == word);
        found.ok_or_else(|| format!("'{word}' is neither spinning nor blocking"))
    }
}

/// Arguments of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// What it speaks: nbd, vhost-user.
    protocol: Protocol,
    /// The unix socket to listen on.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How it waits for work: spinning, blocking.
    #[arg(long, default_value = "blocking")]
    wait: Wait,
    /// The image; a null device without one.
    #[arg(long, value_name = "PATH")]
    filename: Option<PathBuf>,
    /// Queues of a vhost-user device.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
}

/// Serves one client after the other, until the process is ended.
///
/// # Errors
/// If the image cannot be opened, or nothing can listen on the socket.
pub fn serve(arguments: &ServeArgs) -> io::Result<()> {
    let store = Arc::new(Store::open(arguments.filename.as_deref())?);
    let listener = UnixListener::bind(&arguments.socket)?;
    loop {
        let (stream, _) = listener.accept()?;
        let served = match arguments.protocol {
            Protocol::Nbd => nbd::serve(&stream, arguments.wait, &store),
            Protocol::VhostUser => {
                vhost_user::serve(stream, arguments.wait, &store, arguments.queues)
            }
        };
        if let Err(error) = served {
            eprintln!("coblk-bench: a client loses its connection: {error}");
        }
    }
}

/// What a client sent breaks the protocol.
fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for wait in Wait::ALL {
            assert_eq!(wait.name().parse(), Ok(wait));
        }
        assert!("sleeping".parse::<Wait>().is_err());
    }
}
