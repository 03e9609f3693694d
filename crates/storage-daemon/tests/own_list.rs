//! A list of children of an embedder's driver, as the daemon's users see it: on the command line, in options
//! over QMP, in what is listed and printed.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, stderr};

#[allow(dead_code, reason = "its main function is for programs")]
#[path = "../../../examples/own_mirror.rs"]
mod own_mirror;
mod util;

/// The arguments of the example, in a process that is to be one.
const ARGUMENTS: &str = "COBLK_OWN_MIRROR";
/// What that process is called by.
const PROGRAM: &str = "the_program_of_the_example";

const MONITOR: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock --pidfile @/pid";

#[test]
fn the_program_of_the_example() {
    let Some(arguments) = std::env::var_os(ARGUMENTS) else { return };
    let arguments = arguments.into_string().unwrap();
    let words = ["own_mirror"].into_iter().chain(arguments.split_whitespace());
    let code =
        coblk_storage_daemon::run::main_with(own_mirror::builder(), words.map(OsString::from));
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

fn command(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", PROGRAM, "--nocapture"]).env(ARGUMENTS, place.fill_in(arguments));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// With the files a, b, c as nodes of 1 MiB, and what else `more` says.
fn start(place: &Place, more: &str) -> (Daemon, Client) {
    let mut line = MONITOR.to_owned();
    for name in ["a", "b", "c"] {
        std::fs::write(place.path(name), vec![0; 1 << 20]).unwrap();
        line += &format!(" --blockdev file,node-name={name},filename=@/{name}");
    }
    let daemon = place.start_command(command(place, &format!("{line} {more}")));
    (daemon, Client::new(&place.path("qmp.sock")))
}

fn end(daemon: Daemon, mut client: Client) {
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
}

/// The edges of a node, as `children.0=a`.
fn edges(client: &mut Client, name: &str) -> Vec<String> {
    let nodes = client.run("query-named-block-nodes", json!({}));
    let mut nodes = nodes.as_array().unwrap().iter();
    let node = nodes.find(|node| node["node-name"] == name).expect("it is listed");
    let edge = |it: &Value| {
        let text = |member: &str| it[member].as_str().unwrap().to_owned();
        format!("{}={}", text("child"), text("node-name"))
    };
    node["x-coblk-children"].as_array().unwrap().iter().map(edge).collect()
}

/// The arguments of `--blockdev` that the daemon prints of itself, of a node with this driver.
fn printed(client: &mut Client, driver: &str) -> Vec<String> {
    let config = client.run("x-coblk-config", json!({}));
    let words = config["arguments"].as_array().unwrap().iter().filter_map(Value::as_str);
    words.filter(|word| word.starts_with(driver)).map(str::to_owned).collect()
}

fn reopen(children: &Value) -> Value {
    json!({"options": [{"driver": "mirror", "node-name": "m", "children": children}]})
}

fn write(place: &Place, byte: u8) {
    let command = format!("write -P {byte} 0 4k");
    let said = tools::run("qemu-io", ["-f", "raw", "-c", &command, "-c", "flush", &place.uri("m")]);
    assert!(said.contains("wrote 4096/4096"), "{said}");
}

/// The first byte of each of the files.
fn bytes(place: &Place) -> [u8; 3] {
    ["a", "b", "c"].map(|name| std::fs::read(place.path(name)).unwrap()[0])
}

#[test]
fn a_list_on_a_command_line_is_opened_listed_and_printed() {
    let place = Place::new();
    let line = "--blockdev mirror,node-name=m,children.0=b,children.1.driver=null-co,\
                children.1.size=1048576,children.1.node-name=own,children.2=a \
                --export nbd,id=e0,node-name=m,name=m,writable=on";
    let (daemon, mut client) = start(&place, line);
    assert_eq!(edges(&mut client, "m"), ["children.0=b", "children.1=own", "children.2=a"]);
    write(&place, 7);
    assert_eq!(bytes(&place), [7, 7, 0]);
    let again = printed(&mut client, "mirror");
    let options = "mirror,children.0=b,children.1.driver=null-co,";
    assert!(again.len() == 1 && again[0].starts_with(options), "{again:?}");
    end(daemon, client);

    // What was printed makes the same node.
    let (daemon, mut client) = start(&place, &format!("--blockdev {}", again[0]));
    assert_eq!(edges(&mut client, "m"), ["children.0=b", "children.1=own", "children.2=a"]);
    assert_eq!(printed(&mut client, "mirror"), again);
    client.run("blockdev-del", json!({"node-name": "m"}));
    assert_eq!(client.run("query-named-block-nodes", json!({})).as_array().unwrap().len(), 3);
    client.run("blockdev-del", json!({"node-name": "a"}));
    end(daemon, client);

    let line = "--blockdev null-co,node-name=n,size=1048576 \
                --blockdev mirror,node-name=m,children.0=n,children.1=n --dump-config";
    let dumped = command(&place, line).output().unwrap();
    let dumped = String::from_utf8(dumped.stdout).unwrap();
    assert!(dumped.contains("mirror,children.0=n,children.1=n,node-name=m"), "{dumped}");
}

#[test]
fn a_list_is_reopened_and_children_come_and_go_over_qmp() {
    let place = Place::new();
    let (daemon, mut client) = start(&place, "");
    let children = json!(["a", {"driver": "raw", "node-name": "own", "file": "b"}]);
    client.run("blockdev-add", json!({"driver": "mirror", "node-name": "m", "children": children}));
    let export = json!({"type": "nbd", "id": "e", "node-name": "m", "name": "m", "writable": true});
    client.run("block-export-add", export);
    write(&place, 1);
    assert_eq!(bytes(&place), [1, 1, 0]);
    // In place of another, after it, and with a child that keeps its own options.
    client.run("blockdev-reopen", reopen(&json!(["c", {"driver": "raw", "file": "b"}, "a"])));
    assert_eq!(edges(&mut client, "m"), ["children.0=c", "children.1=own", "children.2=a"]);
    write(&place, 2);
    assert_eq!(bytes(&place), [2, 2, 2]);
    // Fewer: those at the end go, and what was opened for the node is closed.
    client.run("blockdev-reopen", reopen(&json!(["c"])));
    assert_eq!(edges(&mut client, "m"), ["children.0=c"]);
    write(&place, 3);
    assert_eq!(bytes(&place), [2, 2, 3]);
    let gone = client.refused("blockdev-del", json!({"node-name": "own"}));
    assert_eq!(gone, "Failed to find node with node-name='own'");
    // One by one, with names that are not given again before the last one has gone.
    for node in ["a", "b"] {
        client.run("x-blockdev-change", json!({"parent": "m", "node": node}));
    }
    client.run("x-blockdev-change", json!({"parent": "m", "child": "children.1"}));
    assert_eq!(edges(&mut client, "m"), ["children.0=c", "children.2=b"]);
    write(&place, 4);
    assert_eq!(bytes(&place), [2, 4, 4]);
    assert_eq!(printed(&mut client, "mirror"), ["mirror,children.0=c,children.1=b,node-name=m"]);
    // By their places, whatever their names are.
    client.run("blockdev-reopen", reopen(&json!(["c", "a"])));
    assert_eq!(edges(&mut client, "m"), ["children.0=c", "children.2=a"]);
    for node in ["b", "a", "c"] {
        let expected = if node == "b" { None } else { Some(format!("Node '{node}' is in use")) };
        let answer = client.ask("blockdev-del", json!({"node-name": node}));
        assert_eq!(answer["error"]["desc"].as_str(), expected.as_deref(), "{node}");
    }
    end(daemon, client);
}

#[test]
fn a_reopen_that_is_refused_leaves_the_list_as_it_was() {
    let place = Place::new();
    let line = "--blockdev mirror,node-name=m,children.0=a,children.1=b \
                --blockdev null-co,node-name=long,size=2097152 \
                --blockdev null-co,node-name=idle,size=1048576,active=off \
                --blockdev raw,node-name=above,file=m \
                --export nbd,id=e,node-name=m,name=m,writable=on";
    let (daemon, mut client) = start(&place, line);
    let cycle =
        |below: &str| format!("making node '{below}' a child of node 'm' would create a cycle");
    for (children, expected) in [
        (json!([]), "child 'children.0' of node 'm' cannot change: it is the last one".to_owned()),
        (
            json!(["a", "b", "long"]),
            "child 'children.2' of node 'm' cannot change: it differs in length".to_owned(),
        ),
        (
            json!(["a", "b", "c", "c", "long"]),
            "child 'children.4' of node 'm' cannot change: it differs in length".to_owned(),
        ),
        (json!(["a", "b", "m"]), cycle("m")),
        (json!(["above"]), cycle("above")),
        (json!(["a", "b", "c", "above"]), cycle("above")),
        (
            json!(["a", "b", "idle"]),
            "node 'm' needs node 'idle' to be active, and it is inactive".to_owned(),
        ),
        (json!(["a", "b", "none"]), "Failed to find node with node-name='none'".to_owned()),
        (
            json!(["a", "b", {"driver": "null-co", "size": 1 << 20}]),
            "node 'm': cannot change the option 'children.2'".to_owned(),
        ),
        (
            json!(["a", {"driver": "null-co", "size": 1 << 20}]),
            "node 'm': cannot change the option 'children.1'".to_owned(),
        ),
        (
            json!("a"),
            "Invalid parameter type for 'options[0].children', expected: array".to_owned(),
        ),
        (
            json!(vec!["a"; 1025]),
            "Parameter 'options[0].children': more than 1024 children".to_owned(),
        ),
    ] {
        assert_eq!(client.refused("blockdev-reopen", reopen(&children)), expected);
        assert_eq!(edges(&mut client, "m"), ["children.0=a", "children.1=b"]);
    }
    write(&place, 9);
    assert_eq!(bytes(&place), [9, 9, 0]);
    for (arguments, expected) in [
        (json!({"parent": "m"}), "Either child or node must be specified"),
        (
            json!({"parent": "m", "child": "children.0", "node": "c"}),
            "The parameters child and node are in conflict",
        ),
        (
            json!({"parent": "m", "child": "children.2"}),
            "node 'm' does not have child 'children.2'",
        ),
        (json!({"parent": "a", "node": "b"}), "node 'a' does not support adding a child"),
        (json!({"parent": "m", "node": "none"}), "Failed to find node with node-name='none'"),
        (json!({"parent": "none", "node": "a"}), "Failed to find node with node-name='none'"),
        (json!({"parent": "m", "node": "m"}), &cycle("m")),
        (json!({"parent": "m", "node": "above"}), &cycle("above")),
    ] {
        assert_eq!(client.refused("x-blockdev-change", arguments), expected);
    }
    end(daemon, client);
}

#[test]
fn lists_that_make_no_sense_are_refused_in_qemus_words() {
    let place = Place::new();
    let refused = |options: &str| {
        let node = "--blockdev null-co,node-name=a,size=1048576";
        let line = format!("{node} --blockdev mirror,node-name=m{options}");
        let output = command(&place, &line).stdout(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{options}");
        stderr(&output)
    };
    let many = (0..1025).map(|place| format!(",children.{place}=a")).collect::<String>();
    for (options, expected) in [
        ("", "Parameter 'children' is missing"),
        (",children.1=a", "Parameter 'children.0' missing"),
        (",children.0=a,children.2=a", "Parameter 'children.1' missing"),
        (",children=a", "Invalid parameter type for 'children', expected: array"),
        (",children.0=a,children.x=a", "Parameters 'children.*' used inconsistently"),
        (
            ",children.0.driver=null-co,children.0.sise=1",
            "Parameter 'children.0.sise' is unexpected",
        ),
        (",children.0=a,children.1=b", "Failed to find node with node-name='b'"),
        (",children.0=a,children.1.driver=null-co", "they differ in length"),
        (&*many, "Parameters 'children.*': too many"),
    ] {
        let said = refused(options);
        assert!(said.contains(expected), "{options}: {said}");
    }
    let (daemon, mut client) = start(&place, "");
    for (children, expected) in [
        (json!("a"), "Invalid parameter type for 'children', expected: array"),
        (json!(["a", 5]), "Invalid parameter type for 'children[1]', expected: BlockdevRef"),
        (
            json!(["a", {"driver": "null-co", "sise": 3}]),
            "Parameter 'children[1].sise' is unexpected",
        ),
        (json!([]), "node 'm': option 'children': there is none"),
        (json!(["a", "none"]), "Failed to find node with node-name='none'"),
        (json!(["a", "m"]), "Failed to find node with node-name='m'"),
        (json!(vec!["a"; 1025]), "Parameter 'children': more than 1024 children"),
    ] {
        let options = json!({"driver": "mirror", "node-name": "m", "children": children});
        assert_eq!(client.refused("blockdev-add", options), expected);
    }
    // Nothing of a list stays open.
    let own = json!({"driver": "file", "node-name": "own", "filename": place.path("c")});
    let options = json!({"driver": "mirror", "node-name": "m", "children": ["a", own, "none"]});
    client.refused("blockdev-add", options);
    assert_eq!(client.run("query-named-block-nodes", json!({})).as_array().unwrap().len(), 3);

    let schema = client.run("query-qmp-schema", json!({}));
    let find = |name: &Value| {
        let mut entries = schema.as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == *name).unwrap()
    };
    let add = find(&find(&json!("blockdev-add"))["arg-type"]);
    let mut variants = add["variants"].as_array().unwrap().iter();
    let mirror = find(&variants.find(|variant| variant["case"] == "mirror").unwrap()["type"]);
    let list = find(&mirror["members"][0]["type"]);
    let item = find(&list["element-type"]);
    assert_eq!((&list["meta-type"], &item["meta-type"]), (&json!("array"), &json!("alternate")));
    end(daemon, client);
}
