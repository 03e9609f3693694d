//! Metadata contexts of NBD exports: bitmaps and depths, as clients see them. The same script runs on this
//! daemon and on QEMU's.

mod util;

use coblk_tests::tools;
use serde_json::{Value, json};
use util::Place;
use util::both::{Talk, assert_same, on_both};
use util::qmp::Client;

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/top.qcow2,\
    backing.driver=qcow2,backing.node-name=base,backing.file.driver=file,\
    backing.file.filename=@/base.qcow2 \
    --blockdev raw,node-name=raw,file=disk \
    --blockdev null-co,node-name=null,size=1048576 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";

/// A base with data in its second MiB and a bitmap, and an overlay with data in its first 64 KiB.
fn prepare() -> Place {
    let place = Place::new();
    let [base, top] = ["base.qcow2", "top.qcow2"].map(|name| place.path(name));
    let [base, top] = [&base, &top].map(|path| tools::text(path));
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", base, "4M"]);
    tools::run("qemu-img", ["bitmap", "--add", base, "below"]);
    tools::run("qemu-io", ["-f", "qcow2", "-c", "write 1M 1M", base]);
    let names = "backing_file=base.qcow2,backing_fmt=qcow2";
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", names, top, "4M"]);
    tools::run("qemu-img", ["bitmap", "--add", top, "own"]);
    tools::run("qemu-img", ["bitmap", "--add", "--disable", "-g", "4k", top, "fine"]);
    tools::run("qemu-io", ["-f", "qcow2", "-c", "write 0 64k", top]);
    place
}

fn export(talk: &mut Talk<'_>, name: &str, more: Value) {
    let mut arguments = json!({"type": "nbd", "id": name, "name": name, "node-name": "disk"});
    more.as_object().unwrap().iter().for_each(|(key, it)| arguments[key] = it.clone());
    talk.ask("block-export-add", arguments);
}

/// The contexts that a server lists, and the map of one.
fn look(talk: &mut Talk<'_>, export: &str, contexts: &[&str]) {
    let url = talk.place.uri(export);
    let listed = tools::run("nbdinfo", ["--json", &url]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let contexts_there = listed["exports"][0]["contexts"].clone();
    talk.note(format!("contexts of {export}"), contexts_there);
    for context in contexts {
        let map = format!("--map={context}");
        let map = tools::run("nbdinfo", ["--json", &map, &url]);
        talk.note(format!("{context} of {export}"), serde_json::from_str(&map).unwrap());
    }
}

/// What `qemu-img map` makes of a context.
fn map(talk: &mut Talk<'_>, export: &str, context: &str) {
    let socket = talk.place.path("nbd.sock");
    let options = format!(
        "driver=nbd,export={export},server.type=unix,server.path={},x-dirty-bitmap={context}",
        socket.display()
    );
    let map = tools::run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
    let map = serde_json::from_str(&map).unwrap();
    talk.note(format!("map of {context}"), map);
}

fn script(talk: &mut Talk<'_>) {
    refusals(talk);
    export(talk, "plain", json!({}));
    look(talk, "plain", &["base:allocation"]);
    export(talk, "deep", json!({"allocation-depth": true}));
    look(talk, "deep", &["qemu:allocation-depth"]);
    map(talk, "deep", "qemu:allocation-depth");
    let all = json!(["own", "below", {"node": "disk", "name": "fine"}]);
    export(talk, "all", json!({"allocation-depth": true, "bitmaps": all, "writable": true}));
    let own = "qemu:dirty-bitmap:own";
    let contexts = [
        "base:allocation",
        "qemu:allocation-depth",
        own,
        "qemu:dirty-bitmap:below",
        "qemu:dirty-bitmap:fine",
    ];
    look(talk, "all", &contexts);
    map(talk, "all", own);
    // It goes on recording, and nothing else may be done with it.
    tools::run("qemu-io", ["-f", "raw", "-c", "write 3M 1k", &talk.place.uri("all")]);
    look(talk, "all", &[own]);
    let bitmap = json!({"node": "disk", "name": "own"});
    for verb in ["clear", "enable", "disable", "remove"] {
        talk.ask(&format!("block-dirty-bitmap-{verb}"), bitmap.clone());
    }
    let merge = json!({"node": "disk", "target": "own", "bitmaps": ["fine"]});
    talk.ask("block-dirty-bitmap-merge", merge);
    export(talk, "again", json!({"bitmaps": ["own"], "writable": true}));
    talk.ask("block-export-del", json!({"id": "all", "mode": "hard"}));
    talk.qmp.event("BLOCK_EXPORT_DELETED");
    talk.ask("block-dirty-bitmap-clear", bitmap);
    let older = json!({"device": "disk", "name": "older", "bitmap": "fine"});
    talk.ask("nbd-server-add", older);
    look(talk, "older", &["qemu:dirty-bitmap:fine"]);
}

fn refusals(talk: &mut Talk<'_>) {
    for bitmaps in [
        json!(["missing"]),
        json!(["own"]),
        json!([{"node": "missing", "name": "own"}]),
        json!([{"node": "disk", "name": "missing"}]),
        json!([{"node": "disk"}]),
    ] {
        export(talk, "refused", json!({"bitmaps": bitmaps}));
    }
    // The bitmaps of a raw node's file are not its own.
    export(talk, "refused", json!({"node-name": "raw", "writable": true, "bitmaps": ["own"]}));
}

#[test]
fn j118_j119_j120_contexts_are_those_of_qemu() {
    let both = on_both(prepare, DAEMON, script);
    assert_same(&both, |reply| reply);
    // What was left in the images.
    for (place, _) in &both {
        let image = place.path("top.qcow2");
        let info = tools::run("qemu-img", ["info", "--output=json", tools::text(&image)]);
        let info: Value = serde_json::from_str(&info).unwrap();
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        assert_eq!((&bitmaps[0]["name"], &bitmaps[0]["flags"]), (&json!("own"), &json!(["auto"])));
        tools::run("qemu-img", ["check", tools::text(&image)]);
    }
}

#[test]
fn j119_a_session_may_have_several_contexts_at_once() {
    let place = prepare();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let arguments = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true,
        "bitmaps": ["own", "fine"], "allocation-depth": true});
    qmp.run("block-export-add", arguments);
    let script = "\
h.add_meta_context('qemu:dirty-bitmap:fine')\n\
h.add_meta_context('base:allocation')\n\
h.add_meta_context('qemu:allocation-depth')\n\
h.add_meta_context('qemu:dirty-bitmap:own')\n\
h.add_meta_context('qemu:dirty-bitmap:missing')\n\
h.connect_uri(URI)\n\
seen = []\n\
h.block_status(4 << 20, 0, lambda name, offset, extents, error: seen.append((name, extents)))\n\
print(seen)\n";
    let script = format!("URI = '{}'\n{script}", place.uri("disk"));
    let mut nbdsh = tools::command("nbdsh");
    // The Python that has its module, whatever else is on the path.
    nbdsh.env("PATH", "/usr/bin:/bin").args(["-c", &script]);
    let said = tools::expect_success("nbdsh", &tools::finish("nbdsh", &mut nbdsh));
    let expected = "[('base:allocation', [65536, 0, 983040, 3, 1048576, 0, 2097152, 3]), \
        ('qemu:allocation-depth', [65536, 1, 983040, 0, 1048576, 2, 2097152, 0]), \
        ('qemu:dirty-bitmap:own', [65536, 1, 4128768, 0]), ('qemu:dirty-bitmap:fine', [4194304, 0])]";
    assert_eq!(said.trim(), expected);
    drop(daemon);
}
