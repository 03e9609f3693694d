//! The order of what is done at the start, and the pid file.

mod util;

use std::io::Read;

use coblk_tests::tools;
use rustix::process::Signal;
use util::{NBD, Place, many_nodes, stderr, until_early, wait_until};

#[test]
fn c84_options_apply_in_the_order_given() {
    let place = Place::new();
    let [node, server, export] = [
        "--blockdev file,node-name=disk,filename=@/disk.img",
        "--nbd-server addr.type=unix,addr.path=@/nbd.sock",
        "--export nbd,id=e0,node-name=disk",
    ];
    for (arguments, said) in [
        (format!("{export} {node} {server}"), "Cannot find device='' nor node-name='disk'"),
        (format!("{server} {export} {node}"), "Cannot find device='' nor node-name='disk'"),
        (format!("{node} {export} {server}"), "NBD server not running"),
    ] {
        let output = place.output(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert!(!place.socket().exists(), "{arguments}");
    }
    let thread = "--object iothread,id=t0 --object throttle-group,id=g0,limits.iops-total=100000";
    let limited = "--blockdev throttle,node-name=slow,throttle-group=g0,file=disk";
    let daemon = place.start(&format!("{thread} {node} {limited} {server} {export}"));
    daemon.stop(Signal::TERM);
}

/// Clients that are early wait; when they are let in, everything is there.
#[test]
fn c84_the_pid_file_appears_after_the_exports_and_before_it_serves() {
    let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
    let disk = "--blockdev file,node-name=disk,filename=@/disk.img \
                --export nbd,id=e0,node-name=disk,writable=on";
    let (place, mut daemon, mut early) = until_early(|place| {
        let nodes = many_nodes();
        place.command(&format!("{server}{nodes} {disk} --pidfile @/pid"))
    });
    let mut greeting = [0; 18];
    early.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    let pid = std::fs::read_to_string(place.pid_file()).expect("the pid file comes first");
    assert_eq!(pid, format!("{}\n", daemon.id()));
    place.check();
    util::kill(daemon.id(), Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(!place.pid_file().exists() && !place.socket().exists());
}

#[test]
fn c84_the_pid_file_is_locked_and_a_second_daemon_is_refused() {
    let place = Place::new();
    let first = place.start_nbd();
    for _ in 0..2 {
        let second = place.output("--blockdev null-co,node-name=n --pidfile @/pid");
        assert_eq!(second.status.code(), Some(1));
        assert!(stderr(&second).contains("another daemon has it"), "{}", stderr(&second));
        let pid = std::fs::read_to_string(place.pid_file()).unwrap();
        assert_eq!(pid, format!("{}\n", first.pid()));
    }
    place.check();
    first.stop(Signal::TERM);
    assert!(!place.pid_file().exists());
}

#[test]
fn c84_a_pid_file_that_was_left_behind_is_taken_over_and_nothing_else_is() {
    let place = Place::new();
    let killed = place.start_nbd();
    killed.signal(Signal::KILL);
    assert!(!killed.wait().success());
    assert!(place.pid_file().exists() && place.socket().exists(), "nobody removed them");
    std::fs::write(place.pid_file(), "4194304000\n").unwrap();
    let command = place.command(&format!("{NBD} --pidfile @/pid"));
    let next = place.start_command(command);
    let own = format!("{}\n", next.pid());
    wait_until("the pid file is its own", || {
        std::fs::read_to_string(place.pid_file()).unwrap() == own
    });
    place.check();
    next.stop(Signal::TERM);

    std::fs::write(place.path("notes"), "not a number\n").unwrap();
    let refused = place.output("--pidfile @/notes");
    assert!(stderr(&refused).contains("is not a pid file"), "{}", stderr(&refused));
    assert_eq!(std::fs::read_to_string(place.path("notes")).unwrap(), "not a number\n");
    let refused = place.output("--pidfile @/disk.img");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(std::fs::metadata(place.image()).unwrap().len(), util::SIZE);

    // A FIFO without a writer, and a socket.
    let fifo = place.path("fifo");
    assert!(tools::command("mkfifo").arg(&fifo).status().unwrap().success());
    let _listener = std::os::unix::net::UnixListener::bind(place.path("listener")).unwrap();
    for name in ["fifo", "listener"] {
        let refused = place.output(&format!("--pidfile @/{name}"));
        assert_eq!(refused.status.code(), Some(1), "{name}");
        assert!(place.path(name).exists(), "{name} is gone");
    }
}

#[test]
fn what_is_no_socket_is_not_replaced_by_one() {
    let place = Place::new();
    std::fs::write(place.path("precious"), "data").unwrap();
    for socket in [
        "--nbd-server addr.type=unix,addr.path=@/precious",
        "--export vhost-user-blk,id=v,node-name=n,addr.type=unix,addr.path=@/precious",
        "--chardev socket,id=c,path=@/precious,server=on,wait=off --monitor c",
        "--metrics unix:@/precious",
    ] {
        let refused = place.output(&format!("--blockdev null-co,node-name=n {socket}"));
        assert_eq!(refused.status.code(), Some(1), "{socket}");
        assert_eq!(std::fs::read_to_string(place.path("precious")).unwrap(), "data", "{socket}");
    }
}

#[test]
fn what_cannot_be_printed_is_an_error_and_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let place = Place::new();
    let mut command = place.command("--help");
    let status = command.stdout(full).stderr(std::process::Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
