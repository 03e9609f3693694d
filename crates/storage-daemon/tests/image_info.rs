//! What `query-named-block-nodes` shows of images: the same as QEMU's daemon, member by member.

mod util;

use std::process::{Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::Place;
use util::qmp::Client;

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off \
                       --monitor chardev=c0 --pidfile @/pid";
const IMAGES: [&str; 6] = ["base", "top", "onraw", "v2", "data", "snapshots"];

/// Images of several kinds, by QEMU.
fn make(place: &Place) {
    let run = |arguments: &str| {
        let mut command = tools::command("qemu-img");
        command.current_dir(place.path("")).args(arguments.split_whitespace());
        tools::expect_success("qemu-img", &tools::finish("qemu-img", &mut command));
    };
    let data = format!("data_file={},data_file_raw=on,lazy_refcounts=on", place.fill_in("@/d.raw"));
    for arguments in [
        "create -q -f qcow2 base.qcow2 4M",
        "create -q -f raw raw.raw 4M",
        "create -q -f qcow2 -b base.qcow2 -F qcow2 -o extended_l2=on top.qcow2",
        "create -q -f qcow2 -b raw.raw -F raw onraw.qcow2",
        "create -q -f qcow2 -o compat=0.10 v2.qcow2 4M",
        &format!("create -q -f qcow2 -o {data} data.qcow2 4M"),
        "create -q -f qcow2 snapshots.qcow2 4M",
        "snapshot -c first snapshots.qcow2",
        "snapshot -c second snapshots.qcow2",
    ] {
        run(arguments);
    }
}

/// What one daemon shows of each image, and then of its whole chain in a flat list.
fn shown(place: &Place, mut qmp: Client) -> Vec<Value> {
    let mut all = Vec::new();
    for image in IMAGES {
        let file = json!({"driver": "file", "filename": place.path(&format!("{image}.qcow2"))});
        let node = json!({"driver": "qcow2", "node-name": "n", "read-only": true, "file": file});
        qmp.run("blockdev-add", node);
        for flat in [false, true] {
            let nodes = qmp.run("query-named-block-nodes", json!({"flat": flat}));
            let node = nodes.as_array().unwrap().iter().find(|it| it["node-name"] == "n").unwrap();
            let mut node = node.clone();
            node.as_object_mut().unwrap().remove("x-coblk-children");
            all.push(node);
        }
        qmp.run("blockdev-del", json!({"node-name": "n"}));
    }
    qmp.run("quit", json!({}));
    all
}

#[test]
fn q128_q144_q145_nodes_show_what_they_show_in_qemu() {
    let place = Place::new();
    make(&place);
    let mut command = Command::new("qemu-storage-daemon");
    command.args(MONITOR.split_whitespace().map(|it| place.fill_in(it))).stdin(Stdio::null());
    let peer = place.start_command(command);
    let expected = shown(&place, Client::of_peer(&place.path("qmp.sock")));
    assert!(peer.wait().success());
    let daemon = place.start_command(place.command(MONITOR));
    let found = shown(&place, Client::new(&place.path("qmp.sock")));
    assert!(daemon.wait().success());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}
