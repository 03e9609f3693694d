//! Images are created by jobs. The same script runs on this daemon and on QEMU's.

mod util;

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, wait_until};

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

/// A monitor, and what it has said: replies, and changes of jobs in their order.
struct Talk {
    qmp: Client,
    replies: Vec<Value>,
    changes: Vec<String>,
}

impl Talk {
    fn new(qmp: Client) -> Talk {
        Talk { qmp, replies: Vec::new(), changes: Vec::new() }
    }

    fn ask(&mut self, command: &str, arguments: Value) {
        let mut reply = self.qmp.ask(command, arguments);
        // Of what goes wrong in a job each daemon tells in words of its own.
        for job in reply.get_mut("return").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(error) = job.get_mut("error") {
                *error = json!("an error");
            }
        }
        self.replies.push(reply);
    }

    /// Waits until a job has reached a state.
    fn until(&mut self, id: &str, status: &str) {
        let wanted = format!("{id} {status}");
        loop {
            let change = self.qmp.event("JOB_STATUS_CHANGE");
            let change = [&change["id"], &change["status"]].map(|it| it.as_str().unwrap());
            self.changes.push(change.join(" "));
            if self.changes.last() == Some(&wanted) {
                return;
            }
        }
    }

    /// A job that comes to its end, and what can be asked of it then.
    fn create(&mut self, id: &str, options: Value) {
        self.ask("blockdev-create", json!({"job-id": id, "options": options}));
        self.until(id, "concluded");
        self.ask("query-jobs", json!({}));
    }

    fn ask_of(&mut self, id: &str, verbs: &[&str]) {
        verbs.iter().for_each(|verb| self.ask(&format!("job-{verb}"), json!({"id": id})));
    }
}

fn script(place: &Place, qmp: Client) -> Talk {
    let mut talk = Talk::new(qmp);
    let file = |name: &str| json!({"driver": "file", "filename": place.path(name), "size": 0});
    let qcow2 = |more: Value| {
        let mut options = json!({"driver": "qcow2", "file": "node", "size": 1 << 20});
        more.as_object().unwrap().iter().for_each(|(name, value)| options[name] = value.clone());
        options
    };
    talk.ask("query-jobs", json!({}));
    talk.create("first", file("a.qcow2"));
    talk.create("second", file("missing/b"));
    let verbs = ["cancel", "pause", "resume", "complete", "finalize"];
    talk.ask_of("first", &verbs);
    talk.ask_of("nowhere", &verbs);
    for id in ["first", "1st", "", "a b"] {
        talk.ask("blockdev-create", json!({"job-id": id, "options": file("a.qcow2")}));
    }
    talk.ask_of("second", &["dismiss", "dismiss"]);
    talk.ask("query-jobs", json!({}));
    let node = json!({"driver": "file", "node-name": "node", "filename": place.path("a.qcow2")});
    talk.ask("blockdev-add", node);
    talk.create("image", qcow2(json!({})));
    talk.ask_of("image", &["dismiss"]);
    let described = json!({"driver": "file", "filename": place.path("a.qcow2")});
    talk.create("described", qcow2(json!({"file": described, "preallocation": "metadata"})));
    for (number, wrong) in [
        json!({"size": 1000}),
        json!({"cluster-size": 1000}),
        json!({"cluster-size": 4 << 20}),
        json!({"version": "v2", "lazy-refcounts": true}),
        json!({"version": "v2", "extended-l2": true}),
        json!({"version": "v2", "refcount-bits": 8}),
        json!({"version": "v2", "compression-type": "zstd"}),
        json!({"version": "v2", "data-file": "node"}),
        json!({"extended-l2": true, "cluster-size": 8192}),
        json!({"refcount-bits": 3}),
        json!({"refcount-bits": 128}),
        json!({"backing-fmt": "raw"}),
        json!({"backing-file": "x", "preallocation": "metadata"}),
        json!({"data-file-raw": true}),
        json!({"data-file": "node", "data-file-raw": true, "backing-file": "x"}),
        json!({"size": 1_u64 << 45, "cluster-size": 512}),
        json!({"file": "nowhere"}),
        json!({"data-file": "node"}),
    ]
    .into_iter()
    .enumerate()
    {
        talk.create(&format!("wrong{number}"), qcow2(wrong));
    }
    talk.ask("query-named-block-nodes", json!({}));
    let nodes = talk.replies.pop().unwrap();
    talk.replies.push(json!(nodes["return"].as_array().unwrap().len()));
    talk.ask("quit", json!({}));
    talk.until("first", "null");
    talk
}

fn qemu(place: &Place) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(MONITOR.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

#[test]
fn j26_jobs_go_through_the_states_that_they_have_in_qemu() {
    let theirs = Place::new();
    let mut peer = qemu(&theirs);
    wait_until("QEMU's daemon serves", || theirs.pid_file().exists());
    let expected = script(&theirs, Client::of_peer(&theirs.path("qmp.sock")));
    assert!(peer.wait().unwrap().success());
    let ours = Place::new();
    let daemon = ours.start(MONITOR);
    let found = script(&ours, Client::new(&ours.path("qmp.sock")));
    assert!(daemon.wait().success());
    assert_eq!(found.changes, expected.changes);
    assert_eq!(found.replies.len(), expected.replies.len());
    for (found, expected) in found.replies.iter().zip(&expected.replies) {
        assert_eq!(found, expected);
    }
}

/// A node so slow that an image takes minutes.
const SLOW: &str = "--object throttle-group,id=g0,x-iops-total=1 \
                    --blockdev file,node-name=file,filename=@/disk.img \
                    --blockdev throttle,node-name=slow,throttle-group=g0,file=file";

fn start_slow(place: &Place) -> (util::Daemon, Talk) {
    let daemon = place.start(&format!("{MONITOR} {SLOW}"));
    let mut talk = Talk::new(Client::new(&place.path("qmp.sock")));
    let options = json!({"driver": "qcow2", "file": "slow", "size": 16 << 20,
        "cluster-size": 512, "preallocation": "metadata"});
    talk.ask("blockdev-create", json!({"job-id": "job", "options": options}));
    (daemon, talk)
}

#[test]
fn j22_a_job_that_is_cancelled_ends_soon_and_leaves_no_image() {
    let place = Place::new();
    let (daemon, mut talk) = start_slow(&place);
    talk.ask("query-jobs", json!({}));
    talk.ask_of("job", &["resume", "pause", "pause", "resume", "dismiss", "cancel"]);
    talk.until("job", "concluded");
    assert_eq!(
        talk.changes,
        ["created", "running", "aborting", "concluded"].map(|it| { format!("job {it}") })
    );
    let error = |desc: &str| json!({"error": {"class": "GenericError", "desc": desc}});
    let done = json!({"return": {}});
    let running = json!({"return": [{"id": "job", "type": "create", "status": "running",
        "current-progress": 0, "total-progress": 1}]});
    let expected = [
        done.clone(),
        running,
        error("Can't resume a job that was not paused"),
        done.clone(),
        error("Job is already paused"),
        done.clone(),
        error("Job 'job' in state 'running' cannot accept command verb 'dismiss'"),
        done,
    ];
    assert_eq!(talk.replies, expected);
    let jobs = talk.qmp.run("query-jobs", json!({}));
    assert_eq!(jobs[0]["error"], "Operation canceled");
    let head = std::fs::read(place.image()).unwrap();
    assert!(head.iter().take(512).all(|byte| *byte == 0), "there is a header");
    talk.ask("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn j18_jobs_end_before_the_daemon_does() {
    let place = Place::new();
    let (daemon, mut talk) = start_slow(&place);
    talk.ask("quit", json!({}));
    talk.until("job", "null");
    let states = ["created", "running", "aborting", "concluded", "null"];
    assert_eq!(talk.changes, states.map(|it| format!("job {it}")));
    assert!(daemon.wait().success());
}
