//! What another program adds to the daemon: the type of exports, and the command, of an example.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use coblk::AioContext;
use coblk::options::NodeOptions;
use coblk_storage_daemon::options::from_argument;
use serde_json::{Value, json};
use util::qmp::Client;

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/own_export.rs"]
mod own_export;
mod util;

/// More than a socket takes at once: a client that does not read holds its export.
const SIZE: u64 = 8 << 20;

/// The daemon of the example on a thread of its own, with a monitor.
struct Running {
    dir: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new() -> Running {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = dir.path().join("disk.img");
        std::fs::write(&image, contents()).unwrap();
        let (path, (tell, started)) = (dir.path().to_owned(), channel());
        let thread = std::thread::spawn(move || {
            let ctx = AioContext::for_test().unwrap();
            let daemon = own_export::builder().build(&ctx);
            ctx.run(|co| {
                let node = format!("file,node-name=disk,filename={}", image.display());
                daemon.blockdev_add(co, NodeOptions::from_keyval(&node).unwrap()).unwrap();
                let qmp = path.join("qmp");
                let chardev = format!("socket,id=c0,path={},server=on,wait=off", qmp.display());
                daemon.chardev_add(co, from_argument(&chardev, "backend").unwrap()).unwrap();
                daemon.monitor_add(co, &from_argument("c0", "chardev").unwrap()).unwrap();
            });
            daemon.begin();
            tell.send(()).unwrap();
            ctx.run_until(|| daemon.quit_cause().is_some());
            ctx.run(|co| daemon.co_shutdown(co));
            assert!(daemon.exports().is_empty() && daemon.blockdevs().nodes().is_empty());
        });
        started.recv().unwrap();
        Running { dir, thread: Some(thread) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Client {
        Client::new(&self.path("qmp"))
    }

    fn end(mut self, mut client: Client) {
        client.run("quit", json!({}));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn contents() -> Vec<u8> {
    (0..SIZE / 4).flat_map(|word| (word as u32).to_le_bytes()).collect()
}

fn options(socket: &Path) -> Value {
    json!({"type": "dump", "id": "e0", "node-name": "disk", "path": socket})
}

#[test]
fn an_export_type_of_an_embedder_is_added_listed_and_removed() {
    let running = Running::new();
    let (mut client, socket) = (running.client(), running.path("dump"));
    let mut wrong = options(&socket);
    wrong["name"] = json!("x");
    let refused = client.refused("block-export-add", wrong);
    assert_eq!(refused, "Parameter 'name' is unexpected");
    let wrong = json!({"type": "dump", "id": "e0", "node-name": "disk"});
    assert_eq!(client.refused("block-export-add", wrong), "Parameter 'path' is missing");
    let wrong = json!({"type": "fax", "id": "e0", "node-name": "disk"});
    let refused = client.refused("block-export-add", wrong);
    let types = "there is dump, fuse, nbd, vhost-user-blk";
    assert_eq!(refused, format!("Parameter 'type' does not accept value 'fax'; {types}"));

    client.run("block-export-add", options(&socket));
    let info = json!([{"id": "e0", "type": "dump", "node-name": "disk", "shutting-down": false,
        "x-coblk-io-status": "ok"}]);
    assert_eq!(client.run("query-block-exports", json!({})), info);
    let config = client.run("x-coblk-config", json!({})).to_string();
    let path = format!("path={}", socket.display());
    assert!(
        config.contains("dump,allow-inactive=off,fixed-iothread=off,id=e0")
            && config.contains(&path),
        "{config}"
    );
    let mut bytes = Vec::new();
    util::connect(&socket).read_to_end(&mut bytes).unwrap();
    assert!(bytes == contents());
    assert_eq!(client.run("x-dumps-served", json!({})), json!(1));
    let delete = json!({"id": "e0", "mode": "safe"});
    client.run("block-export-del", delete.clone());
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({"id": "e0"}));
    assert_eq!(client.run("query-block-exports", json!({})), json!([]));

    // A client that has begun to read, and does not go on.
    client.run("block-export-add", options(&socket));
    let mut reader = util::connect(&socket);
    reader.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(client.refused("block-export-del", delete), "export 'e0' still in use");
    client.run("block-export-del", json!({"id": "e0", "mode": "hard"}));
    assert_eq!(client.event("BLOCK_EXPORT_DELETED"), json!({"id": "e0"}));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!((rest.len() as u64) < SIZE - 1);
    client.run("blockdev-del", json!({"node-name": "disk"}));
    assert_eq!(client.run("x-dumps-served", json!({})), json!(1));
    running.end(client);
}

#[test]
fn the_schema_has_the_types_and_commands_of_an_embedder() {
    let running = Running::new();
    let mut client = running.client();
    let schema = client.run("query-qmp-schema", json!({}));
    let find = |name: &Value| {
        let entries = schema.as_array().unwrap().iter();
        entries.clone().find(|entry| entry["name"] == *name).unwrap()
    };
    let add = find(&find(&json!("block-export-add"))["arg-type"]);
    assert_eq!(add["tag"], "type");
    let variants = add["variants"].as_array().unwrap();
    let words: Vec<&Value> = variants.iter().map(|variant| &variant["case"]).collect();
    assert_eq!(words, ["dump", "fuse", "nbd", "vhost-user-blk"]);
    assert_eq!(find(&variants[0]["type"])["members"][0]["name"], "path");
    assert_eq!(find(&json!("x-dumps-served"))["meta-type"], "command");
    // Exports that there are end with the daemon.
    client.run("block-export-add", options(&running.path("dump")));
    running.end(client);
}

#[test]
#[should_panic(expected = "two commands are called 'quit'")]
fn a_command_cannot_be_replaced() {
    let builder = own_export::builder().command("quit", |_, _, ()| Ok(()));
    builder.build(&AioContext::for_test().unwrap());
}
