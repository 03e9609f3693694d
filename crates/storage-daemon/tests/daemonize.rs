//! `--daemonize`: the exit status tells whether the start worked.

mod util;

use std::fs::read_link;
use std::path::Path;

use rustix::process::Signal;
use util::{NBD, Place, stderr, wait_until};

#[test]
fn c85_daemonize_exits_once_the_daemon_serves() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT] {
        let output = place.output(&format!("{NBD} --pidfile @/pid --daemonize"));
        assert!(output.status.success(), "{}", stderr(&output));
        // No waiting: it serves already.
        let pid: u32 = std::fs::read_to_string(place.pid_file()).unwrap().trim().parse().unwrap();
        place.check();
        let process = format!("/proc/{pid}");
        let link = |name: &str| read_link(Path::new(&process).join(name)).unwrap();
        assert_eq!(link("cwd"), Path::new("/"));
        for descriptor in ["fd/0", "fd/1", "fd/2"] {
            assert_eq!(link(descriptor), Path::new("/dev/null"), "{descriptor}");
        }
        let stat = std::fs::read_to_string(format!("{process}/stat")).unwrap();
        // After the name: state, parent, group, session.
        let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
        assert_eq!(session, pid.to_string(), "a session of its own");
        util::kill(pid, signal);
        wait_until("the daemon ends", || !place.pid_file().exists());
        assert!(!place.socket().exists(), "it is removed before the pid file");
    }
}

#[test]
fn c85_daemonize_fails_with_the_message_if_the_daemon_does_not_start() {
    let place = Place::new();
    for (arguments, said) in [
        ("--daemonize --blockdev file,node-name=d,filename=@/nothing --pidfile @/pid", "nothing"),
        ("--daemonize --pidfile @/disk.img/pid", "cannot create PID file"),
        ("--daemonize --frob", "--frob"),
    ] {
        let output = place.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        let text = stderr(&output);
        assert!(text.contains(said) && text.contains("coblk-storage-daemon: "), "{text}");
        assert!(!place.pid_file().exists());
    }
}

/// A daemon that was told to end while it started did not start.
#[test]
fn c85_daemonize_fails_if_the_daemon_is_ended_during_the_start() {
    let place = Place::new();
    let nodes: String = (0..1000)
        .map(|number| {
            format!(" --blockdev file,node-name=n{number},filename=@/disk.img,read-only=on")
        })
        .collect();
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
    let mut parent =
        place.command(&format!("--daemonize {server}{nodes} --pidfile @/pid")).spawn().unwrap();
    drop(util::connect(&place.socket()));
    let children = format!("/proc/{0}/task/{0}/children", parent.id());
    let child = std::fs::read_to_string(children).unwrap();
    util::kill(child.trim().parse().unwrap(), Signal::TERM);
    assert_eq!(parent.wait().unwrap().code(), Some(1));
    assert!(!place.pid_file().exists() && !place.socket().exists());
}
