//! What another program adds to the daemon: the drivers of an example, in a process of their own.

use std::process::{Command, ExitCode, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, stderr};

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/own_driver.rs"]
mod own_driver;
mod util;

/// The arguments of the example, in a process that is to be one.
const ARGUMENTS: &str = "COBLK_OWN_DRIVER";
/// What the process that is one is called by.
const PROGRAM: &str = "the_program_of_the_example_runs_by_itself";

const LINE: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock \
    --blockdev ram,node-name=disk,size=16M \
    --blockdev protect,node-name=guarded,file=disk,bytes=1M \
    --export nbd,id=e0,node-name=guarded,name=disk,writable=on --pidfile @/pid";

/// A process of the example, with these arguments.
fn command(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", PROGRAM, "--nocapture"]).env(ARGUMENTS, place.fill_in(arguments));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn start(place: &Place, arguments: &str) -> (Daemon, Client) {
    let daemon = place.start_command(command(place, arguments));
    (daemon, Client::new(&place.path("qmp.sock")))
}

fn end(daemon: Daemon, mut client: Client) {
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
}

/// What the process says that must refuse its arguments.
fn refused(place: &Place, arguments: &str) -> String {
    let output = command(place, arguments).stdout(Stdio::null()).output().unwrap();
    assert!(!output.status.success(), "{arguments}");
    stderr(&output)
}

fn qemu_io(place: &Place, command: &str) -> String {
    tools::run("qemu-io", ["-f", "raw", "-c", command, &place.uri("disk")])
}

/// The answer about one node.
fn node(client: &mut Client, name: &str) -> Value {
    let nodes = client.run("query-named-block-nodes", json!({}));
    let mut nodes = nodes.as_array().unwrap().iter();
    nodes.find(|node| node["node-name"] == name).unwrap_or(&Value::Null).clone()
}

#[test]
fn the_program_of_the_example_runs_by_itself() {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        let program = std::iter::once("own_driver").chain(arguments.split_whitespace());
        let code = coblk_storage_daemon::run::main_with(
            own_driver::builder(),
            program.map(std::ffi::OsString::from),
        );
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
    let place = Place::new();
    let said = command(&place, "--version").stderr(Stdio::null()).output().unwrap();
    assert!(said.status.success() && String::from_utf8_lossy(&said.stdout).contains("version"));
}

#[test]
fn drivers_of_an_embedder_are_opened_read_written_reopened_and_deleted() {
    let place = Place::new();
    let (daemon, mut client) = start(&place, LINE);
    assert!(qemu_io(&place, "write -P 7 2M 100k").contains("wrote 102400/102400"));
    assert!(qemu_io(&place, "read -P 7 2M 100k").contains("read 102400/102400"));
    assert!(qemu_io(&place, "read -P 0 1M 1M").contains("read 1048576/1048576"));
    let denied = tools::output("qemu-io", ["-f", "raw", "-c", "write 0 4k", &place.uri("disk")]);
    let said = String::from_utf8_lossy(&denied.stdout);
    assert!(said.contains("Operation not permitted"), "{denied:?}");

    // Listed, with what they stand on and what they store.
    let (disk, guarded) = (node(&mut client, "disk"), node(&mut client, "guarded"));
    assert_eq!((&disk["drv"], &disk["image"]["virtual-size"]), (&json!("ram"), &json!(16 << 20)));
    assert_eq!(disk["image"]["actual-size"], 128 << 10);
    assert_eq!(guarded["x-coblk-children"], json!([{"child": "file", "node-name": "disk"}]));

    // Other options, again and again while a client reads and writes.
    let open = json!({"driver": "protect", "node-name": "guarded", "file": "disk", "bytes": 0});
    client.run("blockdev-reopen", json!({"options": [open]}));
    let requests = (0..40).flat_map(|_| ["-c", "write -P 9 0 4k", "-c", "read -P 9 0 4k"]);
    let mut busy = tools::command("qemu-io");
    busy.args(["-f", "raw"]).args(requests).arg(place.uri("disk")).stdout(Stdio::piped());
    let busy = busy.spawn().unwrap();
    for latency_us in [1, 1000].repeat(10).into_iter().chain([1500]) {
        let slow = json!({"driver": "ram", "node-name": "disk", "size": 16 << 20,
            "latency-us": latency_us});
        client.run("blockdev-reopen", json!({"options": [slow]}));
    }
    let said = String::from_utf8(busy.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.matches("4096/4096").count(), 80, "{said}");
    let config = client.run("x-coblk-config", json!({})).to_string();
    assert!(config.contains("ram,latency-us=1500,node-name=disk,size=16777216"), "{config}");
    assert!(config.contains("protect,bytes=0,file=disk,node-name=guarded"), "{config}");

    // Another node in the place of the child; what was below is read again.
    let add = json!({"driver": "ram", "node-name": "other", "size": 16 << 20});
    client.run("blockdev-add", add);
    let other = json!({"driver": "protect", "node-name": "guarded", "file": "other", "bytes": 0});
    client.run("blockdev-reopen", json!({"options": [other]}));
    assert!(qemu_io(&place, "read -P 0 0 4k").contains("read 4096/4096"));
    client.run("blockdev-del", json!({"node-name": "disk"}));
    assert!(node(&mut client, "disk").is_null());

    let delete = json!({"node-name": "guarded"});
    assert_eq!(client.refused("blockdev-del", delete.clone()), "Node 'guarded' is in use");
    client.run("block-export-del", json!({"id": "e0"}));
    client.event("BLOCK_EXPORT_DELETED");
    client.run("blockdev-del", delete);
    client.run("blockdev-del", json!({"node-name": "other"}));
    assert_eq!(client.run("query-named-block-nodes", json!({})), json!([]));
    end(daemon, client);
}

#[test]
fn an_event_of_a_driver_of_an_embedder_reaches_monitors() {
    let place = Place::new();
    let line = LINE.replace("size=16M", "size=16M,memory=128k");
    let (daemon, mut client) = start(&place, &line);
    assert!(qemu_io(&place, "write 2M 128k").contains("wrote 131072/131072"));
    let full = tools::output("qemu-io", ["-f", "raw", "-c", "write 4M 64k", &place.uri("disk")]);
    assert!(String::from_utf8_lossy(&full.stdout).contains("No space left"), "{full:?}");
    let told = json!({"node-name": "disk", "offset": 4 << 20});
    assert_eq!(client.event("X_RAM_FULL"), told);
    assert!(qemu_io(&place, "write 2M 128k").contains("wrote 131072/131072"));
    end(daemon, client);
}

#[test]
fn options_of_the_drivers_of_an_embedder_are_refused_in_qemus_words() {
    let place = Place::new();
    let (daemon, mut client) = start(&place, LINE);
    let all = "there is blkdebug, blklogwrites, copy-before-write, copy-on-read, file, host_device, nbd, \
               null-aio, null-co, protect, qcow2, ram, raw, rbd, snapshot-access, throttle";
    for (options, expected) in [
        (json!({"driver": "ram", "node-name": "a"}), "Parameter 'size' is missing"),
        (
            json!({"driver": "ram", "node-name": "a", "size": "16M"}),
            "Invalid parameter type for 'size', expected: integer",
        ),
        (
            json!({"driver": "ram", "node-name": "a", "size": 1, "aio": "threads"}),
            "Parameter 'aio' is unexpected",
        ),
        (
            json!({"driver": "ram", "node-name": "a", "size": 1_u64 << 41}),
            "node 'a': option 'size': more than 1099511627776 bytes",
        ),
        (
            json!({"driver": "protect", "node-name": "a", "bytes": 1, "file": {"driver": "rom"}}),
            &format!("Parameter 'file.driver' does not accept value 'rom'; {all}"),
        ),
        (
            json!({"driver": "protect", "node-name": "a", "bytes": 1, "file": {"driver": "ram"}}),
            "Parameter 'file.size' is missing",
        ),
        (
            json!({"driver": "protect", "node-name": "a", "bytes": 1, "file": "nowhere"}),
            "Failed to find node with node-name='nowhere'",
        ),
    ] {
        assert_eq!(client.refused("blockdev-add", options), expected);
    }
    for (options, expected) in [
        (
            json!({"driver": "ram", "node-name": "disk", "size": 1}),
            "node 'disk': cannot change the option 'size'",
        ),
        (
            json!({"driver": "null-co", "node-name": "disk"}),
            "node 'disk': cannot change the option 'driver'",
        ),
        (
            json!({"driver": "protect", "node-name": "guarded", "bytes": 1}),
            "Parameter 'options[0].file' is missing",
        ),
    ] {
        let options = json!({"options": [options]});
        assert_eq!(client.refused("blockdev-reopen", options), expected);
    }
    end(daemon, client);
    let said = refused(&place, "--blockdev rom,node-name=a");
    let expected = format!("Parameter 'driver' does not accept value 'rom'; {all}");
    assert!(said.contains(&expected), "{said}");
    let said = refused(&place, "--blockdev ram,node-name=a,size=1M,latency-us=-1");
    assert!(said.contains("Value '-1' is out of range for parameter 'latency-us'"), "{said}");
}

#[test]
fn the_schema_and_the_printed_configuration_have_the_drivers_of_an_embedder() {
    let place = Place::new();
    let (daemon, mut client) = start(&place, LINE);
    let schema = client.run("query-qmp-schema", json!({}));
    let find = |name: &Value| {
        let mut entries = schema.as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == *name).unwrap()
    };
    let add = find(&find(&json!("blockdev-add"))["arg-type"]);
    assert_eq!(add["tag"], "driver");
    let variant = |word: &str| {
        let mut variants = add["variants"].as_array().unwrap().iter();
        find(&variants.find(|variant| variant["case"] == word).unwrap()["type"])
    };
    let latency = json!({"name": "latency-us", "type": "uint64", "default": null});
    assert_eq!(variant("ram")["members"][1], latency);
    let full = find(&json!("X_RAM_FULL"));
    assert_eq!(full["meta-type"], "event");
    let members = json!([
        {"name": "offset", "type": "uint64"},
        {"name": "node-name", "type": "str"},
    ]);
    assert_eq!(find(&full["arg-type"])["members"], members);
    // A child is a name, or a node of any driver.
    let child = find(&variant("protect")["members"][0]["type"]);
    assert_eq!(child["members"][1]["type"], add["name"]);
    end(daemon, client);

    // What is printed makes the same nodes.
    let lines =
        "--blockdev protect,bytes=4k,node-name=top,file.driver=ram,file.size=1M --dump-config";
    let output = command(&place, lines).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let expected =
        "protect,bytes=4096,file.driver=ram,file.latency-us=0,file.size=1048576,node-name=top";
    assert!(output.status.success() && printed.contains(expected), "{printed}");
}
