//! Writing to a peer that is gone is an error and no signal.

use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use coblk_aio::net::Stream;

const CHILD: &str = "COBLK_TEST_SIGPIPE";

/// In a process whose SIGPIPE has its default, as a host program in C has it.
#[test]
fn a_peer_that_has_gone_is_an_error_in_a_process_that_sigpipe_would_end() {
    if std::env::var_os(CHILD).is_some() {
        return write_to_nowhere();
    }
    let name = "signals::a_peer_that_has_gone_is_an_error_in_a_process_that_sigpipe_would_end";
    let own = std::env::current_exe().unwrap();
    let ran =
        Command::new(own).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.signal(), None, "{said}");
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

fn write_to_nowhere() {
    // SAFETY: the handler of one signal becomes the default; nothing else is touched.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let one: &[IoSlice<'_>] = &[IoSlice::new(b"one")];
    let two: &[IoSlice<'_>] = &[IoSlice::new(b"one"), IoSlice::new(b"two")];
    for source in [one, two] {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let stream = Stream::from_fd(here).unwrap();
        drop(there);
        assert_eq!(stream.write(source).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

/// The same for what has no flag for it.
#[test]
fn a_pipe_whose_reader_has_gone_is_an_error_too() {
    if std::env::var_os(CHILD).is_none() {
        let own = std::env::current_exe().unwrap();
        let name = "signals::a_pipe_whose_reader_has_gone_is_an_error_too";
        let ran = Command::new(own)
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert_eq!(ran.status.signal(), None, "{said}");
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    // SAFETY: the handler of one signal becomes the default; nothing else is touched.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (reader, writer) = std::io::pipe().unwrap();
    let write = || coblk_aio::sys::write_without_sigpipe(writer.as_fd(), b"text");
    assert_eq!(write().unwrap(), 4);
    drop(reader);
    for _ in 0..2 {
        assert_eq!(write().unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
