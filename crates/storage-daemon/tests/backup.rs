//! `blockdev-backup`, and the filters that keep an instant. The same script runs on this daemon and on QEMU's.

mod util;

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, wait_until};

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev file,node-name=file,filename=@/source \
    --blockdev raw,node-name=disk,file=file \
    --blockdev file,node-name=target,filename=@/target \
    --blockdev file,node-name=short,filename=@/short \
    --blockdev file,node-name=old,filename=@/old \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock \
    --export nbd,id=guest,node-name=disk,name=guest,writable=on";

const LENGTH: usize = 1 << 20;

/// A monitor, and what it has said.
struct Talk<'a> {
    place: &'a Place,
    qmp: Client,
    replies: Vec<Value>,
    events: Vec<String>,
}

impl Talk<'_> {
    fn ask(&mut self, command: &str, arguments: Value) {
        let reply = self.qmp.ask(command, arguments.clone());
        self.replies.push(json!([command, arguments, reply]));
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

    fn backup(&mut self, more: Value) {
        let mut arguments =
            json!({"job-id": "j", "device": "disk", "target": "target", "sync": "full"});
        for (name, value) in more.as_object().unwrap() {
            arguments[name] = value.clone();
        }
        self.ask("blockdev-backup", arguments);
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
            if *command == "block-job-change" {
                arguments["type"] = json!("mirror");
                arguments["copy-mode"] = json!("background");
            }
            self.ask(command, arguments);
        }
    }

    /// What a client of an export does; whether it is as it says.
    fn io(&mut self, export: &str, commands: &[&str]) {
        let url = self.place.uri(export);
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        let read_only = commands.iter().all(|command| command.starts_with("read"));
        arguments.extend(if read_only { vec!["-r", &url] } else { vec![url.as_str()] });
        let told = tools::run("qemu-io", arguments);
        assert!(!told.contains("verification failed"), "{export}: {told}");
    }

    fn map(&mut self, export: &str, context: &str) {
        let map = format!("--map={context}");
        let map = tools::run("nbdinfo", ["--json", &map, &self.place.uri(export)]);
        let map: Value = serde_json::from_str(&map).unwrap();
        self.replies.push(json!(["map", context, map]));
    }

    fn bitmaps(&mut self) {
        let nodes = self.qmp.ask("query-named-block-nodes", json!({}));
        let disk = nodes["return"].as_array().unwrap().iter().find(|it| it["node-name"] == "disk");
        let bitmaps = disk.unwrap()["dirty-bitmaps"].clone();
        self.replies.push(json!(["bitmaps", {}, bitmaps]));
    }
}

fn refusals(talk: &mut Talk<'_>) {
    talk.ask("block-dirty-bitmap-add", json!({"node": "disk", "name": "b"}));
    talk.ask("block-dirty-bitmap-add", json!({"node": "file", "name": "below"}));
    for wrong in [
        json!({"job-id": ""}),
        json!({"job-id": "1a"}),
        json!({"device": "nowhere"}),
        json!({"target": "nowhere"}),
        json!({"target": "disk"}),
        json!({"target": "short"}),
        json!({"sync": "incremental"}),
        json!({"sync": "bitmap"}),
        json!({"sync": "incremental", "bitmap": "no"}),
        json!({"sync": "incremental", "bitmap": "below"}),
        json!({"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"}),
        json!({"sync": "incremental", "bitmap": "b", "bitmap-mode": "always"}),
        json!({"sync": "bitmap", "bitmap": "b"}),
        json!({"bitmap": "no"}),
        json!({"bitmap": "no", "bitmap-mode": "always"}),
        json!({"bitmap": "b"}),
        json!({"bitmap-mode": "always"}),
        json!({"bitmap": "b", "bitmap-mode": "never"}),
        json!({"sync": "top", "bitmap": "b", "bitmap-mode": "never"}),
        json!({"sync": "none", "bitmap": "b", "bitmap-mode": "always"}),
        json!({"speed": -1}),
        json!({"filter-node-name": "target"}),
        json!({"x-perf": {"max-workers": 0}}),
        json!({"x-perf": {"max-workers": 1i64 << 40}}),
        json!({"x-perf": {"max-chunk": 1}}),
        json!({"x-perf": {"max-chunk": -1}}),
        json!({"x-perf": {"max-chunk": 65536, "min-cluster-size": 131_072}}),
        json!({"x-perf": {"min-cluster-size": 3}}),
    ] {
        talk.backup(wrong);
    }
}

/// Full, and then what was written, with each end of the bitmap.
fn increments(talk: &mut Talk<'_>) {
    talk.backup(json!({"bitmap": "b", "bitmap-mode": "on-success", "auto-finalize": false}));
    talk.until("BLOCK_JOB_PENDING");
    talk.io("guest", &["write -P 1 0 1k", "write -P 1 512k 64k"]);
    talk.look(&["job-pause", "job-resume", "job-complete", "job-dismiss", "block-job-change"]);
    talk.bitmaps();
    for verb in ["clear", "enable", "disable", "remove"] {
        let bitmap = json!({"node": "disk", "name": "b"});
        talk.ask(&format!("block-dirty-bitmap-{verb}"), bitmap);
    }
    talk.backup(json!({"job-id": "k", "target": "old", "bitmap": "b", "sync": "incremental"}));
    talk.ask("job-finalize", json!({"id": "j"}));
    talk.until("j null");
    talk.bitmaps();
    let chunks = json!({"max-workers": 2, "max-chunk": 65536, "use-copy-range": true});
    for (mode, write) in [("never", "write -P 2 64k 1"), ("always", "write -P 2 128k 1")] {
        talk.io("guest", &[write]);
        let sync = json!({"sync": "bitmap", "bitmap": "b", "bitmap-mode": mode, "x-perf": chunks});
        talk.backup(sync);
        talk.until("j null");
        talk.bitmaps();
    }
    // One that is given up leaves all.
    talk.io("guest", &["write -P 3 0 1k"]);
    let held = json!({"sync": "incremental", "bitmap": "b", "auto-finalize": false,
        "auto-dismiss": false});
    talk.backup(held);
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("block-job-cancel", json!({"device": "j"}));
    talk.until("j concluded");
    talk.look(&["job-cancel", "job-dismiss"]);
    talk.until("j null");
    talk.bitmaps();
    talk.backup(json!({"sync": "incremental", "bitmap": "b"}));
    talk.until("j null");
    talk.bitmaps();
}

/// A pull backup with a job: guests' old bytes go to an image above the disk.
fn fleece_by_job(talk: &mut Talk<'_>) {
    talk.io("guest", &["write -P 4 256k 64k"]);
    let image = json!({"driver": "qcow2", "node-name": "fleece", "backing": "disk",
        "file": {"driver": "file", "filename": talk.place.path("fleece")}});
    talk.ask("blockdev-add", image);
    talk.backup(json!({"target": "fleece", "sync": "none", "filter-node-name": "flt"}));
    talk.backup(json!({"job-id": "k", "target": "fleece"}));
    let export = json!({"type": "nbd", "id": "pull", "name": "pull", "node-name": "fleece",
        "bitmaps": [{"node": "disk", "name": "b"}]});
    talk.ask("block-export-add", export);
    talk.io("guest", &["write -P 9 0 1M", "read -P 9 0 1M"]);
    talk.io("pull", &["read -P 3 0 1k", "read -P 4 256k 64k", "read -P 115 320k 64k"]);
    talk.map("pull", "base:allocation");
    talk.map("pull", "qemu:dirty-bitmap:b");
    talk.look(&["job-complete", "job-dismiss", "job-finalize"]);
    talk.ask("block-export-del", json!({"id": "pull"}));
    talk.until("BLOCK_EXPORT_DELETED");
    talk.ask("job-cancel", json!({"id": "j"}));
    talk.until("j null");
    talk.ask("blockdev-del", json!({"node-name": "fleece"}));
}

/// A pull backup without a job, and a push of the same instant.
fn fleece_by_filter(talk: &mut Talk<'_>) {
    let filter = json!({"driver": "copy-before-write", "node-name": "cbw", "file": "file",
        "target": "old"});
    talk.ask("blockdev-add", filter);
    let reopen =
        |child| json!({"options": [{"driver": "raw", "node-name": "disk", "file": child}]});
    talk.ask("blockdev-reopen", reopen("cbw"));
    talk.ask(
        "blockdev-add",
        json!({"driver": "snapshot-access", "node-name": "at", "file": "cbw"}),
    );
    let export = json!({"type": "nbd", "id": "pull", "name": "pull", "node-name": "at"});
    talk.ask("block-export-add", export);
    talk.io("guest", &["write -P 7 100k 100k"]);
    talk.io("pull", &["read -P 9 0 1M"]);
    talk.map("pull", "base:allocation");
    talk.ask("block-export-del", json!({"id": "pull"}));
    talk.until("BLOCK_EXPORT_DELETED");
    talk.backup(json!({"device": "at", "discard-source": true}));
    talk.until("j null");
    talk.ask("blockdev-del", json!({"node-name": "at"}));
    talk.ask("blockdev-reopen", reopen("file"));
    talk.ask("blockdev-del", json!({"node-name": "cbw"}));
}

/// What the top layer has, in clusters of copies, which are longer than its own.
fn top(talk: &mut Talk<'_>) {
    let file = |name: &str| json!({"driver": "file", "filename": talk.place.path(name)});
    let base = json!({"driver": "raw", "node-name": "base", "file": file("base")});
    let chain = json!({"driver": "qcow2", "node-name": "chain", "file": file("chain"),
        "backing": base});
    talk.ask("blockdev-add", chain);
    talk.backup(json!({"device": "chain", "target": "old", "sync": "top"}));
    talk.until("j null");
    let copied = std::fs::read(talk.place.path("old")).unwrap();
    let granules: Vec<_> = copied.chunks(65536).map(|it| [it[0], it[8192], it[65535]]).collect();
    talk.replies.push(json!(["top", {}, granules]));
    talk.ask("blockdev-del", json!({"node-name": "chain"}));
}

fn compressed(talk: &mut Talk<'_>) {
    let packed = talk.place.path("packed");
    let file = json!({"driver": "file", "filename": packed});
    talk.ask("blockdev-add", json!({"driver": "qcow2", "node-name": "packed", "file": file}));
    talk.backup(json!({"target": "packed", "compress": true}));
    talk.until("j null");
    talk.ask("blockdev-del", json!({"node-name": "packed"}));
    let (source, packed) = (talk.place.path("source"), tools::text(&packed).to_owned());
    tools::run("qemu-img", ["compare", "-q", "-U", tools::text(&source), &packed]);
    let checked = tools::run("qemu-img", ["check", "--output=json", &packed]);
    let checked: Value = serde_json::from_str(&checked).unwrap();
    talk.replies.push(json!(["compressed", {}, checked["compressed-clusters"]]));
}

fn script(place: &Place, qmp: Client) -> Talk<'_> {
    let mut talk = Talk { place, qmp, replies: Vec::new(), events: Vec::new() };
    refusals(&mut talk);
    increments(&mut talk);
    let images = ["source", "target"].map(|name| std::fs::read(place.path(name)).unwrap());
    assert!(images[0] == images[1], "the increments are not the disk");
    compressed(&mut talk);
    top(&mut talk);
    fleece_by_job(&mut talk);
    fleece_by_filter(&mut talk);
    assert!(std::fs::read(place.path("target")).unwrap() == vec![9; LENGTH], "another instant");
    talk.ask("quit", json!({}));
    talk
}

fn prepare() -> Place {
    let place = Place::new();
    for (name, byte, length) in [
        ("source", b's', LENGTH),
        ("target", 0, LENGTH),
        ("base", b'b', LENGTH),
        ("old", 0, LENGTH),
    ]
    .into_iter()
    .chain([("short", 0, 512)])
    {
        std::fs::write(place.path(name), vec![byte; length]).unwrap();
    }
    let create = |name: &str, options: &[&str]| {
        let path = place.path(name);
        let ends = [tools::text(&path), "1M"];
        tools::run("qemu-img", [&["create", "-q", "-f", "qcow2"], options, &ends].concat());
    };
    create("fleece", &[]);
    create("packed", &[]);
    create("chain", &["-F", "raw", "-b", "base", "-o", "cluster_size=4k"]);
    let write = ["-f", "qcow2", "-c", "write -P 5 192k 64k", "-c", "write -P 6 512k 128k"];
    tools::run("qemu-io", [&write[..], &[tools::text(&place.path("chain"))]].concat());
    place
}

fn qemu(place: &Place) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(DAEMON.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

/// How often a job stops for a drain is not promised.
fn without_pauses(events: &[String]) -> Vec<String> {
    let is_pause = |event: &&String| {
        let is_seed = event.ends_with(" paused") || event.ends_with(" running");
        !is_seed
    };
    events.iter().filter(is_pause).cloned().collect()
}

/// Leaves places out, where each daemon has its own.
fn comparable(reply: &Value, place: &Place) -> Value {
    let place = place.path("").display().to_string();
    serde_json::from_str(&reply.to_string().replace(&place, "@/")).unwrap()
}

#[test]
fn j26_j72_j73_j83_j84_j86_backups_say_and_do_what_those_of_qemu_do() {
    let theirs = prepare();
    let mut peer = qemu(&theirs);
    wait_until("QEMU's daemon serves", || theirs.pid_file().exists());
    let expected = script(&theirs, Client::of_peer(&theirs.path("qmp.sock")));
    assert!(peer.wait().unwrap().success());
    let ours = prepare();
    let daemon = ours.start(DAEMON);
    let found = script(&ours, Client::new(&ours.path("qmp.sock")));
    assert!(daemon.wait().success());
    assert_eq!(without_pauses(&found.events), without_pauses(&expected.events));
    assert_eq!(found.replies.len(), expected.replies.len());
    let pairs = found.replies.iter().zip(&expected.replies);
    let pairs =
        pairs.map(|(found, expected)| (comparable(found, &ours), comparable(expected, &theirs)));
    let differ: Vec<_> = pairs.filter(|(found, expected)| found != expected).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}
