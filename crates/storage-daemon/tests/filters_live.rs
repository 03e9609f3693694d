//! Filters that come and go while requests run: `x-coblk-filter-insert` and `-remove`.

mod util;

use std::process::Stdio;

use coblk_tests::tools;
use serde_json::{Value, json};
use util::Place;
use util::qmp::Client;

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --blockdev file,node-name=file,filename=@/disk.img --blockdev raw,node-name=disk,file=file \
    --object throttle-group,id=g0 --blockdev throttle,node-name=limit,throttle-group=g0,file=disk \
    --blockdev raw,node-name=part,file=disk,offset=4096 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock \
    --export nbd,id=e0,node-name=disk,name=disk,writable=on";

fn exported(qmp: &mut Client) -> Value {
    qmp.run("query-block-exports", json!({}))[0]["node-name"].clone()
}

fn insert(node: &str, filter: &str) -> Value {
    json!({"node": node, "filter": filter})
}

#[test]
fn j85_filters_come_and_go_under_a_client_that_writes() {
    let place = Place::new();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    // Each write is read back.
    let commands = (0..200).flat_map(|number| {
        let (byte, offset) = (number % 250 + 1, number * 65536 % util::SIZE);
        [format!("write -P {byte} {offset} 64k"), format!("read -P {byte} {offset} 64k")]
    });
    let mut client = tools::command("qemu-io");
    client.args(["-f", "raw"]);
    commands.for_each(|command| {
        client.args(["-c", &command]);
    });
    let client = client.arg(place.uri("disk")).stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..10 {
        qmp.run("x-coblk-filter-insert", insert("disk", "limit"));
        assert_eq!(exported(&mut qmp), "limit");
        qmp.run("x-coblk-filter-remove", json!({"filter": "limit"}));
        assert_eq!(exported(&mut qmp), "disk");
    }
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed"), "{said}");
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn j85_only_filters_with_all_bytes_of_a_node_are_inserted() {
    let place = Place::new();
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    for (node, filter, why) in [
        ("disk", "part", "node 'part' is no filter of node 'disk'"),
        ("disk", "file", "node 'file' is no filter of node 'disk'"),
        ("disk", "disk", "node 'disk' is no filter of node 'disk'"),
        ("limit", "disk", "node 'disk' is no filter of node 'limit'"),
        ("disk", "missing", "Cannot find device='missing'"),
        ("missing", "limit", "Cannot find device='missing'"),
    ] {
        let text = qmp.refused("x-coblk-filter-insert", insert(node, filter));
        assert!(text.contains(why), "{text}");
    }
    for (filter, why) in [
        ("file", "node 'file' is no filter"),
        ("part", "node 'part' is no filter of node 'disk'"),
        ("missing", "Cannot find device='missing'"),
    ] {
        let text = qmp.refused("x-coblk-filter-remove", json!({"filter": filter}));
        assert!(text.contains(why), "{text}");
    }
    assert_eq!(exported(&mut qmp), "disk");
    // All or nothing.
    let actions = json!({"actions": [
        {"type": "x-coblk-filter-insert", "data": insert("disk", "limit")},
        {"type": "abort", "data": {}},
    ]});
    qmp.refused("transaction", actions);
    assert_eq!(exported(&mut qmp), "disk");
    drop(daemon);
}
