//! Sockets that have a name in the file system.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, io};

/// Listens at `path`. A socket that a dead process has left there is replaced; whatever else is there
/// stays. Does not block. Any thread.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] if a process listens at `path`, or if there is something that is no
/// socket; and what the system says.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_over(path)? => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Whether there is a socket at `path` at which nobody listens.
fn is_left_over(path: &Path) -> Result<bool, Error> {
    // To connect to what is no socket is refused as well.
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    // The standard library's would wait, without end, for somebody alive whose queue is full.
    let connected = mio::net::UnixStream::connect(path);
    Ok(connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_at_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind_unix(&path).unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        let second = bind_unix(&path).unwrap();
        UnixStream::connect(&path).unwrap().write_all(b"x").unwrap();
        drop(second);
    }

    #[test]
    fn a_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, "data").unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn nobody_waits_for_a_listener_whose_queue_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _stuck = bind_unix(&path).unwrap();
        let mut clients = Vec::new();
        while let Ok(client) = mio::net::UnixStream::connect(&path) {
            clients.push(client);
        }
        assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    }
}
