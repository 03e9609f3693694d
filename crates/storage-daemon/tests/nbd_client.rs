//! Nodes that are exports of other NBD servers: the daemon's own, qemu-nbd and nbdkit.
#![forbid(unsafe_code)]

mod util;

use std::path::Path;
use std::process::Command;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::json;
use util::qmp::Client;
use util::servers::{PROGRAMS, Program, Server};
use util::{Daemon, Place, SIZE};

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0";
const NODE: &str = "--blockdev nbd,node-name=disk,server.type=unix,server.path=@/server.sock,\
                    export=disk --nbd-server addr.type=unix,addr.path=@/nbd.sock \
                    --export nbd,id=e0,node-name=disk,writable=on";

fn serve(place: &Place, program: Program) -> Server {
    Server::start(program, &place.image(), &place.path("server.sock"))
}

fn start(place: &Place, options: &str) -> Daemon {
    place.start(&format!(
        "{} {MONITOR}",
        NODE.replace("export=disk ", &format!("export=disk{options} "))
    ))
}

fn qemu_io(place: &Place, commands: &[&str]) -> String {
    let mut args = vec!["-f", "raw"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    let uri = place.uri("disk");
    args.push(&uri);
    let said = tools::run("qemu-io", args);
    assert!(!said.contains("failed") && !said.contains("verification"), "{said}");
    said
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 777) as u8).collect()
}

/// Through an export of the node: client, our server, our client, the server, the image.
#[test]
fn each_server_is_read_and_written_and_the_image_has_it_all() {
    for program in PROGRAMS {
        let place = Place::new();
        std::fs::write(place.image(), pattern(SIZE as usize)).unwrap();
        let server = serve(&place, program);
        let daemon = start(&place, "");
        qemu_io(
            &place,
            &[
                "write -P 1 0 1M",
                "write -f -P 2 1000 3000",
                "read -P 1 0 1000",
                "read -P 2 1000 3000",
                "write -z -u 64k 64k",
                "write -z 1M 64k",
                "read -P 0 64k 64k",
                "read -P 0 1M 64k",
                "discard 128k 64k",
                "aio_write -P 5 2M 1M",
                "aio_write -P 6 3M 1M",
                "aio_write -P 7 8M 4k",
                "aio_flush",
                "flush",
                "read -P 5 2M 1M",
                "read -P 6 3M 1M",
                "read -P 7 8M 4k",
            ],
        );
        let (image, uri) = (place.image(), place.uri("disk"));
        let compare = ["compare", "-f", "raw", "-F", "raw", tools::text(&image), &uri];
        let said = tools::run("qemu-img", compare);
        assert!(said.contains("identical"), "{program:?}: {said}");
        let bytes = std::fs::read(&image).unwrap();
        assert!(bytes[2 << 20..3 << 20].iter().all(|byte| *byte == 5), "{program:?}");
        assert!(bytes[9 << 20..] == pattern(SIZE as usize)[9 << 20..], "{program:?}");
        daemon.stop(Signal::TERM);
        drop(server);
    }
}

#[test]
fn a_whole_image_is_copied_out_and_in_and_is_the_same() {
    for program in PROGRAMS {
        let place = Place::new();
        let server = serve(&place, program);
        let daemon = start(&place, "");
        let (source, back) = (place.path("source"), place.path("back"));
        std::fs::write(&source, pattern(SIZE as usize)).unwrap();
        let uri = place.uri("disk");
        tools::run("nbdcopy", [tools::text(&source), &uri]);
        tools::run("nbdcopy", [&uri, tools::text(&back)]);
        assert!(std::fs::read(&back).unwrap() == pattern(SIZE as usize), "{program:?}");
        assert!(std::fs::read(place.image()).unwrap() == pattern(SIZE as usize), "{program:?}");
        daemon.stop(Signal::TERM);
        drop(server);
    }
}

/// What the server says of extents is what a client of the export sees.
#[test]
fn extents_of_the_server_are_those_of_the_node() {
    let map = |uri: &str| tools::run("qemu-img", ["map", "-f", "raw", "--output=json", uri]);
    for program in PROGRAMS {
        let place = Place::new();
        let file = std::fs::OpenOptions::new().write(true).open(place.image()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 1 << 20], 4 << 20).unwrap();
        drop(file);
        let server = serve(&place, program);
        let daemon = start(&place, "");
        let direct = format!("nbd+unix:///disk?socket={}", tools::text(&server.socket));
        let seen = map(&place.uri("disk"));
        assert_eq!(seen, map(&direct), "{program:?}");
        assert!(seen.contains("\"data\": true") && seen.contains("\"zero\": true"), "{seen}");
        daemon.stop(Signal::TERM);
    }
}

fn blockdev(place: &Place, export: &str) -> serde_json::Value {
    let path = place.path("server.sock");
    json!({"driver": "nbd", "node-name": "n", "export": export,
        "server": {"type": "unix", "path": tools::text(&path)}})
}

#[test]
fn a_node_comes_by_tcp_and_goes_by_command() {
    let place = Place::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = place.start(&format!(
        "--blockdev file,node-name=disk,filename=@/disk.img \
         --nbd-server addr.type=inet,addr.host=127.0.0.1,addr.port={port} \
         --export nbd,id=e0,node-name=disk,writable=on"
    ));
    let other = Place::new();
    let daemon = other.start(MONITOR);
    let mut monitor = Client::new(&other.path("qmp.sock"));
    let server_address = json!({"type": "inet", "host": "127.0.0.1", "port": port.to_string()});
    let node = json!({"driver": "nbd", "node-name": "n", "server": server_address,
        "export": "disk"});
    monitor.run("blockdev-add", node);
    let listed = monitor.run("query-named-block-nodes", json!({}));
    assert_eq!(listed[0]["file"], json!(format!("nbd://127.0.0.1:{port}/disk")), "{listed}");
    assert_eq!(listed[0]["image"]["virtual-size"], json!(SIZE), "{listed}");
    monitor.run("blockdev-del", json!({"node-name": "n"}));
    daemon.stop(Signal::TERM);
    server.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    let place = Place::new();
    let daemon = place.start(MONITOR);
    let mut monitor = Client::new(&place.path("qmp.sock"));
    let refused = |monitor: &mut Client, node| monitor.refused("blockdev-add", node);
    let said = refused(&mut monitor, blockdev(&place, "disk"));
    assert!(said.contains("server.sock") && said.contains("No such file"), "{said}");
    let server = serve(&place, Program::Own);
    let said = refused(&mut monitor, blockdev(&place, "nothing"));
    assert!(said.contains("refuses export 'nothing'"), "{said}");
    let mut node = blockdev(&place, "disk");
    node["x-dirty-bitmap"] = json!("qemu:dirty-bitmap:none");
    let said = refused(&mut monitor, node);
    assert!(said.contains("no metadata context 'qemu:dirty-bitmap:none'"), "{said}");
    let mut node = blockdev(&place, "disk");
    node["x-coblk-connections"] = json!(17);
    assert!(refused(&mut monitor, node).contains("x-coblk-connections"));
    let mut node = blockdev(&place, "disk");
    node["tls-creds"] = json!("none");
    assert!(refused(&mut monitor, node).contains("'none'"));
    let mut node = blockdev(&place, &"x".repeat(5000));
    node["node-name"] = json!("n");
    assert!(refused(&mut monitor, node).contains("export"));
    monitor.run("blockdev-add", blockdev(&place, "disk"));
    drop(server);
    daemon.stop(Signal::TERM);
}

fn read_only_server(image: &Path, socket: &Path) -> Server {
    let mut command = tools::command("qemu-nbd");
    command.args(["-t", "-r", "-f", "raw", "-x", "disk", "-k", tools::text(socket)]);
    command.arg(image);
    Server::run(command, socket)
}

#[test]
fn an_export_that_is_read_only_is_a_node_that_is() {
    let place = Place::new();
    let _server = read_only_server(&place.image(), &place.path("server.sock"));
    let daemon = place.start(MONITOR);
    let mut monitor = Client::new(&place.path("qmp.sock"));
    let said = monitor.refused("blockdev-add", blockdev(&place, "disk"));
    assert!(said.contains("Permission denied"), "{said}");
    let mut node = blockdev(&place, "disk");
    node["auto-read-only"] = json!(true);
    monitor.run("blockdev-add", node);
    let listed = monitor.run("query-named-block-nodes", json!({}));
    assert_eq!(listed[0]["ro"], json!(true), "{listed}");
    let said = monitor.refused("block_resize", json!({"node-name": "n", "size": SIZE * 2}));
    assert!(!said.is_empty());
    daemon.stop(Signal::TERM);
}

#[test]
fn a_node_has_the_length_of_its_export() {
    let place = Place::new();
    let _server = serve(&place, Program::Own);
    let daemon = place.start(MONITOR);
    let mut monitor = Client::new(&place.path("qmp.sock"));
    monitor.run("blockdev-add", blockdev(&place, "disk"));
    let resize = |size: u64| json!({"node-name": "n", "size": size});
    let said = monitor.refused("block_resize", resize(SIZE * 2));
    assert!(said.contains("Cannot grow NBD nodes"), "{said}");
    // As in QEMU, a device may stay longer than it was asked to be.
    monitor.run("block_resize", resize(SIZE / 2));
    let listed = monitor.run("query-named-block-nodes", json!({}));
    assert_eq!(listed[0]["image"]["virtual-size"], json!(SIZE), "{listed}");
    daemon.stop(Signal::TERM);
}

/// What is dirty is no data, as in QEMU.
#[test]
fn a_dirty_bitmap_of_the_server_is_the_block_status_of_a_node() {
    let place = Place::new();
    let image = place.path("disk.qcow2");
    tools::run("qemu-img", ["create", "-f", "qcow2", tools::text(&image), "16M"]);
    tools::run("qemu-img", ["bitmap", "--add", "-g", "64k", tools::text(&image), "b"]);
    let write = ["-f", "qcow2", "-c", "write 1M 64k", tools::text(&image)];
    tools::run("qemu-io", write);
    let socket = place.path("server.sock");
    let mut command: Command = tools::command("qemu-nbd");
    command.args(["-t", "-f", "qcow2", "-B", "b", "-x", "disk", "-k", tools::text(&socket)]);
    command.arg(&image);
    let _server = Server::run(command, &socket);
    let daemon = start(&place, ",x-dirty-bitmap=qemu:dirty-bitmap:b");
    let map = ["map", "-f", "raw", "--output=json", &place.uri("disk")];
    let map: serde_json::Value = serde_json::from_str(&tools::run("qemu-img", map)).unwrap();
    let dirty: Vec<_> =
        map.as_array().unwrap().iter().filter(|it| it["data"] == json!(false)).collect();
    assert_eq!(dirty.len(), 1, "{map}");
    assert_eq!((&dirty[0]["start"], &dirty[0]["length"]), (&json!(1 << 20), &json!(64 << 10)));
    daemon.stop(Signal::TERM);
}

#[test]
fn an_overlay_names_an_export_and_an_export_cannot_be_created() {
    let place = Place::new();
    let bytes = pattern(SIZE as usize);
    std::fs::write(place.image(), &bytes).unwrap();
    let _server = serve(&place, Program::QemuNbd);
    let name = format!("nbd+unix:///disk?socket={}", tools::text(&place.path("server.sock")));
    let overlay = place.path("overlay.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &name, tools::text(&overlay)];
    tools::run("qemu-img", create);
    let daemon = place.start(&format!(
        "{MONITOR} --blockdev qcow2,node-name=disk,file.driver=file,file.filename=@/overlay.qcow2 \
         --nbd-server addr.type=unix,addr.path=@/nbd.sock \
         --export nbd,id=e0,node-name=disk,name=disk,writable=on"
    ));
    let mut session = coblk_tests::nbd::Session::open(&place.socket());
    assert!(session.read(4096, 65536).unwrap() == bytes[4096..4096 + 65536]);
    session.write(8192, &[9; 512]).unwrap();
    assert_eq!(session.read(8192, 512).unwrap(), [9; 512]);
    assert!(std::fs::read(place.image()).unwrap() == bytes, "the base is as it was");
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let options = json!({"driver": "nbd", "size": 512});
    let refused = qmp.refused("blockdev-create", json!({"job-id": "j", "options": options}));
    assert_eq!(refused, "Driver 'nbd' does not support blockdev-create");
    daemon.stop(Signal::TERM);
}
