//! `blockdev-mirror`, and the commands of block jobs. The same script runs on this daemon and on QEMU's.

mod util;

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, wait_until};

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

const LENGTH: usize = 1 << 20;

/// A monitor, and what it has said.
struct Talk {
    qmp: Client,
    replies: Vec<Value>,
    events: Vec<String>,
}

impl Talk {
    fn new(qmp: Client) -> Talk {
        Talk { qmp, replies: Vec::new(), events: Vec::new() }
    }

    fn ask(&mut self, command: &str, arguments: Value) {
        let reply = self.qmp.ask(command, arguments.clone());
        self.replies.push(json!([command, arguments["job-id"], reply]));
    }

    /// Waits for an event that begins so.
    fn until(&mut self, wanted: &str) {
        loop {
            let (name, data) = self.qmp.any_event();
            let event = match name.as_str() {
                "JOB_STATUS_CHANGE" => {
                    let [id, status] = ["id", "status"].map(|it| data[it].as_str().unwrap());
                    format!("{id} {status}")
                }
                _ => format!("{name} {data}"),
            };
            let is_it = event.starts_with(wanted);
            self.events.push(event);
            if is_it {
                return;
            }
        }
    }

    fn mirror(&mut self, more: Value) {
        let mut arguments =
            json!({"job-id": "j", "device": "source", "target": "target", "sync": "full"});
        for (name, value) in more.as_object().unwrap() {
            arguments[name] = value.clone();
        }
        self.ask("blockdev-mirror", arguments);
    }

    /// What can be asked of a job, and is told of it, at this moment.
    fn look(&mut self, asked: &[&str]) {
        self.ask("query-jobs", json!({}));
        self.ask("query-block-jobs", json!({}));
        for command in asked {
            let key = match *command {
                "block-job-finalize" | "block-job-dismiss" | "block-job-change" => "id",
                command if command.starts_with("block-job") => "device",
                _ => "id",
            };
            let mut arguments = json!({key: "j"});
            match *command {
                "block-job-set-speed" => arguments["speed"] = json!(-1),
                "block-job-change" => {
                    arguments["type"] = json!("mirror");
                    arguments["copy-mode"] = json!("background");
                }
                _ => {}
            }
            self.ask(command, arguments);
        }
    }
}

const ALL: [&str; 14] = [
    "job-pause",
    "job-resume",
    "job-cancel",
    "job-complete",
    "job-finalize",
    "job-dismiss",
    "block-job-pause",
    "block-job-resume",
    "block-job-complete",
    "block-job-cancel",
    "block-job-finalize",
    "block-job-dismiss",
    "block-job-set-speed",
    "block-job-change",
];

fn add_nodes(place: &Place, talk: &mut Talk) {
    for (name, length) in [("source", LENGTH), ("target", LENGTH), ("short", LENGTH / 2)] {
        std::fs::write(place.path(name), vec![name.as_bytes()[0]; length]).unwrap();
        let node = json!({"driver": "file", "node-name": name, "filename": place.path(name)});
        talk.ask("blockdev-add", node);
    }
}

fn refusals(talk: &mut Talk) {
    for wrong in [
        json!({"job-id": ""}),
        json!({"job-id": "1a"}),
        json!({"device": "nowhere"}),
        json!({"target": "nowhere"}),
        json!({"target": "source"}),
        json!({"sync": "incremental"}),
        json!({"sync": "bitmap"}),
        json!({"granularity": 513}),
        json!({"granularity": 256}),
        json!({"granularity": 1 << 27}),
        json!({"speed": -1}),
        json!({"buf-size": -1}),
        json!({"replaces": "target"}),
        json!({"replaces": "nowhere"}),
        json!({"filter-node-name": "target"}),
    ] {
        talk.mirror(wrong);
    }
    talk.look(&ALL);
}

/// A whole run, with all that can be asked in each state.
fn run(talk: &mut Talk) {
    talk.mirror(json!({"job-id": "short", "target": "short"}));
    talk.until("short null");
    talk.mirror(json!({"auto-finalize": false, "auto-dismiss": false, "filter-node-name": "flt"}));
    talk.until("BLOCK_JOB_READY");
    talk.look(&["job-resume", "job-finalize", "job-dismiss", "block-job-set-speed"]);
    talk.look(&["block-job-change", "block-job-finalize", "block-job-dismiss"]);
    talk.mirror(json!({}));
    talk.mirror(json!({"job-id": "k"}));
    talk.ask("job-pause", json!({"id": "j"}));
    talk.until("j standby");
    talk.look(&["job-pause", "block-job-cancel", "block-job-pause", "job-dismiss", "job-finalize"]);
    talk.ask("job-complete", json!({"id": "j"}));
    talk.ask("job-resume", json!({"id": "j"}));
    talk.until("BLOCK_JOB_PENDING");
    talk.look(&["job-pause", "job-resume", "job-complete", "job-dismiss", "block-job-set-speed"]);
    talk.ask("block-job-finalize", json!({"id": "j"}));
    talk.look(&["job-cancel", "job-pause", "block-job-resume", "block-job-finalize"]);
    talk.ask("block-job-dismiss", json!({"id": "j"}));
    talk.until("j null");
}

/// The ways in which a mirror is cancelled.
fn cancellations(talk: &mut Talk) {
    for (force, mirror) in [
        (json!(false), json!({})),
        (json!(true), json!({})),
        (json!(true), json!({"auto-dismiss": false})),
        (json!(false), json!({"sync": "none"})),
    ] {
        talk.mirror(mirror.clone());
        talk.until("BLOCK_JOB_READY");
        talk.ask("block-job-cancel", json!({"device": "j", "force": force}));
        talk.until("j concluded");
        if mirror.get("auto-dismiss").is_some() {
            talk.look(&["job-dismiss"]);
        }
        talk.until("j null");
    }
    talk.mirror(json!({"auto-finalize": false}));
    talk.until("BLOCK_JOB_READY");
    talk.ask("job-complete", json!({"id": "j"}));
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("block-job-cancel", json!({"device": "j"}));
    talk.until("j null");
    talk.look(&[]);
}

fn script(place: &Place, qmp: Client) -> Talk {
    let mut talk = Talk::new(qmp);
    add_nodes(place, &mut talk);
    refusals(&mut talk);
    cancellations(&mut talk);
    run(&mut talk);
    talk.ask("quit", json!({}));
    talk
}

fn qemu(place: &Place) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(MONITOR.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

/// Leaves out what is to differ: a mirror of QEMU's holds its guests up while it is pending, and its background
/// mode tells of a mode that it is not in.
fn comparable(mut reply: Value) -> Value {
    let listed = reply[2].get_mut("return").and_then(Value::as_array_mut);
    for job in listed.into_iter().flatten().filter_map(Value::as_object_mut) {
        job.remove("actively-synced");
        if job.get("status") == Some(&json!("pending")) {
            job.remove("paused");
        }
    }
    reply
}

/// How often a job stops for a drain is not promised.
fn without_pauses(events: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for event in events {
        let is_end_of = |before: &String| {
            let of = |stopped, goes_on| before.ends_with(stopped) && event.ends_with(goes_on);
            of(" paused", " running") || of(" standby", " ready")
        };
        match kept.last() {
            Some(before) if is_end_of(before) => drop(kept.pop()),
            _ => kept.push(event.clone()),
        }
    }
    kept
}

#[test]
fn j26_j42_j43_mirrors_say_what_those_of_qemu_say() {
    let theirs = Place::new();
    let mut peer = qemu(&theirs);
    wait_until("QEMU's daemon serves", || theirs.pid_file().exists());
    let expected = script(&theirs, Client::of_peer(&theirs.path("qmp.sock")));
    assert!(peer.wait().unwrap().success());
    let ours = Place::new();
    let daemon = ours.start(MONITOR);
    let found = script(&ours, Client::new(&ours.path("qmp.sock")));
    assert!(daemon.wait().success());
    assert_eq!(without_pauses(&found.events), without_pauses(&expected.events));
    assert_eq!(found.replies.len(), expected.replies.len());
    let pairs = found.replies.into_iter().zip(expected.replies);
    let pairs = pairs.map(|(found, expected)| (comparable(found), comparable(expected)));
    let differ: Vec<_> = pairs.filter(|(found, expected)| found != expected).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    let images = [&theirs, &ours].map(|place| std::fs::read(place.path("target")).unwrap());
    assert_eq!(images, [vec![b's'; LENGTH], vec![b's'; LENGTH]]);
}
