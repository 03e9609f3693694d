//! qcow2 images in the storage daemon: on its command line, in lists, over NBD.

mod util;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::{Daemon, Place, stderr};

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

#[test]
fn an_image_is_not_opened_for_writes() {
    let place = Place::new();
    chain(&place);
    let options = "--blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/top.qcow2";
    let output = place.command(options).output().unwrap();
    assert!(!output.status.success());
    let why = stderr(&output);
    assert!(why.contains("cannot be written yet: open it with read-only=on"), "{why}");
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
