//! `--daemonize`: the exit status tells whether the start worked.

mod util;

use std::fs::read_link;
use std::path::Path;

use rustix::process::Signal;
use util::{NBD, Place, many_nodes, stderr, until_early, wait_until};

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
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
    for _ in 0..50 {
        let (place, mut parent, _client) = until_early(|place| {
            place.command(&format!("--daemonize {server}{} --pidfile @/pid", many_nodes()))
        });
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let child = std::fs::read_to_string(children).unwrap();
        // While it is stopped it can be seen whether it was in time.
        let Ok(child) = child.trim().parse() else { continue };
        util::kill(child, Signal::STOP);
        let in_time = !place.pid_file().exists();
        util::kill(child, Signal::TERM);
        util::kill(child, Signal::CONT);
        let status = parent.wait().unwrap();
        wait_until("the daemon ends", || !place.socket().exists());
        if in_time {
            assert_eq!(status.code(), Some(1));
            assert!(!place.pid_file().exists());
            return;
        }
    }
    panic!("the daemon is always faster");
}
