//! One script of commands about a chain of images, run on this daemon and on QEMU's.

use std::process::{Child, Command, Stdio};

use coblk_tests::tools;
use serde_json::{Value, json};

use super::qmp::Client;
use super::{Place, wait_until};

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

/// A monitor, and what it has said.
pub struct Talk<'a> {
    pub place: &'a Place,
    qmp: Client,
    replies: Vec<Value>,
    events: Vec<String>,
}

impl Talk<'_> {
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let reply = self.qmp.ask(command, arguments.clone());
        // Shown if the test fails.
        println!("{command} {arguments}: {reply}");
        self.replies.push(json!([command, arguments, reply]));
        reply
    }

    /// Asks what is to succeed, and what is said of it is not compared.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.run(command, arguments)
    }

    /// Waits for an event that begins so.
    pub fn until(&mut self, wanted: &str) {
        loop {
            let (name, data) = self.qmp.any_event();
            let event = match name.as_str() {
                "JOB_STATUS_CHANGE" => {
                    let [id, status] = ["id", "status"].map(|it| data[it].as_str().unwrap());
                    format!("{id} {status}")
                }
                _ => format!("{name} {data}"),
            };
            let is_it = event.starts_with(wanted);
            self.events.push(event);
            if is_it {
                return;
            }
        }
    }

    /// Asks a query, of whose answer `part` is compared.
    pub fn look(&mut self, command: &str, part: impl Fn(&Value) -> Value) {
        let reply = self.qmp.run(command, json!({}));
        self.replies.push(json!([command, part(&reply)]));
    }

    /// Which node has which backing file, as the nodes are, and as their headers name it, and whether it is read-only.
    pub fn look_at_nodes(&mut self) {
        self.look("query-named-block-nodes", |nodes| {
            let nodes = nodes.as_array().unwrap().iter();
            let images = nodes.filter(|node| node["drv"] == "qcow2");
            let mut images: Vec<_> = images
                .map(|node| {
                    let image = &node["image"];
                    json!([
                        node["node-name"],
                        node["ro"],
                        image["backing-filename"],
                        image["backing-filename-format"],
                        node["backing_file_depth"],
                        node["children"],
                    ])
                })
                .collect();
            images.sort_by_key(Value::to_string);
            json!(images)
        });
    }

    /// Adds nodes on images, the lowest first, each above the one before.
    pub fn add_chain(&mut self, names: &[&str]) {
        let mut below = Value::Null;
        for name in names {
            let file = json!({
                "driver": "file", "node-name": format!("{name}-file"),
                "filename": self.place.path(name),
            });
            self.run("blockdev-add", file);
            let node = json!({
                "driver": "qcow2", "node-name": name, "file": format!("{name}-file"),
                "backing": below,
            });
            self.run("blockdev-add", node);
            below = json!(name);
        }
    }

    pub fn del(&mut self, names: &[&str]) {
        for name in names {
            self.ask("blockdev-del", json!({"node-name": name}));
        }
    }
}

/// Makes images above each other, the lowest first, each with data of its own.
pub fn make_chain(place: &Place, names: &[&str]) {
    let mut below: Option<std::path::PathBuf> = None;
    for (number, name) in names.iter().enumerate() {
        let path = place.path(name);
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        if let Some(below) = &below {
            create.extend(["-b", tools::text(below), "-F", "qcow2"]);
        }
        create.extend([tools::text(&path), "1M"]);
        tools::run("qemu-img", create);
        let write = format!("write -P {} {}k 200k", number + 1, number * 130);
        tools::run("qemu-io", ["-f", "qcow2", "-c", &write, tools::text(&path)]);
        below = Some(path);
    }
}

/// The bytes of an image, with those of its backing files.
pub fn content(place: &Place, name: &str) -> Vec<u8> {
    let raw = place.path("content.raw");
    let arguments = ["convert", "-f", "qcow2", "-O", "raw"];
    let paths = [place.path(name), raw.clone()];
    let paths = paths.iter().map(|path| tools::text(path));
    tools::run("qemu-img", arguments.into_iter().chain(paths));
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// What an image says of itself, but for paths.
pub fn backing(place: &Place, name: &str) -> (Value, Value) {
    let path = place.path(name);
    let said = tools::run("qemu-img", ["info", "--output=json", tools::text(&path)]);
    let mut info: Value = serde_json::from_str(&said).unwrap();
    let backing = info["backing-filename"].take();
    let backing = backing.as_str().map(|it| it.replace(tools::text(&place.path("")), ""));
    (json!(backing), info["backing-filename-format"].take())
}

/// An image is sound.
pub fn check(place: &Place, name: &str) {
    let path = place.path(name);
    tools::run("qemu-img", ["check", "-q", "-f", "qcow2", tools::text(&path)]);
}

fn qemu(place: &Place) -> Child {
    let mut command = Command::new("qemu-storage-daemon");
    command.args(MONITOR.split_whitespace().map(|it| place.fill_in(it)));
    command.args(["--pidfile", tools::text(&place.pid_file())]);
    command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon: install qemu-system-common")
}

/// How often a job stops for a drain is not promised.
fn without_pauses(events: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for event in events {
        let is_end_of = |before: &String| {
            let of = |stopped, goes_on| before.ends_with(stopped) && event.ends_with(goes_on);
            of(" paused", " running") || of(" standby", " ready")
        };
        match kept.last() {
            Some(before) if is_end_of(before) => drop(kept.pop()),
            _ => kept.push(event.clone()),
        }
    }
    kept
}

fn talk<'a>(place: &'a Place, qmp: Client, script: &dyn Fn(&mut Talk<'_>)) -> Talk<'a> {
    let (replies, events) = Default::default();
    let mut talk = Talk { place, qmp, replies, events };
    script(&mut talk);
    talk.run("quit", json!({}));
    talk
}

/// Runs a script on QEMU's daemon and on this one, on the same images, and compares what is said; `comparable` leaves
/// out what is to differ. Returns both directories, that of QEMU's first.
pub fn on_both(
    images: &[&str],
    script: impl Fn(&mut Talk<'_>),
    comparable: impl Fn(Value) -> Value,
) -> [Place; 2] {
    let theirs = Place::new();
    make_chain(&theirs, images);
    let mut peer = qemu(&theirs);
    wait_until("QEMU's daemon serves", || theirs.pid_file().exists());
    let expected = talk(&theirs, Client::of_peer(&theirs.path("qmp.sock")), &script);
    assert!(peer.wait().unwrap().success());
    let ours = Place::new();
    make_chain(&ours, images);
    let daemon = ours.start(MONITOR);
    let found = talk(&ours, Client::new(&ours.path("qmp.sock")), &script);
    assert!(daemon.wait().success());
    let without_place = |reply: &Value, place: &Place| -> Value {
        let text = reply.to_string().replace(tools::text(&place.path("")), "@/");
        comparable(serde_json::from_str(&text).unwrap())
    };
    assert_eq!(found.replies.len(), expected.replies.len());
    let pairs = found.replies.iter().zip(&expected.replies);
    let pairs = pairs
        .map(|(found, expected)| (without_place(found, &ours), without_place(expected, &theirs)));
    let differ: Vec<_> = pairs.filter(|(found, expected)| found != expected).collect();
    let show =
        |(found, expected): &(Value, Value)| format!("ours:   {found}\nQEMU's: {expected}\n");
    let differ: String = differ.iter().map(show).collect();
    assert!(differ.is_empty(), "{differ}");
    assert_eq!(without_pauses(&found.events), without_pauses(&expected.events));
    drop((found, expected));
    [theirs, ours]
}
