//! Dirty bitmaps. The same script runs on this daemon and on QEMU's.

mod util;

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, wait_until};

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev null-co,node-name=null,size=67108864 \
    --blockdev null-co,node-name=small,size=1048576 \
    --blockdev file,node-name=ro,filename=@/ro.img,read-only=on \
    --blockdev file,node-name=disk,filename=@/disk.img,discard=unmap \
    --blockdev raw,node-name=keep,file=disk \
    --blockdev raw,node-name=pass,file=disk,discard=unmap \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";

const MIB: u64 = 1 << 20;

/// A monitor, and what it has replied.
struct Talk<'a> {
    place: &'a Place,
    qmp: Client,
    replies: Vec<(String, Value)>,
}

impl Talk<'_> {
    fn ask(&mut self, command: &str, arguments: Value) {
        let reply = self.qmp.ask(command, arguments.clone());
        self.replies.push((format!("{command} {arguments}"), reply));
    }

    fn add(&mut self, node: &str, name: &str, more: Value) {
        let mut arguments = json!({"node": node, "name": name});
        more.as_object().unwrap().iter().for_each(|(key, it)| arguments[key] = it.clone());
        self.ask("block-dirty-bitmap-add", arguments);
    }

    fn on(&mut self, verb: &str, node: &str, name: &str) {
        let bitmap = json!({"node": node, "name": name});
        self.ask(&format!("block-dirty-bitmap-{verb}"), bitmap);
    }

    fn merge(&mut self, node: &str, target: &str, bitmaps: Value) {
        let arguments = json!({"node": node, "target": target, "bitmaps": bitmaps});
        self.ask("block-dirty-bitmap-merge", arguments);
    }

    fn digest(&mut self, node: &str, name: &str) {
        self.ask("x-debug-block-dirty-bitmap-sha256", json!({"node": node, "name": name}));
    }

    /// The bitmaps of all nodes.
    fn list(&mut self) {
        let nodes = self.qmp.run("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().unwrap().iter();
        let mut lists: Vec<_> = nodes
            .map(|node| {
                (node["node-name"].as_str().unwrap().to_owned(), node["dirty-bitmaps"].clone())
            })
            .collect();
        lists.sort_by(|a, b| a.0.cmp(&b.0));
        self.replies.push(("lists".to_owned(), json!(lists)));
    }

    /// Has a client change an export.
    fn write(&mut self, export: &str, commands: &[&str]) {
        let socket = self.place.path("nbd.sock");
        let url = format!("nbd+unix:///{export}?socket={}", socket.display());
        let mut qemu_io = tools::command("qemu-io");
        qemu_io.args(["-f", "raw", "-d", "unmap", &url]);
        commands.iter().for_each(|command| {
            qemu_io.args(["-c", command]);
        });
        assert!(qemu_io.stdout(Stdio::null()).status().unwrap().success());
    }
}

fn prepare() -> Place {
    let place = Place::new();
    for (name, bytes) in [("ro.img", MIB), ("disk.img", 16 * MIB)] {
        std::fs::File::create(place.path(name)).unwrap().set_len(bytes).unwrap();
    }
    place
}

fn script<'a>(place: &'a Place, qmp: Client) -> Talk<'a> {
    let mut talk = Talk { place, qmp, replies: Vec::new() };
    refusals(&mut talk);
    states(&mut talk);
    merges(&mut talk);
    writes(&mut talk);
    talk.ask("quit", json!({}));
    talk
}

fn refusals(talk: &mut Talk<'_>) {
    talk.add("missing", "a", json!({}));
    talk.add("null", "", json!({}));
    talk.add("null", &"n".repeat(1023), json!({}));
    talk.add("null", "a", json!({}));
    talk.add("null", "a", json!({}));
    for granularity in [0, 1, 3, 256, 513] {
        talk.add("null", "g", json!({"granularity": granularity}));
    }
    for granularity in [json!(1_u64 << 32), json!(-1)] {
        talk.add("null", "g", json!({"granularity": granularity}));
    }
    talk.add("null", "coarsest", json!({"granularity": 1_u64 << 31}));
    talk.add("null", "finest", json!({"granularity": 512}));
    talk.add("null", "p", json!({"persistent": true}));
    talk.add("ro", "r", json!({"disabled": true}));
    for verb in ["remove", "clear", "enable", "disable"] {
        talk.on(verb, "null", "missing");
        talk.on(verb, "missing", "a");
    }
    talk.digest("null", "missing");
    talk.digest("missing", "a");
    talk.ask("block-dirty-bitmap-add", json!({"node": "null"}));
    talk.ask("block-dirty-bitmap-add", json!({"node": "null", "name": "b", "bogus": 1}));
    talk.ask("block-dirty-bitmap-merge", json!({"node": "null", "target": "a"}));
    talk.list();
}

fn states(talk: &mut Talk<'_>) {
    for verb in ["enable", "disable", "disable", "clear", "enable", "enable"] {
        talk.on(verb, "null", "a");
    }
    talk.digest("null", "a");
    talk.digest("null", "coarsest");
    talk.digest("small", "missing");
    talk.on("remove", "null", "coarsest");
    talk.on("remove", "null", "coarsest");
    talk.list();
}

fn merges(talk: &mut Talk<'_>) {
    talk.add("small", "s", json!({}));
    talk.merge("null", "a", json!(["missing"]));
    talk.merge("null", "missing", json!(["a"]));
    talk.merge("null", "a", json!(["a", "finest"]));
    talk.merge("null", "a", json!([{"node": "small", "name": "s"}]));
    talk.merge("null", "a", json!([{"node": "missing", "name": "s"}]));
    talk.merge("null", "a", json!([{"node": "small", "name": "missing"}]));
    talk.merge("null", "a", json!([{"node": "small", "name": "s", "x": 1}]));
    talk.merge("null", "a", json!([{"node": "small"}]));
    talk.list();
}

fn writes(talk: &mut Talk<'_>) {
    for export in ["keep", "pass"] {
        let arguments = json!({"type": "nbd", "id": export, "node-name": export, "writable": true});
        talk.ask("block-export-add", arguments);
    }
    for (node, name) in [("disk", "disk"), ("keep", "above"), ("pass", "above")] {
        talk.add(node, name, json!({"granularity": 4096}));
    }
    talk.add("disk", "off", json!({"granularity": 4096, "disabled": true}));
    talk.write("keep", &["write 1000 5000", "write -z 1M 64k", "write 16776000 1216"]);
    talk.list();
    // One that is ignored, and one that is not.
    talk.write("keep", &["discard 2M 64k"]);
    talk.list();
    talk.write("pass", &["discard 3M 64k", "write -z -u 4M 64k"]);
    talk.list();
    for (node, name) in [("disk", "disk"), ("keep", "above"), ("pass", "above"), ("disk", "off")] {
        talk.digest(node, name);
    }
    talk.on("enable", "disk", "off");
    talk.on("disable", "disk", "disk");
    talk.write("keep", &["write 8M 4k"]);
    talk.list();
    talk.on("clear", "keep", "above");
    talk.merge(
        "keep",
        "above",
        json!([{"node": "disk", "name": "off"}, {"node": "pass", "name": "above"}]),
    );
    talk.digest("keep", "above");
    talk.list();
    for export in ["keep", "pass"] {
        talk.ask("block-export-del", json!({"id": export, "mode": "hard"}));
        talk.qmp.event("BLOCK_EXPORT_DELETED");
    }
    talk.ask("block_resize", json!({"node-name": "keep", "size": 32 * MIB}));
    talk.list();
    talk.digest("keep", "above");
    talk.ask("block_resize", json!({"node-name": "keep", "size": 4 * MIB}));
    talk.list();
    talk.digest("keep", "above");
}

fn qemu(place: &Place) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(DAEMON.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

#[test]
fn j107_j108_j109_j110_j112_bitmaps_are_as_those_of_qemu() {
    let theirs = prepare();
    let mut peer = qemu(&theirs);
    wait_until("QEMU's daemon serves", || theirs.pid_file().exists());
    let expected = script(&theirs, Client::of_peer(&theirs.path("qmp.sock")));
    assert!(peer.wait().unwrap().success());
    let ours = prepare();
    let daemon = ours.start(DAEMON);
    let found = script(&ours, Client::new(&ours.path("qmp.sock")));
    assert!(daemon.wait().success());
    assert_eq!(found.replies.len(), expected.replies.len());
    for (found, expected) in found.replies.iter().zip(&expected.replies) {
        assert_eq!(found, expected);
    }
}

#[test]
fn j110_a_merge_of_none_succeeds() {
    let place = prepare();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    qmp.run("block-dirty-bitmap-add", json!({"node": "null", "name": "a"}));
    let none = json!({"node": "null", "target": "a", "bitmaps": []});
    qmp.run("block-dirty-bitmap-merge", none);
    drop(daemon);
}
