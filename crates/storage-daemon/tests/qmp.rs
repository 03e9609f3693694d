//! The daemon's monitor, told what to do by a QMP client, and looked at by other people's clients.

mod util;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, wait_until};

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

fn start(place: &Place, more: &str) -> (Daemon, Client) {
    let daemon = place.start(&format!("{MONITOR} {more}"));
    let client = Client::new(&place.path("qmp.sock"));
    (daemon, client)
}

fn unix(place: &Place, name: &str) -> Value {
    json!({"type": "unix", "data": {"path": place.path(name)}})
}

fn qemu_io(place: &Place, name: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f".to_owned(), "raw".to_owned()];
    commands.iter().for_each(|it| arguments.extend(["-c".to_owned(), (*it).to_owned()]));
    arguments.push(place.uri(name));
    let output = tools::output("qemu-io", arguments);
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

/// A disk from its node to its clients and back, all by commands.
#[test]
fn a_disk_comes_and_goes() {
    let place = Place::new();
    let (daemon, mut qmp) = start(&place, "");
    let file = json!({"driver": "file", "filename": place.image(), "node-name": "image"});
    let node = json!({"driver": "raw", "node-name": "disk", "file": file});
    assert_eq!(qmp.run("blockdev-add", node.clone()), json!({}));
    assert_eq!(qmp.refused("blockdev-add", node), "Duplicate nodes with node-name='disk'");
    assert_eq!(qmp.run("block_resize", json!({"node-name": "disk", "size": 32 << 20})), json!({}));
    assert_eq!(place.image().metadata().unwrap().len(), 32 << 20);

    let export = json!({"type": "nbd", "id": "e0", "node-name": "disk", "writable": true});
    assert_eq!(qmp.refused("block-export-add", export.clone()), "NBD server not running");
    qmp.run("nbd-server-start", json!({"addr": unix(&place, "nbd.sock")}));
    qmp.run("block-export-add", export);
    let said = qemu_io(&place, "disk", &["write -P 7 31M 64k", "read -P 7 31M 64k"]);
    assert!(said.contains("read 65536/65536") && !said.contains("failed"), "{said}");
    let listed = qmp.run("query-block-exports", json!({}));
    let expected = json!([{"id": "e0", "type": "nbd", "node-name": "disk", "shutting-down": false,
        "x-coblk-io-status": "ok"}]);
    assert_eq!(listed, expected);

    // A client that stays.
    let mut client = tools::command("qemu-io");
    client.args(["-f", "raw", &place.uri("disk")]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut client = client.spawn().unwrap();
    let before = qmp.run("query-blockstats", json!({}))[0]["stats"]["wr_operations"].clone();
    client.stdin.as_mut().unwrap().write_all(b"write -P 8 0 4k\n").unwrap();
    wait_until("the client has written", || {
        qmp.run("query-blockstats", json!({}))[0]["stats"]["wr_operations"] != before
    });
    let refused = qmp.refused("block-export-del", json!({"id": "e0"}));
    assert_eq!(refused, "export 'e0' still in use");
    assert_eq!(qmp.refused("blockdev-del", json!({"node-name": "disk"})), "Node 'disk' is in use");
    qmp.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "e0"}));
    assert_eq!(qmp.run("query-block-exports", json!({})), json!([]));
    drop(client.stdin.take());
    client.wait().unwrap();

    let image = json!({"node-name": "image"});
    let refused = qmp.refused("blockdev-del", image);
    assert_eq!(refused, "Node image is not owned by the monitor");
    qmp.run("blockdev-del", json!({"node-name": "disk"}));
    assert_eq!(qmp.run("query-named-block-nodes", json!({})), json!([]));
    qmp.run("nbd-server-stop", json!({}));
    assert_eq!(qmp.refused("nbd-server-stop", json!({})), "NBD server not running");
    assert_eq!(qmp.run("quit", json!({})), json!({}));
    // As QEMU's daemon it has no event for its end.
    qmp.ends();
    assert!(daemon.wait().success());
    assert!(!place.path("qmp.sock").exists());
}

/// QEMU's daemon, until it is dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The paths of all members of a value; lists by their first item.
fn members(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                members(value, &format!("{path}.{name}"), found);
            }
        }
        Value::Array(items) => {
            if let Some(item) = items.first() {
                members(item, &format!("{path}[]"), found);
            }
        }
        Value::Null => found.push(format!("{path} null")),
        Value::Bool(_) => found.push(format!("{path} bool")),
        Value::Number(_) => found.push(format!("{path} number")),
        Value::String(_) => found.push(format!("{path} string")),
    }
}

type Step = (&'static str, Value);

fn set_up_steps(place: &Place) -> Vec<Step> {
    let node = json!({"driver": "raw", "node-name": "disk",
        "file": {"driver": "file", "filename": place.image(), "node-name": "image"}});
    let reopened =
        json!({"driver": "raw", "node-name": "disk", "read-only": true, "file": "image"});
    let throttled = json!({"driver": "throttle", "node-name": "slow", "throttle-group": "g",
        "file": {"driver": "null-co", "node-name": "null", "size": 1048576}});
    let group = json!({"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 9}});
    vec![
        ("query-version", json!({})),
        ("object-add", json!({"qom-type": "iothread", "id": "t"})),
        ("object-add", json!({"qom-type": "iothread", "id": "t"})),
        ("object-add", json!({"qom-type": "nonsense", "id": "x"})),
        ("object-add", group),
        ("qom-list", json!({"path": "/objects"})),
        ("qom-list", json!({"path": "/objects/t"})),
        ("qom-list", json!({"path": "/nonsense"})),
        ("qom-get", json!({"path": "/objects/t", "property": "poll-max-ns"})),
        ("qom-get", json!({"path": "t", "property": "type"})),
        ("qom-get", json!({"path": "t", "property": "nonsense"})),
        ("qom-get", json!({"path": "nobody", "property": "type"})),
        ("qom-get", json!({"path": "/objects/g", "property": "limits"})),
        ("qom-get", json!({"path": "/objects/g", "property": "x-iops-total"})),
        ("qom-set", json!({"path": "t", "property": "poll-max-ns", "value": 5})),
        ("qom-set", json!({"path": "t", "property": "poll-max-ns", "value": -5})),
        ("qom-set", json!({"path": "t", "property": "poll-max-ns", "value": "5"})),
        ("qom-set", json!({"path": "t", "property": "type", "value": "x"})),
        ("qom-set", json!({"path": "g", "property": "limits", "value": {"iops-read": 1}})),
        ("qom-set", json!({"path": "g", "property": "limits", "value": {"iops-total": 5}})),
        ("qom-set", json!({"path": "g", "property": "limits", "value": {"nonsense": 1}})),
        ("qom-set", json!({"path": "g", "property": "limits", "value": 1})),
        ("qom-set", json!({"path": "g", "property": "x-iops-total", "value": 1})),
        ("qom-list-types", json!({"implements": "user-creatable"})),
        ("qom-list-properties", json!({"typename": "throttle-group"})),
        ("qom-list-properties", json!({"typename": "nonsense"})),
        ("blockdev-add", node.clone()),
        ("blockdev-add", node),
        ("blockdev-add", json!({"driver": "null-co"})),
        ("blockdev-add", json!({"driver": "nonsense", "node-name": "x"})),
        ("blockdev-add", json!({})),
        ("blockdev-add", throttled),
        ("block_resize", json!({"node-name": "disk", "size": 8 << 20})),
        ("block_resize", json!({"node-name": "disk", "size": -1})),
        ("block_resize", json!({"node-name": "slow", "size": 512})),
        ("block_resize", json!({"node-name": "nobody", "size": 512})),
        ("block_resize", json!({"device": "disk", "size": 512})),
        ("block_resize", json!({"node-name": "disk"})),
        ("blockdev-reopen", json!({"options": [reopened]})),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "raw", "node-name": "nobody", "file": "image"}]}),
        ),
        ("blockdev-reopen", json!({"options": [{"driver": "null-co"}]})),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "file", "node-name": "image", "filename": "/x"}]}),
        ),
        ("block-set-write-threshold", json!({"node-name": "disk", "write-threshold": 4096})),
        ("block-set-write-threshold", json!({"node-name": "disk"})),
        ("block-set-write-threshold", json!({"node-name": "nobody", "write-threshold": 1})),
        ("query-named-block-nodes", json!({"flat": true})),
        ("query-block", json!({})),
        ("query-jobs", json!({})),
        ("query-block-jobs", json!({})),
    ]
}

fn later_steps(place: &Place) -> Vec<Step> {
    let start = json!({"addr": unix(place, "nbd.sock"), "max-connections": 3});
    let export = json!({"type": "nbd", "id": "e0", "node-name": "disk", "name": "a"});
    let vhost = json!({"type": "vhost-user-blk", "id": "e1", "node-name": "slow", "writable": true,
        "addr": {"type": "unix", "path": place.path("vhost.sock")}, "iothread": "t"});
    vec![
        ("block-export-add", export.clone()),
        ("nbd-server-start", json!({"addr": {"type": "unix", "path": "/x"}})),
        ("nbd-server-start", json!({})),
        ("nbd-server-start", start.clone()),
        ("nbd-server-start", start),
        ("block-export-add", export.clone()),
        ("block-export-add", export),
        ("block-export-add", json!({"type": "nbd", "id": "x", "node-name": "nobody"})),
        ("block-export-add", json!({"type": "nonsense", "id": "x", "node-name": "disk"})),
        ("block-export-add", json!({"type": "nbd", "id": "x"})),
        ("block-export-add", vhost),
        ("nbd-server-add", json!({"device": "null", "name": "n"})),
        ("nbd-server-add", json!({"device": "null"})),
        ("nbd-server-add", json!({"device": "nobody"})),
        ("query-block-exports", json!({})),
        ("query-blockstats", json!({"query-nodes": true})),
        ("nbd-server-remove", json!({"name": "n"})),
        ("nbd-server-remove", json!({"name": "n"})),
        ("blockdev-del", json!({"node-name": "disk"})),
        ("blockdev-del", json!({"node-name": "image"})),
        ("blockdev-del", json!({"node-name": "nobody"})),
        ("object-del", json!({"id": "g"})),
        ("object-del", json!({"id": "nobody"})),
        ("blockdev-add", json!({"driver": "null-co", "node-name": "fixed", "read-only": true})),
        ("nbd-server-add", json!({"device": "fixed", "writable": true})),
        ("block-export-del", json!({"id": "nobody"})),
        ("block-export-del", json!({"id": "e0", "mode": "soft"})),
        ("block-export-del", json!({"id": "e0", "mode": "safe"})),
        ("nbd-server-stop", json!({})),
        ("nbd-server-stop", json!({})),
        ("block-export-del", json!({"id": "e1", "mode": "hard"})),
        ("nonsense", json!({})),
    ]
}

/// The same script for both daemons. What each command answers: the members of what it returns, or the
/// class of its error.
fn script(qmp: &mut Client, place: &Place) -> Vec<(String, Vec<String>)> {
    let steps = set_up_steps(place).into_iter().chain(later_steps(place));
    let answer = |(command, arguments): (&str, Value)| {
        let answer = qmp.ask(command, arguments.clone());
        let mut found = Vec::new();
        match answer.get("error") {
            Some(error) => found.push(format!("error {}", error["class"].as_str().unwrap())),
            None => members(&answer["return"], "return", &mut found),
        }
        (format!("{command} {arguments}"), found)
    };
    steps.map(answer).collect()
}

/// Members that QEMU has and may have not: QAPI says that they are optional, or they are a driver's own.
const OPTIONAL: [&str; 4] = ["dirty-flag", "driver-specific", "format-specific", "backing"];

#[test]
fn answers_have_the_members_of_qemus() {
    let place = Place::new();
    let (_daemon, mut ours) = start(&place, "");
    let theirs = Place::new();
    let socket = theirs.fill_in("socket,id=c0,path=@/qmp.sock,server=on,wait=off");
    let mut qemu = tools::command("qemu-storage-daemon");
    let qemu = qemu.args(["--chardev", &socket, "--monitor", "chardev=c0"]).spawn();
    let _qemu = Qemu(qemu.expect("qemu-storage-daemon (Debian: qemu-system-common)"));
    let mut client = Client::of_peer(&theirs.path("qmp.sock"));
    let (ours, theirs) = (script(&mut ours, &place), script(&mut client, &theirs));
    for ((step, ours), (_, theirs)) in ours.into_iter().zip(theirs) {
        let is_optional = |member: &String| OPTIONAL.iter().any(|it| member.contains(it));
        let missing: Vec<&String> =
            theirs.iter().filter(|it| !ours.contains(it) && !is_optional(it)).collect();
        assert!(missing.is_empty(), "{step}: QEMU also has {missing:?}");
        let failed = |found: &[String]| found.first().is_some_and(|it| it.starts_with("error"));
        assert_eq!(failed(&ours), failed(&theirs), "{step}: {ours:?}, and QEMU {theirs:?}");
    }
}

#[test]
fn a_node_gets_other_options_while_it_is_used() {
    let place = Place::new();
    let (daemon, mut qmp) = start(&place, util::NBD);
    let node = |qmp: &mut Client| qmp.run("query-named-block-nodes", json!({}))[0].clone();
    let file = json!({"driver": "file", "node-name": "disk", "filename": place.image()});
    let with = |name: &str, value: Value| {
        let mut options = file.clone();
        options[name] = value;
        json!({"options": [options]})
    };
    assert_eq!(node(&mut qmp)["cache"]["direct"], false);
    qmp.run("blockdev-reopen", with("cache", json!({"direct": true})));
    assert_eq!(node(&mut qmp)["cache"]["direct"], true);
    place.check();
    // What is not mentioned goes back to its default.
    qmp.run("blockdev-reopen", with("detect-zeroes", json!("on")));
    let cache = json!({"writeback": true, "direct": false, "no-flush": false});
    assert_eq!(
        (&node(&mut qmp)["cache"], &node(&mut qmp)["detect_zeroes"]),
        (&cache, &json!("on"))
    );
    for bad in [
        with("read-only", json!(true)),
        with("filename", json!("/other")),
        with("driver", json!("null-co")),
        with("node-name", json!("nobody")),
        with("nonsense", json!(1)),
        json!({"options": [{"driver": "file", "filename": place.image()}]}),
        json!({"options": [{}]}),
        json!({"options": {}}),
        json!({}),
    ] {
        qmp.refused("blockdev-reopen", bad);
    }
    assert_eq!(
        (&node(&mut qmp)["ro"], &node(&mut qmp)["detect_zeroes"]),
        (&json!(false), &json!("on"))
    );
    place.check();
    daemon.stop(Signal::TERM);
}

#[test]
fn latencies_are_counted_between_boundaries() {
    let place = Place::new();
    let (daemon, mut qmp) = start(&place, util::NBD);
    let histogram = |qmp: &mut Client, kind: &str| {
        let stats = qmp.run("query-blockstats", json!({}));
        assert_eq!((&stats[0]["device"], &stats[0]["node-name"]), (&json!("e0"), &json!("disk")));
        stats[0]["stats"].get(format!("{kind}_latency_histogram")).cloned()
    };
    assert_eq!(histogram(&mut qmp, "rd"), None);
    let set = "block-latency-histogram-set";
    let boundaries = json!([1, 60_000_000_000u64]);
    qmp.run(set, json!({"id": "e0", "boundaries": boundaries, "boundaries-write": [5]}));
    place.check();
    let reads = histogram(&mut qmp, "rd").unwrap();
    assert_eq!(reads["boundaries"], boundaries);
    // Each takes more than a nanosecond, and less than a minute.
    let bins: Vec<u64> = serde_json::from_value(reads["bins"].clone()).unwrap();
    assert!(bins[1] > 0 && bins[0] == 0 && bins[2] == 0, "{bins:?}");
    assert_eq!(histogram(&mut qmp, "wr").unwrap()["boundaries"], json!([5]));
    assert!(histogram(&mut qmp, "flush").is_some());
    let stats = qmp.run("query-blockstats", json!({}));
    assert_ne!(stats[0]["stats"]["rd_total_time_ns"], 0, "there is a clock now");
    for bad in [json!([]), json!([0]), json!([5, 5]), json!([9, 5]), json!([-1]), json!(7)] {
        qmp.refused(set, json!({"id": "e0", "boundaries": bad}));
    }
    let answer = qmp.ask(set, json!({"id": "nobody"}));
    assert_eq!(answer["error"]["class"], "DeviceNotFound");
    assert!(histogram(&mut qmp, "rd").is_some());
    qmp.run(set, json!({"id": "e0"}));
    assert_eq!(histogram(&mut qmp, "rd"), None);
    daemon.stop(Signal::TERM);
    assert_eq!(qmp.event("BLOCK_EXPORT_DELETED"), json!({"id": "e0"}));
    qmp.ends();
}

#[test]
fn an_error_stops_an_export_until_it_is_resumed() {
    let place = Place::new();
    let (daemon, mut qmp) = start(&place, "");
    let faulty = json!({"driver": "blkdebug", "node-name": "disk", "image":
        {"driver": "null-co", "size": 65536, "read-zeroes": true},
        "inject-error": [{"event": "none", "iotype": "write", "errno": 28, "once": true}]});
    qmp.run("blockdev-add", faulty);
    qmp.run("nbd-server-start", json!({"addr": unix(&place, "nbd.sock")}));
    qmp.run(
        "block-export-add",
        json!({"type": "nbd", "id": "e0", "node-name": "disk",
        "writable": true, "werror": "stop"}),
    );
    let writer = std::thread::scope(|scope| {
        let writer = scope.spawn(|| qemu_io(&place, "disk", &["write 0 4096"]));
        let error = qmp.event("BLOCK_IO_ERROR");
        let members = ["device", "node-name", "operation", "action", "nospace"];
        let members = members.map(|name| error[name].clone());
        let expected = json!(["e0", "disk", "write", "stop", true]);
        assert_eq!(Value::from(members.to_vec()), expected, "{error}");
        assert!(error["reason"].as_str().unwrap().contains("No space left"), "{error}");
        let exports = qmp.run("query-block-exports", json!({}));
        assert_eq!(exports[0]["x-coblk-io-status"], "nospace");
        qmp.run("x-coblk-export-resume", json!({"id": "e0"}));
        writer.join().unwrap()
    });
    assert!(writer.contains("wrote 4096/4096"), "{writer}");
    let exports = qmp.run("query-block-exports", json!({}));
    assert_eq!(exports[0]["x-coblk-io-status"], "ok");
    let refused = qmp.refused("x-coblk-export-resume", json!({"id": "nobody"}));
    assert_eq!(refused, "Export 'nobody' is not found");
    daemon.stop(Signal::TERM);
}

#[test]
fn there_may_be_several_monitors_one_of_which_connects() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("peer.sock")).unwrap();
    let (daemon, mut first) = start(
        &place,
        "--chardev socket,id=c1,path=@/peer.sock,server=off,reconnect-ms=1 --monitor c1,pretty=on \
         --chardev socket,id=c2,host=127.0.0.1,port=0,server=on,wait=off \
         --monitor chardev=c2,mode=control",
    );
    for _ in 0..2 {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = std::io::BufReader::new(stream);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        assert_eq!(line, "{\n", "it is pretty");
    }
    assert!(first.run("query-commands", json!({})).as_array().unwrap().len() > 15);
    daemon.stop(Signal::INT);
}

#[test]
fn monitors_that_cannot_be_are_refused() {
    let place = Place::new();
    let twice = format!("{MONITOR} --monitor chardev=c0");
    for (arguments, expected) in [
        ("--monitor chardev=c0", "chardev \"c0\" not found"),
        (&twice, "Device 'c0' is in use"),
        (&MONITOR.replace("chardev=c0", "c0,mode=readline"), "'mode' must be 'control'"),
        (&MONITOR.replace("path=@", "path=@/none"), "Failed to bind socket to "),
        (
            "--chardev socket,id=c0,path=@/none,server=off --monitor c0",
            "cannot connect a monitor: Failed to connect to '",
        ),
        (
            "--chardev socket,id=c0,path=@/a,server=on,wait=off,reconnect=1 --monitor c0",
            "'reconnect' option is incompatible",
        ),
    ] {
        let output = place.output(arguments);
        let said = util::stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        assert!(said.contains(expected), "{arguments}: {said}");
    }
}

#[test]
fn nobody_is_served_before_everything_is_there() {
    let place = Place::new();
    // The monitor is the first to be there, and the export that it is asked about the last.
    let mut command = place.command(&format!("{MONITOR} {}", util::NBD));
    let mut child = command.spawn().unwrap();
    let mut qmp = Client::new(&place.path("qmp.sock"));
    assert_eq!(qmp.run("query-block-exports", json!({}))[0]["id"], "e0");
    qmp.run("quit", json!({}));
    assert!(child.wait().unwrap().success());
}
