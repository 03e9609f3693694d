//! Nodes that are inactive: the option, the command, and exports on them, beside qemu-storage-daemon.

mod util;
#[path = "../../vhost-user-blk/tests/util/mod.rs"]
mod vhost;

use std::process::Child;

use coblk_tests::nbd::Session;
use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::Place;
use util::qmp::Client;
use vhost::Op;

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
     --nbd-server addr.type=unix,addr.path=@/nbd.sock";
/// In the words of NBD.
const EPERM: u32 = 1;

/// Each command with what must come of it: whether it is done, and which of the nodes `f`, below, and `r`,
/// above, are active afterwards.
fn script() -> Vec<(&'static str, Value, bool, &'static str)> {
    let f = json!({"driver": "null-co", "node-name": "f", "active": false});
    let r = |more: Value| {
        let mut node = json!({"driver": "raw", "node-name": "r", "file": "f"});
        node.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        node
    };
    let set = |node: &str, active: bool| json!({"node-name": node, "active": active});
    let export = |more: Value| {
        let mut export = json!({"type": "nbd", "id": "e0", "node-name": "r", "writable": true});
        export.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        export
    };
    let (add, set_active, reopen) = ("blockdev-add", "blockdev-set-active", "blockdev-reopen");
    vec![
        (add, f, true, ""),
        (add, r(json!({})), false, ""),
        (add, r(json!({"active": true})), false, ""),
        (add, r(json!({"active": "on"})), false, ""),
        (add, r(json!({"active": false})), true, ""),
        (set_active, set("x", true), false, ""),
        (set_active, json!({}), false, ""),
        (set_active, json!({"active": true, "frob": 1}), false, ""),
        (set_active, set("f", true), true, "f"),
        (set_active, set("r", true), true, "fr"),
        (set_active, set("f", false), false, "fr"),
        (set_active, set("r", false), true, ""),
        (set_active, json!({"active": true}), true, "fr"),
        (set_active, json!({"active": false}), true, ""),
        (reopen, json!({"options": [r(json!({}))]}), false, ""),
        ("block_resize", json!({"node-name": "r", "size": 1 << 20}), false, ""),
        // Who does not say that it may be inactive makes it active.
        ("block-export-add", export(json!({})), true, "fr"),
        (set_active, set("r", false), false, "fr"),
        (set_active, json!({"active": false}), false, "fr"),
        ("block-export-del", json!({"id": "e0"}), true, "fr"),
        (set_active, set("r", false), true, ""),
        ("block-export-add", export(json!({"writable": false})), true, "fr"),
        (set_active, set("r", false), true, ""),
        ("block-export-del", json!({"id": "e0"}), true, ""),
        ("block-export-add", export(json!({"allow-inactive": true})), true, ""),
        (set_active, set("r", true), true, "fr"),
        (set_active, set("r", false), true, ""),
        ("block-export-del", json!({"id": "e0"}), true, ""),
        ("blockdev-del", json!({"node-name": "r"}), true, ""),
    ]
}

fn active(qmp: &mut Client) -> String {
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    let nodes = nodes.as_array().unwrap().iter().filter(|node| node["active"] == true);
    let mut names: Vec<&str> = nodes.map(|node| node["node-name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.concat()
}

fn play(qmp: &mut Client) {
    for (index, (command, arguments, is_done, wanted)) in script().into_iter().enumerate() {
        let answer = qmp.ask(command, arguments.clone());
        let what = format!("{index}: {command} {arguments}: {answer}");
        assert_eq!(answer.get("return").is_some(), is_done, "{what}");
        if is_done && command == "block-export-del" {
            qmp.event("BLOCK_EXPORT_DELETED");
        }
        assert_eq!(active(qmp), wanted, "{what}");
    }
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nodes_and_exports_become_active_and_inactive_as_in_the_peer() {
    let place = Place::new();
    let daemon = place.start(MONITOR);
    play(&mut Client::new(&place.path("qmp.sock")));
    daemon.stop(Signal::TERM);

    if tools::qemu_major() < 10 {
        return util::expect_no_inactive_nodes();
    }
    let place = Place::new();
    let mut command = tools::command("qemu-storage-daemon");
    command.args(place.fill_in(MONITOR).split_whitespace());
    let _peer = Peer(command.spawn().expect("qemu-storage-daemon"));
    play(&mut Client::of_peer(&place.path("qmp.sock")));
}

#[test]
fn what_is_refused_says_which_node_and_why() {
    let place = Place::new();
    let daemon = place.start(&format!(
        "{MONITOR} --blockdev null-co,node-name=f --blockdev raw,node-name=r,file=f \
         --blockdev null-co,node-name=i,active=off \
         --export nbd,id=e0,node-name=r,writable=on"
    ));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let set = |node: &str| json!({"node-name": node, "active": false});
    for (command, arguments, why) in [
        ("blockdev-set-active", set("x"), "Failed to find node with node-name='x'"),
        (
            "blockdev-set-active",
            set("f"),
            "node 'f' cannot be inactive: its parent, node 'r', is active",
        ),
        ("blockdev-set-active", set("r"), "node 'r' cannot be inactive: backend 'e0' writes to it"),
        (
            "blockdev-set-active",
            json!({"active": false}),
            "node 'r' cannot be inactive: backend 'e0' writes to it",
        ),
        (
            "blockdev-add",
            json!({"driver": "raw", "node-name": "above", "file": "i"}),
            "node 'above' needs node 'i' to be active, and it is inactive",
        ),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "null-co", "node-name": "i"}]}),
            "node 'i' is inactive",
        ),
        (
            "blockdev-reopen",
            json!({"options": [{"driver": "null-co", "node-name": "f", "active": false}]}),
            "node 'f': cannot change the option 'active'",
        ),
    ] {
        assert_eq!(qmp.refused(command, arguments), why);
    }
    daemon.stop(Signal::TERM);
}

#[test]
fn requests_to_an_inactive_node_fail_and_their_clients_stay() {
    let place = Place::new();
    let daemon = place.start(&format!(
        "{MONITOR} --object iothread,id=t0 \
         --blockdev file,node-name=disk,filename=@/disk.img,active=off \
         --export nbd,id=e0,node-name=disk,writable=on,allow-inactive=on \
         --export vhost-user-blk,id=v0,node-name=disk,writable=on,allow-inactive=on,num-queues=2,\
         iothread.0=t0,addr.type=unix,addr.path=@/vhost.sock"
    ));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let mut nbd = Session::open(&place.socket());
    let mut vhost = vhost::Client::connect(&place.path("vhost.sock"), 2);
    let capacity =
        |vhost: &vhost::Client| u64::from(vhost.transport.get_config().unwrap().capacity);
    let mut length = util::SIZE;
    for round in 0..3u64 {
        assert_eq!(nbd.write(0, &[7; 512]), Err(EPERM));
        assert_eq!(nbd.read(0, 512), Err(EPERM));
        for (queue, op) in [(0, Op::Read), (1, Op::Write), (0, Op::Flush)] {
            assert_ne!(vhost.one(queue, op, 0, 4096), 0);
        }
        // Meanwhile the image is another process's, which makes it longer.
        length += 1 << 20;
        std::fs::File::options().write(true).open(place.image()).unwrap().set_len(length).unwrap();
        qmp.run("blockdev-set-active", json!({"active": true}));
        util::wait_until("the new length", || capacity(&vhost) == length / 512);
        nbd.check(round);
        vhost.check(0, 1 << 20, 65536, round as u8);
        vhost.check(1, length - 65536, 65536, round as u8);
        qmp.run("blockdev-set-active", json!({"active": false}));
    }
    daemon.stop(Signal::TERM);
}

/// An export that may find its node inactive is made again so, whatever was said of it.
#[test]
fn an_inactive_daemon_is_made_again_inactive() {
    let place = Place::new();
    let daemon = place.start(&format!(
        "{MONITOR} --blockdev file,node-name=f,filename=@/disk.img \
         --blockdev raw,node-name=r,file=f --export nbd,id=e0,node-name=r \
         --blockdev null-co,node-name=other --export nbd,id=e1,node-name=other,allow-inactive=on"
    ));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    qmp.run("blockdev-set-active", json!({"node-name": "r", "active": false}));
    assert_eq!(active(&mut qmp), "other");
    let config = qmp.run("x-coblk-config", json!({}));
    daemon.stop(Signal::TERM);
    let mut command = place.command("--pidfile @/pid");
    let arguments: Vec<String> = serde_json::from_value(config["arguments"].clone()).unwrap();
    command.args(&arguments);
    let daemon = place.start_command(command);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    assert_eq!(active(&mut qmp), "other", "{arguments:?}");
    qmp.run("blockdev-set-active", json!({"active": true}));
    let config = qmp.run("x-coblk-config", json!({}));
    assert!(!config.to_string().contains("active=off"), "{config}");
    daemon.stop(Signal::TERM);
}

/// Nothing is left active by an export that could not be made.
#[test]
fn an_export_that_is_refused_leaves_its_node_inactive() {
    let place = Place::new();
    let daemon = place.start(&format!(
        "{MONITOR} --blockdev null-co,node-name=disk --export nbd,id=e0,node-name=disk,name=a \
         --blockdev null-co,node-name=i,active=off"
    ));
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let export = json!({"type": "nbd", "id": "e1", "node-name": "i", "name": "a"});
    qmp.refused("block-export-add", export);
    assert_eq!(active(&mut qmp), "disk");
    daemon.stop(Signal::TERM);
}
