//! Bitmaps in a file beside an image: `x-coblk-bitmaps`.

mod util;

use std::fs;

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place};

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock";
const NODE: &str = "--blockdev raw,node-name=disk,file.driver=file,file.filename=@/disk.img,\
    x-coblk-bitmaps=@/bitmaps --export nbd,id=e0,node-name=disk,name=disk,writable=on";
const GRANULE: u64 = 65536;

/// A daemon with the image and its bitmaps.
struct Run {
    place: Place,
    daemon: Daemon,
    qmp: Client,
}

impl Run {
    fn start(place: Place) -> Run {
        let daemon = place.start(&format!("{DAEMON} {NODE}"));
        let qmp = Client::new(&place.path("qmp.sock"));
        Run { place, daemon, qmp }
    }

    fn add(&mut self, name: &str) {
        let arguments = json!({"node": "disk", "name": name, "persistent": true});
        self.qmp.run("block-dirty-bitmap-add", arguments);
    }

    fn on(&mut self, verb: &str, name: &str) {
        let arguments = json!({"node": "disk", "name": name});
        self.qmp.run(&format!("block-dirty-bitmap-{verb}"), arguments);
    }

    fn write(&self, what: &str) {
        tools::run("qemu-io", ["-f", "raw", "-c", what, &self.place.uri("disk")]);
    }

    fn bitmaps(&mut self) -> Vec<Value> {
        let nodes = self.qmp.run("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().unwrap();
        let disk = nodes.iter().find(|node| node["node-name"] == "disk").unwrap();
        disk["dirty-bitmaps"].as_array().unwrap().clone()
    }

    fn bitmap(&mut self, name: &str) -> Value {
        let all = self.bitmaps();
        all.into_iter().find(|it| it["name"] == name).unwrap_or_else(|| panic!("no '{name}'"))
    }

    fn count(&mut self, name: &str) -> u64 {
        self.bitmap(name)["count"].as_u64().unwrap()
    }

    fn digest(&mut self, name: &str) -> Value {
        let arguments = json!({"node": "disk", "name": name});
        self.qmp.run("x-debug-block-dirty-bitmap-sha256", arguments)
    }

    fn quit(mut self) -> Place {
        self.qmp.ask("quit", json!({}));
        assert!(self.daemon.wait().success());
        self.place
    }

    fn kill(self) -> Place {
        self.daemon.signal(Signal::KILL);
        self.daemon.wait();
        self.place
    }
}

#[test]
fn j135_bitmaps_of_a_raw_image_are_kept_beside_it() {
    let mut run = Run::start(Place::new());
    for name in ["on", "off", "gone"] {
        run.add(name);
    }
    run.write("write 0 64k");
    run.on("disable", "off");
    run.write("write 1M 128k");
    run.on("remove", "gone");
    let digests = ["on", "off"].map(|name| run.digest(name));
    let mut run = Run::start(run.quit());
    assert_eq!(["on", "off"].map(|name| run.digest(name)), digests);
    assert_eq!(run.bitmaps().len(), 2);
    assert_eq!((run.count("on"), run.count("off")), (3 * GRANULE, GRANULE));
    let states = ["on", "off"].map(|name| run.bitmap(name)["recording"].clone());
    assert_eq!(states, [json!(true), json!(false)]);
    // It goes on, and what was not written is not dirty.
    run.write("write 2M 64k");
    assert_eq!((run.count("on"), run.count("off")), (4 * GRANULE, GRANULE));
    run.quit();
}

#[test]
fn j136_bitmaps_outlive_a_killed_daemon_and_have_what_was_written() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.add("off");
    run.on("disable", "off");
    let mut run = Run::start(run.kill());
    // Nothing was written.
    assert_eq!((run.count("on"), run.count("off")), (0, 0));
    run.write("write 3M 64k");
    let mut run = Run::start(run.kill());
    let on = run.bitmap("on");
    assert_eq!((&on["recording"], on.get("inconsistent")), (&json!(true), None));
    // The region of the write, which is all of this disk.
    assert_eq!((run.count("on"), run.count("off")), (util::SIZE, 0));
    run.on("clear", "on");
    run.write("write 5M 64k");
    // The end of the daemon stores what was written, and no region.
    let mut run = Run::start(run.quit());
    assert_eq!(run.count("on"), GRANULE);
    run.quit();
}

#[test]
fn j136_an_image_that_others_have_changed_makes_its_bitmaps_inconsistent() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let place = run.quit();
    let image = place.path("disk.img");
    tools::run("qemu-io", ["-f", "raw", "-c", "write 4M 64k", tools::text(&image)]);
    let mut run = Run::start(place);
    assert_eq!(run.bitmap("on")["inconsistent"], json!(true));
    run.qmp.refused("block-dirty-bitmap-clear", json!({"node": "disk", "name": "on"}));
    run.on("remove", "on");
    run.add("on");
    let place = run.quit();
    // Another image.
    fs::copy(place.path("disk.img"), place.path("copy")).unwrap();
    fs::rename(place.path("copy"), place.path("disk.img")).unwrap();
    let mut run = Run::start(place);
    assert_eq!(run.bitmap("on")["inconsistent"], json!(true));
    run.quit();
}

/// The text of the error of `blockdev-add` with this file of bitmaps.
fn refused(place: &Place, file: &str) -> String {
    let daemon = place.start(DAEMON);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let node = json!({
        "driver": "file", "node-name": "disk", "filename": place.path("disk.img"),
        "x-coblk-bitmaps": place.path(file),
    });
    let text = qmp.refused("blockdev-add", node);
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().success());
    text
}

#[test]
fn j135_files_that_cannot_be_used_are_refused_and_stay_as_they_are() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let place = run.quit();
    let good = fs::read(place.path("bitmaps")).unwrap();
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (bytes, why) in [
        (b"something else".to_vec(), "it is no file of bitmaps"),
        (Vec::new(), "it is no file of bitmaps"),
        (flip(0), "it is no file of bitmaps"),
        (flip(8), "it has version 0, which is not known"),
        (flip(20), "it is corrupt: its header"),
        (flip(4100), "it is corrupt: its bitmaps"),
        (good[..good.len() - 16].to_vec(), "it is corrupt: its length"),
    ] {
        fs::write(place.path("bad"), &bytes).unwrap();
        let text = refused(&place, "bad");
        assert!(text.contains(why) && text.contains("x-coblk-bitmaps"), "{text}");
        assert_eq!(fs::read(place.path("bad")).unwrap(), bytes);
    }
    fs::create_dir(place.path("folder")).unwrap();
    assert!(!refused(&place, "folder").is_empty());
    tools::run("mkfifo", [tools::text(&place.path("fifo"))]);
    assert!(refused(&place, "fifo").contains("no regular file"));
    fs::File::create(place.path("huge")).unwrap().set_len(1 << 40).unwrap();
    assert!(refused(&place, "huge").contains("no regular file of at most"));
}

#[test]
fn j136_a_journal_that_is_corrupt_makes_all_dirty() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let place = run.kill();
    let path = place.path("bitmaps");
    let mut bytes = fs::read(&path).unwrap();
    // The first entry is at the block behind the bits.
    assert!(bytes[8192..8208].iter().any(|byte| *byte != 0));
    bytes[8200] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut run = Run::start(place);
    assert_eq!(run.count("on"), util::SIZE);
    run.on("clear", "on");
    run.write("write 0 64k");
    let mut run = Run::start(run.quit());
    assert_eq!(run.count("on"), GRANULE);
    run.quit();
}

#[test]
fn j135_refusals_leave_nodes_as_they_are() {
    let place = Place::new();
    let image = place.path("image.qcow2");
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", tools::text(&image), "1M"]);
    let mut run = Run::start(place);
    run.add("on");
    let qcow2 = json!({
        "driver": "qcow2", "node-name": "q", "x-coblk-bitmaps": run.place.path("other"),
        "file": {"driver": "file", "filename": image},
    });
    let text = run.qmp.refused("blockdev-add", qcow2);
    assert!(text.contains("driver 'qcow2' keeps bitmaps in the image"), "{text}");
    // One file is for one node.
    let twice = json!({
        "driver": "null-co", "node-name": "n", "x-coblk-bitmaps": run.place.path("bitmaps"),
    });
    assert!(run.qmp.refused("blockdev-add", twice).contains("it is in use"));
    let nowhere = json!({
        "driver": "null-co", "node-name": "n", "size": 1 << 20,
        "x-coblk-bitmaps": run.place.path("missing/bitmaps"),
    });
    run.qmp.run("blockdev-add", nowhere);
    let add = json!({"node": "n", "name": "a", "persistent": true});
    let text = run.qmp.refused("block-dirty-bitmap-add", add);
    assert!(text.contains("Can't make bitmap 'a' persistent in 'n'"), "{text}");
    let add = json!({"node": "n", "name": "a"});
    run.qmp.run("block-dirty-bitmap-add", add);
    let reopen = json!({"options": [{
        "driver": "null-co", "node-name": "n", "size": 1 << 20, "x-coblk-bitmaps": "elsewhere",
    }]});
    assert!(run.qmp.refused("blockdev-reopen", reopen).contains("x-coblk-bitmaps"));
    run.quit();
}
