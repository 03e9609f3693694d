//! Dirty bitmaps. The same script runs on this daemon and on QEMU's.

mod util;

use std::process::Stdio;

use coblk_tests::tools;
use serde_json::{Value, json};
use util::Place;
use util::both::{Talk, assert_same, on_both};
use util::qmp::Client;

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev null-co,node-name=null,size=67108864 \
    --blockdev null-co,node-name=small,size=1048576 \
    --blockdev file,node-name=ro,filename=@/ro.img,read-only=on \
    --blockdev file,node-name=disk,filename=@/disk.img,discard=unmap \
    --blockdev raw,node-name=keep,file=disk \
    --blockdev raw,node-name=pass,file=disk,discard=unmap \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";

const MIB: u64 = 1 << 20;

fn add(talk: &mut Talk<'_>, node: &str, name: &str, more: Value) {
    let mut arguments = json!({"node": node, "name": name});
    more.as_object().unwrap().iter().for_each(|(key, it)| arguments[key] = it.clone());
    talk.ask("block-dirty-bitmap-add", arguments);
}

fn on(talk: &mut Talk<'_>, verb: &str, node: &str, name: &str) {
    let bitmap = json!({"node": node, "name": name});
    talk.ask(&format!("block-dirty-bitmap-{verb}"), bitmap);
}

fn merge(talk: &mut Talk<'_>, node: &str, target: &str, bitmaps: Value) {
    let arguments = json!({"node": node, "target": target, "bitmaps": bitmaps});
    talk.ask("block-dirty-bitmap-merge", arguments);
}

fn digest(talk: &mut Talk<'_>, node: &str, name: &str) {
    talk.ask("x-debug-block-dirty-bitmap-sha256", json!({"node": node, "name": name}));
}

/// The bitmaps of all nodes.
fn list(talk: &mut Talk<'_>) {
    let nodes = talk.qmp.run("query-named-block-nodes", json!({"flat": true}));
    let nodes = nodes.as_array().unwrap().iter();
    let mut lists: Vec<_> = nodes
        .map(|node| (node["node-name"].as_str().unwrap().to_owned(), node["dirty-bitmaps"].clone()))
        .collect();
    lists.sort_by(|a, b| a.0.cmp(&b.0));
    talk.note("lists", json!(lists));
}

/// Has a client change an export.
fn write(talk: &Talk<'_>, export: &str, commands: &[&str]) {
    let mut qemu_io = tools::command("qemu-io");
    qemu_io.args(["-f", "raw", "-d", "unmap", &talk.place.uri(export)]);
    commands.iter().for_each(|command| {
        qemu_io.args(["-c", command]);
    });
    assert!(qemu_io.stdout(Stdio::null()).status().unwrap().success());
}

fn prepare() -> Place {
    let place = Place::new();
    for (name, bytes) in [("ro.img", MIB), ("disk.img", 16 * MIB)] {
        std::fs::File::create(place.path(name)).unwrap().set_len(bytes).unwrap();
    }
    place
}

fn refusals(talk: &mut Talk<'_>) {
    add(talk, "missing", "a", json!({}));
    add(talk, "null", "", json!({}));
    add(talk, "null", &"n".repeat(1023), json!({}));
    add(talk, "null", "a", json!({}));
    add(talk, "null", "a", json!({}));
    for granularity in [0, 1, 3, 256, 513] {
        add(talk, "null", "g", json!({"granularity": granularity}));
    }
    for granularity in [json!(1_u64 << 32), json!(-1)] {
        add(talk, "null", "g", json!({"granularity": granularity}));
    }
    add(talk, "null", "coarsest", json!({"granularity": 1_u64 << 31}));
    add(talk, "null", "finest", json!({"granularity": 512}));
    add(talk, "null", "p", json!({"persistent": true}));
    add(talk, "ro", "r", json!({"disabled": true}));
    for verb in ["remove", "clear", "enable", "disable"] {
        on(talk, verb, "null", "missing");
        on(talk, verb, "missing", "a");
    }
    digest(talk, "null", "missing");
    digest(talk, "missing", "a");
    talk.ask("block-dirty-bitmap-add", json!({"node": "null"}));
    talk.ask("block-dirty-bitmap-add", json!({"node": "null", "name": "b", "bogus": 1}));
    talk.ask("block-dirty-bitmap-merge", json!({"node": "null", "target": "a"}));
    list(talk);
}

fn states(talk: &mut Talk<'_>) {
    for verb in ["enable", "disable", "disable", "clear", "enable", "enable"] {
        on(talk, verb, "null", "a");
    }
    digest(talk, "null", "a");
    digest(talk, "null", "coarsest");
    digest(talk, "small", "missing");
    on(talk, "remove", "null", "coarsest");
    on(talk, "remove", "null", "coarsest");
    list(talk);
}

fn merges(talk: &mut Talk<'_>) {
    add(talk, "small", "s", json!({}));
    merge(talk, "null", "a", json!(["missing"]));
    merge(talk, "null", "missing", json!(["a"]));
    merge(talk, "null", "a", json!(["a", "finest"]));
    merge(talk, "null", "a", json!([{"node": "small", "name": "s"}]));
    merge(talk, "null", "a", json!([{"node": "missing", "name": "s"}]));
    merge(talk, "null", "a", json!([{"node": "small", "name": "missing"}]));
    merge(talk, "null", "a", json!([{"node": "small", "name": "s", "x": 1}]));
    merge(talk, "null", "a", json!([{"node": "small"}]));
    list(talk);
}

fn writes(talk: &mut Talk<'_>) {
    for export in ["keep", "pass"] {
        let arguments = json!({"type": "nbd", "id": export, "node-name": export, "writable": true});
        talk.ask("block-export-add", arguments);
    }
    for (node, name) in [("disk", "disk"), ("keep", "above"), ("pass", "above")] {
        add(talk, node, name, json!({"granularity": 4096}));
    }
    add(talk, "disk", "off", json!({"granularity": 4096, "disabled": true}));
    write(talk, "keep", &["write 1000 5000", "write -z 1M 64k", "write 16776000 1216"]);
    list(talk);
    // One that is ignored, and one that is not.
    write(talk, "keep", &["discard 2M 64k"]);
    list(talk);
    write(talk, "pass", &["discard 3M 64k", "write -z -u 4M 64k"]);
    list(talk);
    for (node, name) in [("disk", "disk"), ("keep", "above"), ("pass", "above"), ("disk", "off")] {
        digest(talk, node, name);
    }
    on(talk, "enable", "disk", "off");
    on(talk, "disable", "disk", "disk");
    write(talk, "keep", &["write 8M 4k"]);
    list(talk);
    on(talk, "clear", "keep", "above");
    merge(
        talk,
        "keep",
        "above",
        json!([{"node": "disk", "name": "off"}, {"node": "pass", "name": "above"}]),
    );
    digest(talk, "keep", "above");
    list(talk);
    for export in ["keep", "pass"] {
        talk.ask("block-export-del", json!({"id": export, "mode": "hard"}));
        talk.qmp.event("BLOCK_EXPORT_DELETED");
    }
    talk.ask("block_resize", json!({"node-name": "keep", "size": 32 * MIB}));
    list(talk);
    digest(talk, "keep", "above");
    talk.ask("block_resize", json!({"node-name": "keep", "size": 4 * MIB}));
    list(talk);
    digest(talk, "keep", "above");
}

#[test]
fn j107_j108_j109_j110_j112_bitmaps_are_as_those_of_qemu() {
    let both = on_both(prepare, DAEMON, |talk| {
        refusals(talk);
        states(talk);
        merges(talk);
        writes(talk);
    });
    assert_same(&both, |reply| reply);
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
