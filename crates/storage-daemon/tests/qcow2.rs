//! qcow2 images in the storage daemon: on its command line, in lists, over NBD.

mod util;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Daemon, Place};

/// A base with 7 in its first half, and an overlay with 9 in its first 64 KiB.
fn chain(place: &Place) {
    let [base, top] = ["base.qcow2", "top.qcow2"].map(|name| place.path(name));
    let [base, top] = [&base, &top].map(|path| tools::text(path));
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", base, "4M"]);
    tools::run("qemu-io", ["-f", "qcow2", "-c", "write -P 7 0 2M", base]);
    let names = "backing_file=base.qcow2,backing_fmt=qcow2";
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", names, top, "4M"]);
    tools::run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 0 64k", top]);
}

fn start(place: &Place, arguments: &str) -> (Daemon, Client) {
    let monitor = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";
    let daemon = place.start(&format!("{monitor} {arguments}"));
    let client = Client::new(&place.path("qmp.sock"));
    (daemon, client)
}

#[test]
fn a_chain_is_served_over_nbd() {
    let place = Place::new();
    chain(&place);
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=@/top.qcow2 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk",
    );
    let uri = place.uri("disk");
    let mut arguments = vec!["-r", "-f", "raw"];
    for command in ["read -P 9 0 64k", "read -P 7 64k 1984k", "read -P 0 2M 2M"] {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let said = tools::run("qemu-io", arguments);
    assert!(!said.contains("failed"), "{said}");
    let map = tools::run("qemu-img", ["map", "-f", "raw", "--output=json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    assert_eq!(map[1]["start"], 2 << 20, "{map}");
    assert_eq!(map[1]["zero"], true, "{map}");
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    let disk = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "disk");
    let disk = disk.unwrap();
    assert_eq!((&disk["drv"], &disk["ro"]), (&json!("qcow2"), &json!(true)));
    // The backing file is a node of its own, and has a file.
    assert_eq!(nodes.as_array().unwrap().len(), 4);
    daemon.stop(Signal::TERM);
}

#[test]
fn a_backing_file_is_a_node_that_options_name_and_a_reopen_changes() {
    let place = Place::new();
    chain(&place);
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev file,node-name=b,read-only=on,filename=@/base.qcow2 \
         --blockdev qcow2,node-name=base,read-only=on,file=b \
         --blockdev file,node-name=t,read-only=on,filename=@/top.qcow2 \
         --blockdev qcow2,node-name=disk,read-only=on,file=t,backing=base \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk",
    );
    let read = |pattern: u32| {
        let command = format!("read -P {pattern} 1M 64k");
        tools::run("qemu-io", ["-r", "-f", "raw", "-c", &command, &place.uri("disk")])
    };
    assert!(!read(7).contains("failed"));
    let options = |backing: serde_json::Value| {
        json!({"options": [{"driver": "qcow2", "node-name": "disk", "read-only": true,
                            "file": "t", "backing": backing}]})
    };
    qmp.run("blockdev-reopen", options(json!(null)));
    assert!(!read(0).contains("failed"));
    // The image names one, so a reopen has to say which.
    let mut without = options(json!(null));
    without["options"][0].as_object_mut().unwrap().remove("backing");
    let why = qmp.refused("blockdev-reopen", without);
    assert!(why.contains("backing"), "{why}");
    qmp.run("blockdev-reopen", options(json!("base")));
    assert!(!read(7).contains("failed"));
    daemon.stop(Signal::TERM);
}

/// The refusals are QEMU's, word by word.
#[test]
fn internal_snapshots_are_made_and_deleted_while_a_client_writes() {
    let place = Place::new();
    let [disk, ro] = ["disk.qcow2", "ro.qcow2"].map(|name| place.path(name));
    let [disk, ro] = [&disk, &ro].map(|path| tools::text(path));
    for image in [disk, ro] {
        tools::run("qemu-img", ["create", "-q", "-f", "qcow2", image, "4M"]);
    }
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/disk.qcow2 \
         --blockdev qcow2,node-name=ro,read-only=on,file.driver=file,file.filename=@/ro.qcow2 \
         --blockdev null-co,node-name=other,size=1048576 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk,writable=on",
    );
    let write = |pattern: u32| {
        let command = format!("write -P {pattern} 0 1M");
        tools::run("qemu-io", ["-f", "raw", "-c", &command, &place.uri("disk")]);
    };
    let (create, delete) =
        ("blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync");
    for name in ["first", "second"] {
        write(name.len() as u32);
        qmp.run(create, json!({"device": "disk", "name": name}));
    }
    write(9);
    let refusals = [
        (
            create,
            json!({"device": "nope", "name": "a"}),
            "Cannot find device='nope' nor node-name='nope'",
        ),
        (create, json!({"device": "disk", "name": ""}), "Name is empty"),
        (
            create,
            json!({"device": "disk", "name": "first"}),
            "Snapshot with name 'first' already exists on device 'disk'",
        ),
        (create, json!({"device": "ro", "name": "a"}), "Device 'ro' is read only"),
        (
            create,
            json!({"device": "other", "name": "a"}),
            "Block format 'null-co' used by device 'other' does not support internal snapshots",
        ),
        (delete, json!({"device": "disk"}), "Name or id must be provided"),
        (
            delete,
            json!({"device": "disk", "id": "1", "name": "second"}),
            "Snapshot with id '1' and name 'second' does not exist on device 'disk'",
        ),
        (
            delete,
            json!({"device": "disk", "name": "third"}),
            "Snapshot with id 'null' and name 'third' does not exist on device 'disk'",
        ),
    ];
    for (command, arguments, why) in refusals {
        assert_eq!(qmp.refused(command, arguments), why);
    }
    let deleted = qmp.run(delete, json!({"device": "disk", "name": "first"}));
    assert_eq!((&deleted["id"], &deleted["name"]), (&json!("1"), &json!("first")));
    assert_eq!(deleted["vm-state-size"], 0);
    daemon.stop(Signal::TERM);
    tools::run("qemu-img", ["check", "-q", disk]);
    let listed = tools::run("qemu-img", ["snapshot", "-l", disk]);
    assert!(listed.contains("second") && !listed.contains("first"), "{listed}");
    tools::run("qemu-img", ["snapshot", "-a", "second", disk]);
    let said = tools::run("qemu-io", ["-f", "qcow2", "-c", "read -P 6 0 1M", disk]);
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn an_image_is_checked_while_it_is_read() {
    let place = Place::new();
    chain(&place);
    let image = place.path("top.qcow2");
    // A refcount of 2, in the block at 128 KiB: a leak, and COPIED is wrong.
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0, 2], 0x2_0000 + 5 * 2).unwrap();
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=@/top.qcow2 \
         --blockdev null-co,node-name=null \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock --export nbd,id=e0,node-name=disk",
    );
    let figures = qmp.run("x-coblk-check", json!({"node-name": "disk"}));
    assert_eq!((&figures["leaks"], &figures["corruptions"]), (&json!(1), &json!(1)), "{figures}");
    assert_eq!((&figures["total-clusters"], &figures["leaks-fixed"]), (&json!(64), &json!(0)));
    let same = qmp.run("x-coblk-check", json!({"node-name": "disk", "repair": "none"}));
    assert_eq!(same, figures);
    let uri = place.uri("disk");
    let said = tools::run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 9 0 64k", &uri]);
    assert!(!said.contains("failed"), "{said}");
    for (arguments, why) in [
        (json!({"node-name": "disk", "repair": "leaks"}), "'disk' is read-only"),
        (json!({"node-name": "null"}), "has no image format"),
        (json!({"node-name": "other"}), "Cannot find"),
        (json!({"node-name": "disk", "repair": "some"}), "some"),
    ] {
        let said = qmp.refused("x-coblk-check", arguments);
        assert!(said.contains(why), "{said}");
    }
    daemon.stop(Signal::TERM);
}

#[test]
fn q74_a_second_daemon_is_refused_a_node_of_the_same_image_though_neither_has_users() {
    let place = Place::new();
    chain(&place);
    let node = |name: &str| {
        json!({"driver": "qcow2", "node-name": name, "file":
            {"driver": "file", "filename": tools::text(&place.path("base.qcow2"))}})
    };
    let (first, mut qmp) = start(&place, "");
    qmp.run("blockdev-add", node("disk"));
    let other = Place::new();
    let (second, mut others) = start(&other, "");
    let answer = others.ask("blockdev-add", node("disk"));
    let said = answer["error"]["desc"].as_str().unwrap();
    assert!(said.contains("failed to get \"write\" lock"), "{said}");
    assert_eq!(others.run("query-named-block-nodes", json!({})), json!([]));
    // Handed over, it is the other daemon's.
    qmp.run("blockdev-set-active", json!({"node-name": "disk", "active": false}));
    others.run("blockdev-add", node("disk"));
    let answer = qmp.ask("blockdev-set-active", json!({"node-name": "disk", "active": true}));
    assert!(answer["error"]["desc"].as_str().unwrap().contains("lock"), "{answer}");
    others.run("blockdev-del", json!({"node-name": "disk"}));
    qmp.run("blockdev-set-active", json!({"node-name": "disk", "active": true}));
    first.stop(Signal::TERM);
    second.stop(Signal::TERM);
}

#[test]
fn q143_an_image_is_repaired_over_qmp_while_it_is_exported() {
    use std::os::unix::fs::FileExt;

    let place = Place::new();
    chain(&place);
    let base = place.path("base.qcow2");
    // A cluster that nothing refers to is counted.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&base).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    file.set_len(101 << 16).unwrap();
    file.write_all_at(&[0, 1], word(word(48)) + 2 * 100).unwrap();
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/base.qcow2 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,writable=on",
    );
    let check = |repair: &str| json!({"node-name": "disk", "repair": repair});
    assert_eq!(qmp.run("x-coblk-check", check("none"))["leaks"], 1);
    let report = qmp.run("x-coblk-check", check("leaks"));
    assert_eq!((&report["leaks"], &report["leaks-fixed"]), (&json!(0), &json!(1)), "{report}");
    let uri = place.uri("disk");
    tools::run("qemu-io", ["-f", "raw", "-c", "write -P 5 1M 2M", &uri]);
    let report = qmp.run("x-coblk-check", check("all"));
    assert_eq!(report["corruptions-fixed"], 0, "{report}");
    daemon.stop(Signal::TERM);
    let base = tools::text(&base);
    let said = tools::run("qemu-io", ["-f", "qcow2", "-c", "read -P 5 1M 2M", base]);
    assert!(!said.contains("failed"), "{said}");
    tools::run("qemu-img", ["check", "-q", "-f", "qcow2", base]);
}

#[test]
fn options_are_shown_as_they_were_given_and_described() {
    let place = Place::new();
    chain(&place);
    let (daemon, mut qmp) = start(
        &place,
        "--blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/base.qcow2,\
overlap-check.template=constant,overlap-check.active-l2=on,cache-clean-interval=7",
    );
    let shown = qmp.run("x-coblk-config", json!({})).to_string();
    let wanted = ["template", "constant", "active-l2", "cache-clean-interval"];
    assert!(wanted.iter().all(|it| shown.contains(it)), "{shown}");
    let schema = qmp.run("query-qmp-schema", json!({}));
    let types = schema.as_array().unwrap();
    let has_member = |it: &&serde_json::Value, name: &str| {
        it["members"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name))
    };
    let kinds = types.iter().find(|it| has_member(it, "inactive-l1")).expect("the kinds");
    let of_kinds = |it: &&serde_json::Value| {
        let members = it["members"].as_array().into_iter().flatten();
        it["meta-type"] == "alternate"
            && members.into_iter().any(|one| one["type"] == kinds["name"])
    };
    let alternate = types.iter().find(of_kinds).expect("an alternate");
    assert_eq!(alternate["members"].as_array().unwrap().len(), 2);
    daemon.stop(Signal::TERM);
}
