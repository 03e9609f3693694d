//! Character devices: stdio, sockets that wait for a client, and those that are not there.

mod util;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use rustix::process::Signal;
use util::qmp::Client;
use util::{Place, connect, kill, stderr, wait_until};

/// Says something to a monitor, and returns the next line that it says.
fn ask(input: &mut ChildStdin, output: &mut BufReader<ChildStdout>, text: &str) -> String {
    writeln!(input, "{text}").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

#[test]
fn a_monitor_speaks_on_the_standard_input_and_output() {
    for signal in ["", ",signal=off"] {
        let place = Place::new();
        let arguments = format!("--chardev stdio,id=c{signal} --monitor c");
        let mut command = place.command(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        let mut input = daemon.stdin.take().unwrap();
        let mut output = BufReader::new(daemon.stdout.take().unwrap());
        let mut greeting = String::new();
        output.read_line(&mut greeting).unwrap();
        assert!(greeting.contains("QMP"), "{greeting}");
        let empty = "{\"return\": {}}\r\n";
        assert_eq!(ask(&mut input, &mut output, r#"{"execute": "qmp_capabilities"}"#), empty);
        assert_eq!(ask(&mut input, &mut output, r#"{"execute": "quit"}"#), empty);
        assert!(daemon.wait().unwrap().success());
    }
}

#[test]
fn the_end_of_the_standard_input_is_not_that_of_the_daemon() {
    let place = Place::new();
    let mut command = place.command("--chardev stdio,id=c --monitor c --pidfile @/pid");
    command.stdout(Stdio::piped());
    // Its input is /dev/null, which is always ready.
    let daemon = place.start_command(command);
    daemon.stop(Signal::TERM);
}

/// As of a script whose commands are in a file.
#[test]
fn j18_events_are_told_on_the_standard_output_after_the_end_of_the_input() {
    let place = Place::new();
    let mut command = place.command("--chardev stdio,id=c --monitor c");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let mut input = daemon.stdin.take().unwrap();
    for line in [
        r#"{"execute": "qmp_capabilities"}"#,
        r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}"#,
        r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "m"}}"#,
        r#"{"execute": "blockdev-mirror", "arguments":
            {"job-id": "j", "device": "n", "target": "m", "sync": "full"}}"#,
    ] {
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let mut output = BufReader::new(daemon.stdout.take().unwrap());
    let mut until = |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the end, before {text}");
        }
    };
    until("BLOCK_JOB_READY");
    kill(daemon.id(), Signal::TERM);
    until("BLOCK_JOB_CANCELLED");
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_reader_of_the_standard_output_that_has_gone_is_survived() {
    let place = Place::new();
    let other = "--chardev socket,id=q,path=@/q,server=on,wait=off --monitor q";
    let arguments = format!("--chardev stdio,id=c --monitor c {other} --pidfile @/pid");
    let mut command = place.command(&arguments);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdin(Stdio::piped()).stdout(writer);
    let daemon = place.start_command(command);
    drop(Client::new(&place.path("q")));
    daemon.stop(Signal::TERM);
}

#[test]
fn a_server_that_waits_starts_when_its_client_has_come() {
    // That is the default.
    for wait in ["", ",wait=on"] {
        let place = Place::new();
        let chardev = format!("--chardev socket,id=c,path=@/q,server=on{wait} --monitor c");
        let server = "--nbd-server addr.type=unix,addr.path=@/nbd.sock";
        let mut daemon = place.command(&format!("{chardev} {server}")).spawn().unwrap();
        wait_until("it listens", || place.path("q").exists());
        assert!(!place.socket().exists(), "options after it are not done yet");
        drop(Client::new(&place.path("q")));
        assert!(place.socket().exists());
        kill(daemon.id(), Signal::TERM);
        assert!(daemon.wait().unwrap().success());
    }
}

#[test]
fn a_daemon_that_waits_for_a_client_can_be_ended() {
    let place = Place::new();
    let mut command = place.command("--chardev socket,id=c,path=@/q,server=on --monitor c");
    let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for a client"), "{line}");
    kill(daemon.id(), Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(!place.path("q").exists());
}

#[test]
fn a_client_that_has_come_and_gone_does_not_keep_the_monitor() {
    let place = Place::new();
    let mut daemon =
        place.command("--chardev socket,id=c,path=@/q,server=on --monitor c").spawn().unwrap();
    drop(connect(&place.path("q")));
    drop(Client::new(&place.path("q")));
    kill(daemon.id(), Signal::TERM);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let place = Place::new();
    let there = "there is socket and stdio";
    for (chardev, text) in [
        ("file,id=c,path=@/out", format!("char driver 'file' is not supported; {there}")),
        ("pipe,id=c,path=@/out", format!("char driver 'pipe' is not supported; {there}")),
        ("null,id=c", format!("char driver 'null' is not supported; {there}")),
        ("frob,id=c", format!("'frob' is not a valid char driver name; {there}")),
        ("stdio,id=c,path=@/out", "Parameter 'path' is unexpected".to_owned()),
        ("stdio", "no id specified".to_owned()),
        ("socket,id=c,path=@/q,signal=on", "Parameter 'signal' is unexpected".to_owned()),
        ("socket,id=c,path=@/q,wait=on", "'wait' option is incompatible".to_owned()),
        (
            "socket,id=c,path=@/q,server=on,telnet=on",
            "'telnet': not supported but as 'off'".to_owned(),
        ),
        ("socket,id=c,path=@/q,delay=on,nodelay=on", "mutually exclusive".to_owned()),
        ("stdio,id=c --chardev stdio,id=d", "multiple character devices".to_owned()),
        ("stdio,id=c --daemonize", "cannot use stdio with --daemonize".to_owned()),
    ] {
        let output = place.output(&format!("--chardev {chardev}"));
        assert_eq!(output.status.code(), Some(1), "{chardev}");
        assert!(stderr(&output).contains(&text), "{chardev}: {}", stderr(&output));
    }
    let output = place.output("--chardev help");
    let mut said = String::new();
    (&*output.stdout).read_to_string(&mut said).unwrap();
    assert_eq!(said, "Available chardev backend types: \n  socket\n  stdio\n");
}
