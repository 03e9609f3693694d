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
        disk["dirty-bitmaps"].as_array().cloned().unwrap_or_default()
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

#[test]
fn j136_the_end_of_a_backup_is_in_the_file_before_the_daemon_is_killed() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let mut run = Run::start(run.quit());
    let copy = run.place.path("copy");
    fs::File::create(&copy).unwrap().set_len(util::SIZE).unwrap();
    run.qmp.run("blockdev-add", json!({"driver": "file", "node-name": "copy", "filename": copy}));
    let backup = json!({
        "job-id": "b", "device": "disk", "target": "copy", "sync": "incremental", "bitmap": "on",
    });
    run.qmp.run("blockdev-backup", backup);
    assert!(run.qmp.event("BLOCK_JOB_COMPLETED").get("error").is_none());
    let mut run = Run::start(run.kill());
    assert_eq!((run.count("on"), run.bitmaps().len()), (0, 1));
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

#[test]
fn j136_another_image_in_the_place_of_one_whose_daemon_was_killed_makes_its_bitmaps_inconsistent() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let place = run.kill();
    // The same one is no other.
    let mut run = Run::start(place);
    assert_eq!(run.bitmap("on").get("inconsistent"), None);
    run.write("write 0 64k");
    let place = run.kill();
    fs::copy(place.path("disk.img"), place.path("copy")).unwrap();
    fs::rename(place.path("copy"), place.path("disk.img")).unwrap();
    let mut run = Run::start(place);
    assert_eq!(run.bitmap("on")["inconsistent"], json!(true));
    run.quit();
}

#[test]
fn j135_an_inactive_node_hands_its_file_over_and_reads_it_anew() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    run.qmp.run("block-export-del", json!({"id": "e0"}));
    run.qmp.event("BLOCK_EXPORT_DELETED");
    let set = |qmp: &mut Client, active: bool| {
        qmp.run("blockdev-set-active", json!({"node-name": "disk", "active": active}));
    };
    set(&mut run.qmp, false);
    assert!(run.bitmaps().is_empty(), "another process may change them");
    // Nothing is made where nothing can be stored.
    let add = json!({"node": "disk", "name": "new", "persistent": true});
    run.qmp.refused("block-dirty-bitmap-add", add);
    // Another daemon has the image, and its bitmaps.
    let other = "--chardev socket,id=c0,path=@/other.sock,server=on,wait=off --monitor chardev=c0 \
        --nbd-server addr.type=unix,addr.path=@/other-nbd.sock --pidfile @/other-pid";
    let mut command = run.place.command(&format!("{other} {NODE}"));
    let mut daemon = command.spawn().unwrap();
    let mut qmp = Client::new(&run.place.path("other.sock"));
    let nodes = qmp.run("query-named-block-nodes", json!({}));
    let disk = nodes.as_array().unwrap().iter().find(|it| it["node-name"] == "disk").unwrap();
    assert_eq!(disk["dirty-bitmaps"][0]["count"], json!(GRANULE));
    let url = format!("nbd+unix:///disk?socket={}", tools::text(&run.place.path("other-nbd.sock")));
    tools::run("qemu-io", ["-f", "raw", "-c", "write 1M 64k", &url]);
    let text = run.qmp.refused("blockdev-set-active", json!({"node-name": "disk", "active": true}));
    assert!(!text.is_empty(), "two daemons have one image");
    qmp.ask("quit", json!({}));
    assert!(daemon.wait().unwrap().success());
    set(&mut run.qmp, true);
    assert_eq!(run.count("on"), 2 * GRANULE);
    run.quit();
}

#[test]
fn j113_j136_bitmaps_follow_the_length_of_the_disk_and_outlive_a_crash_after_that() {
    let resize = |run: &mut Run, bytes: u64| {
        run.qmp.run("block_resize", json!({"node-name": "disk", "size": bytes}));
    };
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    resize(&mut run, 2 * util::SIZE);
    run.write("write 20M 64k");
    let mut run = Run::start(run.quit());
    assert_eq!(run.count("on"), 2 * GRANULE, "what is new is clean");
    // What was cut is dirty when it comes back.
    resize(&mut run, util::SIZE);
    assert_eq!(run.count("on"), GRANULE);
    resize(&mut run, util::SIZE + 2 * GRANULE);
    assert_eq!(run.count("on"), 3 * GRANULE);
    let mut run = Run::start(run.quit());
    assert_eq!(run.count("on"), 3 * GRANULE);
    for bytes in [util::SIZE / 2, 3 * util::SIZE] {
        run.on("clear", "on");
        resize(&mut run, bytes);
        run = Run::start(run.kill());
        let on = run.bitmap("on");
        assert_eq!(on.get("inconsistent"), None);
        // All that is new, or was cut, is dirty; what else is depends on the region.
        let count = on["count"].as_u64().unwrap();
        let grown = bytes.saturating_sub(util::SIZE / 2);
        assert!((grown..=bytes).contains(&count), "{count} of {bytes}");
    }
    run.quit();
}

#[test]
fn j135_the_bitmaps_of_a_read_only_node_are_seen_and_stay_as_they_are() {
    let mut run = Run::start(Place::new());
    run.add("on");
    run.write("write 0 64k");
    let place = run.quit();
    let before = fs::read(place.path("bitmaps")).unwrap();
    let node = "--blockdev raw,node-name=disk,read-only=on,file.driver=file,file.filename=@/disk.img,\
        x-coblk-bitmaps=@/bitmaps";
    let daemon = place.start(&format!("{DAEMON} {node}"));
    let qmp = Client::new(&place.path("qmp.sock"));
    let mut run = Run { place, daemon, qmp };
    assert_eq!(run.count("on"), GRANULE);
    for (command, more) in [
        ("block-dirty-bitmap-clear", json!({"name": "on"})),
        ("block-dirty-bitmap-remove", json!({"name": "on"})),
        ("block-dirty-bitmap-add", json!({"name": "new", "persistent": true})),
        ("block-dirty-bitmap-merge", json!({"target": "on", "bitmaps": ["on"]})),
    ] {
        let mut arguments = json!({"node": "disk"});
        arguments.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        assert!(!run.qmp.refused(command, arguments).is_empty());
    }
    assert_eq!(run.count("on"), GRANULE);
    let place = run.quit();
    assert!(fs::read(place.path("bitmaps")).unwrap() == before, "it was written");
    // It may be read by several at once, and by one that writes afterwards.
    let mut run = Run::start(place);
    run.write("write 1M 64k");
    assert_eq!(run.count("on"), 2 * GRANULE);
    run.quit();
}

/// How long a file may be that a daemon writes. As on a full disk, it is told of
/// an error.
fn limit_files(daemon: &Daemon, bytes: &str) {
    let limit = format!("--fsize={bytes}:");
    tools::run("prlimit", ["--pid", &daemon.pid().to_string(), &limit]);
}

#[test]
fn j135_where_there_is_no_space_commands_fail_and_all_is_as_before() {
    let place = Place::new();
    // 2 MiB of bits.
    let node = "--blockdev null-co,node-name=disk,size=1099511627776,x-coblk-bitmaps=@/bitmaps \
        --export nbd,id=e0,node-name=disk,name=disk,writable=on --pidfile @/pid";
    // The signal of a file that is too long is for those that do not look at errors.
    let mut command = std::process::Command::new("sh");
    command.args([
        "-c",
        "trap '' XFSZ; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_coblk-storage-daemon"),
    ]);
    command.args(format!("{DAEMON} {node}").split_whitespace().map(|it| place.fill_in(it)));
    command.stdin(std::process::Stdio::null()).env_remove("RUST_LOG");
    let daemon = place.start_command(command);
    let qmp = Client::new(&place.path("qmp.sock"));
    let mut run = Run { place, daemon, qmp };
    let small =
        json!({"node": "disk", "name": "small", "granularity": 1 << 26, "persistent": true});
    run.qmp.run("block-dirty-bitmap-add", small);
    let before = fs::read(run.place.path("bitmaps")).unwrap();
    limit_files(&run.daemon, "1048576");
    let large = json!({"node": "disk", "name": "large", "granularity": 65536, "persistent": true});
    let text = run.qmp.refused("block-dirty-bitmap-add", large.clone());
    assert!(text.contains("large"), "{text}");
    assert_eq!(run.bitmaps().len(), 1);
    assert!(fs::read(run.place.path("bitmaps")).unwrap() == before);
    assert!(!run.place.path("bitmaps.new").exists(), "a half of a file stays");
    // It is none of the others' business.
    run.write("write 0 64k");
    assert_eq!(run.count("small"), 1 << 26);
    limit_files(&run.daemon, "unlimited");
    run.qmp.run("block-dirty-bitmap-add", large);
    // Its journal is where nothing can be written any more.
    limit_files(&run.daemon, "1048576");
    let failed =
        tools::output("qemu-io", ["-f", "raw", "-c", "write 100G 64k", &run.place.uri("disk")]);
    let said = String::from_utf8_lossy(&failed.stdout).into_owned()
        + &String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("write failed"), "{said}");
    run.qmp.refused("block-dirty-bitmap-disable", json!({"node": "disk", "name": "large"}));
    assert_eq!(run.bitmap("large")["recording"], json!(true));
    run.qmp.run("block-export-del", json!({"id": "e0"}));
    run.qmp.event("BLOCK_EXPORT_DELETED");
    let text = run.qmp.refused("blockdev-del", json!({"node-name": "disk"}));
    assert!(text.contains("bitmaps cannot be stored in"), "{text}");
    assert_eq!(run.bitmaps().len(), 2, "the node is closed");
    limit_files(&run.daemon, "unlimited");
    let export =
        json!({"type": "nbd", "id": "e1", "node-name": "disk", "name": "disk", "writable": true});
    run.qmp.run("block-export-add", export);
    run.write("write 100G 64k");
    assert_eq!(run.count("large"), GRANULE);
    let place = run.quit();
    let daemon = place.start(&format!("{DAEMON} {node}").replace("--pidfile @/pid", ""));
    let qmp = Client::new(&place.path("qmp.sock"));
    let mut run = Run { place, daemon, qmp };
    assert_eq!((run.count("large"), run.count("small")), (GRANULE, 2 << 26));
    run.quit();
}
