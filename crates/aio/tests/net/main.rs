//! Addresses, listeners, acceptors and streams.

mod accept;
mod inet;
mod paths;
mod peers;
mod signals;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use coblk_aio::net::{Listener, SocketAddress};

/// A directory, and a path in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    (dir, path)
}

fn bind(path: &std::path::Path) -> Result<Listener, std::io::Error> {
    Listener::bind(&SocketAddress::unix(path)).map_err(Into::into)
}

/// Whether a process listens at `path`.
fn is_served(path: &std::path::Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// The names in a directory.
fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).unwrap();
    entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
}
