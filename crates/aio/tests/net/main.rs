//! Addresses, listeners, acceptors and streams.

mod accept;
mod inet;
mod paths;
mod peers;
mod signals;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use coblk_aio::net::{Listener, SocketAddress};

/// Whether this is a process for the test `name` alone. If not, runs the test in one, below the shell
/// command `before`, and fails if it does.
fn is_alone(name: &str, before: &str) -> bool {
    const ALONE: &str = "COBLK_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let ran = std::process::Command::new("sh")
        .args(["-c", &format!("{before} && exec \"$0\" --exact \"$1\" --nocapture")])
        .args([own.as_os_str(), name.as_ref()])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(ran.status.success() && said[0].contains("1 passed"), "{}\n{}", said[0], said[1]);
    false
}

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
