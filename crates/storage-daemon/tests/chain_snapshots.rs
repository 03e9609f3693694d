//! `blockdev-snapshot`, `blockdev-snapshot-sync` and `change-backing-file`. The same script runs on this daemon and on
//! QEMU's.

mod util;

use serde_json::{Value, json};
use util::chain_script::{Talk, backing, check, content, on_both};

const IMAGES: [&str; 2] = ["base", "top"];

fn add(talk: &mut Talk<'_>, name: &str, more: Value) {
    let mut node = json!({
        "driver": "qcow2", "node-name": name, "backing": null,
        "file": {"driver": "file", "filename": talk.place.path(name)},
    });
    for (name, value) in more.as_object().unwrap() {
        node[name] = value.clone();
    }
    talk.run("blockdev-add", node);
}

fn create(talk: &mut Talk<'_>, name: &str, below: &str) {
    let [path, below] = [name, below].map(|name| talk.place.path(name));
    let [path, below] = [&path, &below].map(|path| coblk_tests::tools::text(path));
    let arguments = ["create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", "qcow2", path, "1M"];
    coblk_tests::tools::run("qemu-img", arguments);
}

fn snapshots(talk: &mut Talk<'_>) {
    create(talk, "over", "top");
    add(talk, "over", json!({}));
    talk.run("blockdev-add", json!({"driver": "null-co", "node-name": "null", "size": 1 << 20}));
    talk.run("blockdev-add", json!({"driver": "raw", "node-name": "raw", "file": "null"}));
    // What turns from overlay to overlay.
    talk.run("blockdev-add", json!({"driver": "raw", "node-name": "user", "file": "top"}));
    talk.run(
        "blockdev-add",
        json!({
        "driver": "copy-on-read", "node-name": "cor", "file": "null"}),
    );
    for (node, overlay) in [
        ("nowhere", "over"),
        ("top", "nowhere"),
        ("top", "base"),
        ("top", "top"),
        ("top", "raw"),
        ("top", "null"),
        ("top", "cor"),
        ("top", "over"),
        ("top", "over"),
    ] {
        talk.ask("blockdev-snapshot", json!({"node": node, "overlay": overlay}));
    }
    talk.look_at_nodes();
}

fn snapshots_sync(talk: &mut Talk<'_>) {
    let sync = |talk: &mut Talk<'_>, more: Value| {
        let mut arguments = json!({
            "node-name": "over", "snapshot-file": talk.place.path("new"),
            "snapshot-node-name": "new",
        });
        for (name, value) in more.as_object().unwrap() {
            arguments[name] = value.clone();
        }
        talk.ask("blockdev-snapshot-sync", arguments);
    };
    sync(talk, json!({"node-name": "nowhere"}));
    sync(talk, json!({"snapshot-node-name": "base"}));
    sync(talk, json!({"device": "over"}));
    let file = talk.place.path("new");
    talk.ask("blockdev-snapshot-sync", json!({"node-name": "over", "snapshot-file": file}));
    talk.ask("blockdev-snapshot-sync", json!({"device": "nowhere", "snapshot-file": file}));
    sync(talk, json!({}));
    talk.look_at_nodes();
    create(talk, "existing", "new");
    sync(
        talk,
        json!({
        "node-name": "new", "snapshot-node-name": "existing", "mode": "existing",
        "snapshot-file": talk.place.path("existing")}),
    );
    talk.look_at_nodes();
}

fn names(talk: &mut Talk<'_>) {
    for (device, image, file) in [
        ("nowhere", "top", "x"),
        ("user", "nowhere", "x"),
        ("user", "base", "x"),
        ("user", "null", "x"),
        ("top", "over", "x"),
        ("raw", "over", "x"),
        ("user", "existing", "new"),
        ("user", "over", "top"),
    ] {
        let arguments = json!({"device": device, "image-node-name": image, "backing-file": file});
        talk.ask("change-backing-file", arguments);
    }
    talk.look_at_nodes();
}

fn script(talk: &mut Talk<'_>) {
    talk.add_chain(&IMAGES);
    snapshots(talk);
    snapshots_sync(talk);
    names(talk);
}

#[test]
fn j97_j99_j100_snapshots_say_what_those_of_qemu_say() {
    let places = on_both(&IMAGES, script, |reply| reply);
    let expected = content(&places[0], "top");
    for place in &places {
        for name in ["existing", "new", "over", "top"] {
            check(place, name);
            assert!(content(place, name) == expected, "{name}");
        }
        assert_eq!(backing(place, "existing"), (json!("new"), json!("qcow2")));
        assert_eq!(backing(place, "new"), (json!("over"), json!("qcow2")));
        assert_eq!(backing(place, "over"), (json!("top"), json!("qcow2")));
    }
}
