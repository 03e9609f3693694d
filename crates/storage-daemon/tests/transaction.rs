//! `transaction`. The same script runs on this daemon and on QEMU's.

mod util;

use coblk_tests::tools;
use serde_json::{Value, json};
use util::Place;
use util::both::{Talk, assert_same, on_both};
use util::qmp::Client;

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev null-co,node-name=null,size=67108864 \
    --blockdev null-co,node-name=small,size=1048576 \
    --blockdev file,node-name=file,filename=@/image \
    --blockdev qcow2,node-name=image,file=file \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";

fn prepare() -> Place {
    let place = Place::new();
    let image = place.path("image");
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", tools::text(&image), "16M"]);
    tools::run("qemu-img", ["bitmap", "--add", tools::text(&image), "kept"]);
    place
}

fn action(kind: &str, data: Value) -> Value {
    json!({"type": kind, "data": data})
}

/// What `block-dirty-bitmap-VERB` does to a bitmap.
fn bitmap(verb: &str, node: &str, name: &str) -> Value {
    action(&format!("block-dirty-bitmap-{verb}"), json!({"node": node, "name": name}))
}

fn merge(node: &str, target: &str, bitmaps: Value) -> Value {
    let data = json!({"node": node, "target": target, "bitmaps": bitmaps});
    action("block-dirty-bitmap-merge", data)
}

fn snapshot(device: &str, name: &str) -> Value {
    action("blockdev-snapshot-internal-sync", json!({"device": device, "name": name}))
}

fn abort() -> Value {
    action("abort", json!({}))
}

/// Runs a transaction, and looks at all that it may have changed.
fn run(talk: &mut Talk<'_>, actions: &[Value]) {
    talk.ask("transaction", json!({"actions": actions}));
    let nodes = talk.qmp.run("query-named-block-nodes", json!({"flat": true}));
    let of = |node: &Value| {
        let mut snapshots = node["image"]["snapshots"].clone();
        for snapshot in snapshots.as_array_mut().into_iter().flatten() {
            *snapshot = snapshot["name"].clone();
        }
        let name = node["node-name"].as_str().unwrap().to_owned();
        (name, json!([node["dirty-bitmaps"], snapshots]))
    };
    let mut lists: Vec<_> = nodes.as_array().unwrap().iter().map(of).collect();
    lists.sort_by(|a, b| a.0.cmp(&b.0));
    talk.note("lists", json!(lists));
}

fn refusals(talk: &mut Talk<'_>) {
    let add = bitmap("add", "null", "a");
    for actions in [
        json!([{}]),
        json!([{"type": "abort"}]),
        json!([{"type": "abort", "data": {"x": 1}}]),
        json!([{"type": "abort", "data": 5}]),
        json!([{"type": "bogus", "data": {}}]),
        json!([add, {"type": "bogus", "data": {}}]),
        json!([add, {"type": "abort", "data": {}, "x": 1}]),
        json!([action("block-dirty-bitmap-add", json!({"node": "null"}))]),
        json!([add, merge("null", "a", json!([{"node": "null"}]))]),
        json!([5]),
        json!(5),
    ] {
        talk.ask("transaction", json!({"actions": actions}));
    }
    talk.ask("transaction", json!({}));
    talk.ask("transaction", json!({"actions": [], "x": 1}));
    for (actions, properties) in [
        (json!([]), json!({})),
        (json!([]), json!({"completion-mode": "grouped"})),
        (json!([]), json!({"completion-mode": "bogus"})),
        (json!([]), json!({"x": 1})),
        (json!([add]), json!({"completion-mode": "grouped"})),
        (json!([abort()]), json!({"completion-mode": "grouped"})),
        (json!([snapshot("image", "s")]), json!({"completion-mode": "grouped"})),
    ] {
        talk.ask("transaction", json!({"actions": actions, "properties": properties}));
    }
    run(talk, &[]);
}

fn bitmaps(talk: &mut Talk<'_>) {
    run(talk, &[bitmap("add", "null", "a"), abort()]);
    run(talk, &[bitmap("add", "missing", "a")]);
    run(talk, &[bitmap("add", "null", "a"), bitmap("add", "null", "a")]);
    run(talk, &[bitmap("add", "null", "a"), bitmap("clear", "missing", "a")]);
    run(talk, &[bitmap("add", "null", "a"), bitmap("add", "image", "b")]);
    for verb in ["clear", "disable", "remove"] {
        run(talk, &[bitmap(verb, "null", "a"), bitmap(verb, "null", "missing")]);
    }
    // QEMU's daemon ends where one that is enabled is enabled in vain.
    run(talk, &[bitmap("disable", "image", "b")]);
    run(talk, &[bitmap("enable", "image", "b"), abort()]);
    run(talk, &[bitmap("enable", "image", "b")]);
    run(talk, &[bitmap("disable", "null", "a"), abort()]);
    run(talk, &[bitmap("disable", "null", "a"), bitmap("add", "null", "b")]);
    run(talk, &[bitmap("remove", "null", "a"), bitmap("add", "null", "a")]);
    run(talk, &[bitmap("remove", "null", "a"), bitmap("clear", "null", "a")]);
    run(talk, &[bitmap("add", "small", "s"), merge("null", "a", json!(["b", "missing"]))]);
    let other = json!([{"node": "null", "name": "a"}]);
    run(talk, &[bitmap("add", "small", "s"), merge("small", "s", other)]);
    // One that the image has.
    run(talk, &[bitmap("remove", "image", "kept"), abort()]);
    run(talk, &[bitmap("clear", "image", "kept"), bitmap("disable", "image", "kept")]);
}

fn writes(talk: &mut Talk<'_>) {
    let export =
        json!({"type": "nbd", "id": "e", "name": "e", "node-name": "image", "writable": true});
    talk.ask("block-export-add", export);
    let write = |talk: &mut Talk<'_>, what: &str| {
        tools::run("qemu-io", ["-f", "raw", "-c", what, &talk.place.uri("e")]);
    };
    write(talk, "write 1M 64k");
    run(talk, &[bitmap("add", "image", "c"), merge("image", "c", json!(["b"])), abort()]);
    run(talk, &[bitmap("disable", "image", "b"), bitmap("add", "image", "c")]);
    write(talk, "write 2M 64k");
    run(talk, &[bitmap("clear", "image", "b"), bitmap("clear", "image", "c"), abort()]);
    run(talk, &[merge("image", "b", json!(["c"])), bitmap("clear", "image", "c")]);
    for name in ["b", "c"] {
        talk.ask("x-debug-block-dirty-bitmap-sha256", json!({"node": "image", "name": name}));
    }
}

fn snapshots(talk: &mut Talk<'_>) {
    run(talk, &[snapshot("image", "one"), abort()]);
    run(talk, &[snapshot("image", "one"), snapshot("missing", "one")]);
    run(talk, &[snapshot("null", "one")]);
    run(talk, &[snapshot("image", "")]);
    run(talk, &[snapshot("image", "one"), snapshot("image", "one")]);
    run(talk, &[snapshot("image", "one"), bitmap("add", "image", "since")]);
    run(talk, &[snapshot("image", "one")]);
    run(talk, &[snapshot("image", "two"), snapshot("image", "three")]);
    talk.ask("block-export-del", json!({"id": "e", "mode": "hard"}));
    talk.qmp.event("BLOCK_EXPORT_DELETED");
}

/// Errors of words name those that there are, and what they are in, which QEMU's do not.
fn comparable(mut reply: Value) -> Value {
    if let Some(text) = reply["error"]["desc"].as_str() {
        let text = text.split("; there is").next().unwrap();
        let text = text.replace("'properties.completion-mode' does", "'completion-mode' does");
        reply["error"]["desc"] = text.into();
    }
    reply
}

#[test]
fn j121_j122_j123_transactions_are_as_those_of_qemu() {
    let both = on_both(prepare, DAEMON, |talk| {
        refusals(talk);
        bitmaps(talk);
        writes(talk);
        snapshots(talk);
    });
    assert_same(&both, comparable);
    for (place, _) in &both {
        tools::run("qemu-img", ["check", "-q", tools::text(&place.path("image"))]);
    }
}

#[test]
fn j122_a_bitmap_is_still_stored_after_its_removal_was_taken_back() {
    let place = prepare();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let actions = json!({"actions": [bitmap("remove", "image", "kept"), abort()]});
    qmp.refused("transaction", actions);
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().success());
    let image = place.path("image");
    let info = tools::run("qemu-img", ["info", "--output=json", tools::text(&image)]);
    let info: Value = serde_json::from_str(&info).unwrap();
    let bitmaps = &info["format-specific"]["data"]["bitmaps"];
    assert_eq!((&bitmaps[0]["name"], &bitmaps[1]), (&json!("kept"), &Value::Null));
}

/// A node of a new file.
fn add_file(talk: &mut Talk<'_>, name: &str) {
    let path = talk.place.path(name);
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let node = json!({"driver": "file", "node-name": name, "filename": path});
    talk.qmp.run("blockdev-add", node);
}

fn backup(id: &str, more: Value) -> Value {
    let mut data = json!({"job-id": id, "device": "small", "target": id, "sync": "full"});
    more.as_object().unwrap().iter().for_each(|(key, it)| data[key] = it.clone());
    action("blockdev-backup", data)
}

/// Runs a transaction, and looks at jobs and bitmaps.
fn start(talk: &mut Talk<'_>, actions: &[Value], grouped: bool) {
    let mode = if grouped { "grouped" } else { "individual" };
    let properties = json!({"completion-mode": mode});
    talk.ask("transaction", json!({"actions": actions, "properties": properties}));
}

fn backups(talk: &mut Talk<'_>) {
    for name in ["b0", "b1", "b2"] {
        add_file(talk, name);
    }
    start(talk, &[backup("b0", json!({})), abort()], false);
    talk.until("b0 null");
    start(talk, &[backup("b0", json!({})), backup("b0", json!({}))], false);
    talk.until("b0 null");
    start(talk, &[backup("b0", json!({})), bitmap("add", "small", "x")], true);
    start(talk, &[backup("b0", json!({})), bitmap("add", "small", "since")], false);
    talk.until("b0 null");
    // Both end together.
    let waits = json!({"auto-finalize": false});
    start(talk, &[backup("b0", waits.clone()), backup("b1", json!({}))], true);
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("query-jobs", json!({}));
    talk.ask("job-finalize", json!({"id": "b1"}));
    talk.until("b0 null");
    start(talk, &[backup("b0", waits.clone()), backup("b1", waits)], true);
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("job-cancel", json!({"id": "b0"}));
    talk.until("b0 null");
    talk.ask("query-jobs", json!({}));
}

#[test]
fn j123_backups_of_a_transaction_end_as_those_of_qemu() {
    let both = on_both(prepare, DAEMON, backups);
    let [(_, expected), (_, found)] = &both;
    assert_eq!(found.replies.len(), expected.replies.len());
    for (found, expected) in found.replies.iter().zip(&expected.replies) {
        assert_eq!(comparable(found.1.clone()), comparable(expected.1.clone()), "{}", found.0);
    }
    // Jobs of one group are told in an order that is promised job by job.
    for id in ["b0", "b1"] {
        let of = |events: &[String]| -> Vec<String> {
            let events = events.iter().filter(|it| it.contains(id)).cloned().collect::<Vec<_>>();
            util::both::without_pauses(&events)
        };
        assert_eq!(of(&found.events), of(&expected.events), "{id}");
    }
}

#[test]
fn j122_an_overlay_and_a_bitmap_come_at_one_instant_or_not_at_all() {
    let place = prepare();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let overlay = place.path("overlay");
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", tools::text(&overlay), "16M"]);
    let export = json!({"type": "nbd", "id": "e", "node-name": "image", "writable": true});
    qmp.run("block-export-add", export);
    let node = json!({
        "driver": "qcow2", "node-name": "top", "backing": null,
        "file": {"driver": "file", "filename": overlay},
    });
    qmp.run("blockdev-add", node);
    let put = action("blockdev-snapshot", json!({"node": "image", "overlay": "top"}));
    let exported = |qmp: &mut Client| -> Value {
        qmp.run("query-block-exports", json!({}))[0]["node-name"].clone()
    };
    qmp.refused("transaction", json!({"actions": [put, abort()]}));
    assert_eq!(exported(&mut qmp), "image");
    let add = bitmap("add", "top", "since");
    qmp.run("transaction", json!({"actions": [put, add, bitmap("disable", "image", "kept")]}));
    assert_eq!(exported(&mut qmp), "top");
    let digest = json!({"node": "top", "name": "since"});
    qmp.run("x-debug-block-dirty-bitmap-sha256", digest);
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn j122_a_new_overlay_is_there_with_all_other_actions_or_not_at_all() {
    let place = prepare();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let export = json!({"type": "nbd", "id": "e", "node-name": "image", "writable": true});
    qmp.run("block-export-add", export);
    let make = |file: &str| {
        let data = json!({
            "node-name": "image", "snapshot-file": place.path(file), "snapshot-node-name": "top",
        });
        action("blockdev-snapshot-sync", data)
    };
    let exported = |qmp: &mut Client| -> Value {
        qmp.run("query-block-exports", json!({}))[0]["node-name"].clone()
    };
    qmp.refused("transaction", json!({"actions": [make("first"), abort()]}));
    assert_eq!(exported(&mut qmp), "image");
    // Its name is free again.
    qmp.run("transaction", json!({"actions": [make("second"), bitmap("add", "top", "since")]}));
    assert_eq!(exported(&mut qmp), "top");
    let digest = json!({"node": "top", "name": "since"});
    qmp.run("x-debug-block-dirty-bitmap-sha256", digest);
    let info = tools::run("qemu-img", ["info", "-U", tools::text(&place.path("second"))]);
    assert!(info.contains("backing file: "), "{info}");
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().success());
}
