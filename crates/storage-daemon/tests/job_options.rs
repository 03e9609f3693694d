//! Options of jobs that QEMU does not have, by QMP: what is refused, what they do, and what queries show meanwhile.
//! And the members of what jobs tell.

mod util;

use std::fs;

use coblk_tests::tools;
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Daemon, Place, SIZE};

const DAEMON: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0 \
    --object iothread,id=t0 --object iothread,id=t1 \
    --object throttle-group,id=slow,limits.bps-total=1 \
    --nbd-server addr.type=unix,addr.path=@/nbd.sock \
    --blockdev file,node-name=source,filename=@/disk.img --blockdev file,node-name=target,filename=@/target \
    --export nbd,id=e0,node-name=source,name=disk,writable=on";
const MIB: u64 = 1 << 20;

struct Run {
    place: Place,
    daemon: Daemon,
    qmp: Client,
}

impl Run {
    /// With a source of random bytes, and a target.
    fn new() -> Run {
        let place = Place::new();
        let mut bytes = vec![0; SIZE as usize];
        coblk_tests::random::Random::new(1).fill(&mut bytes);
        fs::write(place.image(), bytes).unwrap();
        let target = fs::File::create(place.path("target")).unwrap();
        target.set_len(SIZE).unwrap();
        let daemon = place.start(DAEMON);
        let qmp = Client::new(&place.path("qmp.sock"));
        Run { place, daemon, qmp }
    }

    fn add(&mut self, name: &str, length: u64) {
        let path = self.place.path(name);
        fs::File::create(&path).unwrap().set_len(length).unwrap();
        let node = json!({
            "driver": "file", "node-name": name, "filename": path, "discard": "unmap",
        });
        self.qmp.run("blockdev-add", node);
    }

    /// The node, as slow as a byte a second.
    fn add_slow(&mut self, name: &str, node: &str) {
        let node = json!({
            "driver": "throttle", "node-name": name, "throttle-group": "slow", "file": node,
        });
        self.qmp.run("blockdev-add", node);
    }

    fn io(&self, commands: &[&str]) {
        let url = self.place.uri("disk");
        let mut arguments = vec!["-f", "raw"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        arguments.push(&url);
        let told = tools::run("qemu-io", arguments);
        assert!(!told.contains("failed"), "{told}");
    }

    /// The one job, as both queries show it.
    fn job(&mut self) -> (Value, Value) {
        let queries = ["query-jobs", "query-block-jobs"];
        let [job, block_job] = queries.map(|query| {
            let found = self.qmp.run(query, json!({}));
            assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
            found[0].clone()
        });
        (job, block_job)
    }

    /// Waits for the end of a job; its error.
    fn end(&mut self) -> Option<String> {
        let ended = self.qmp.event("BLOCK_JOB_COMPLETED");
        ended.get("error").map(|error| error.as_str().unwrap().to_owned())
    }

    fn quit(mut self) {
        self.qmp.ask("quit", json!({}));
        assert!(self.daemon.wait().success());
    }
}

fn with(base: &Value, more: &Value) -> Value {
    let mut arguments = base.clone();
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    arguments
}

fn backup() -> Value {
    json!({"job-id": "j", "device": "source", "target": "target", "sync": "full"})
}

#[test]
fn j128_j130_j131_j132_values_that_cannot_be_are_refused_and_say_which() {
    let mut run = Run::new();
    run.add("short", MIB);
    run.add("spill", SIZE);
    let none = |more: Value| with(&json!({"sync": "none"}), &more);
    let hold = |more: Value| with(&json!({"x-coblk-hold": MIB}), &more);
    let not_with_none =
        "x-coblk-spill, x-coblk-verify and x-coblk-manifest do not go with sync mode 'none'";
    let missing = run.place.path("missing/manifest");
    for (more, text) in [
        (json!({"x-coblk-hold": -1}), "x-coblk-hold"),
        (json!({"x-coblk-hold": "1M"}), "x-coblk-hold"),
        (hold(json!({})), "Parameter 'x-coblk-hold' goes with 'break-snapshot' alone"),
        (json!({"x-coblk-spill": "nowhere"}), "nowhere"),
        (json!({"x-coblk-spill": 5}), "x-coblk-spill"),
        (json!({"x-coblk-spill": "source"}), "'x-coblk-spill' is the source or the target"),
        (json!({"x-coblk-spill": "target"}), "'x-coblk-spill' is the source or the target"),
        (json!({"x-coblk-spill": "short"}), "'x-coblk-spill' is shorter than the source"),
        (none(json!({"x-coblk-spill": "spill"})), not_with_none),
        (
            hold(json!({"x-coblk-spill": "spill", "on-cbw-error": "break-snapshot"})),
            "'x-coblk-hold' does not go with 'x-coblk-spill'",
        ),
        (json!({"x-coblk-verify": "perhaps"}), "x-coblk-verify"),
        (json!({"x-coblk-verify": true}), "x-coblk-verify"),
        (none(json!({"x-coblk-verify": "read-back"})), not_with_none),
        (json!({"x-coblk-manifest": missing}), "Could not create"),
        (none(json!({"x-coblk-manifest": "m"})), not_with_none),
        (json!({"x-coblk-guest-latency-us": -1}), "x-coblk-guest-latency-us"),
        (json!({"x-coblk-guest-latency-us": "1ms"}), "x-coblk-guest-latency-us"),
        (json!({"x-coblk-iothreads": ["t9"]}), "no iothread 't9'"),
        (json!({"x-coblk-iothreads": "t0"}), "x-coblk-iothreads"),
        (json!({"x-coblk-unknown": 1}), "x-coblk-unknown"),
    ] {
        let told = run.qmp.refused("blockdev-backup", with(&backup(), &more));
        assert!(told.contains(text), "{more}: {told}");
    }
    for (more, text) in [
        (json!({"x-coblk-guest-latency-us": -1}), "x-coblk-guest-latency-us"),
        (json!({"x-coblk-iothreads": ["t0", "t9"]}), "no iothread 't9'"),
        (json!({"x-coblk-iothreads": [0]}), "x-coblk-iothreads"),
        (json!({"x-coblk-spill": "spill"}), "x-coblk-spill"),
    ] {
        let told = run.qmp.refused("blockdev-mirror", with(&backup(), &more));
        assert!(told.contains(text), "{more}: {told}");
    }
    assert_eq!(run.qmp.run("query-jobs", json!({})), json!([]));
    // Nothing is in use.
    for node in ["spill", "short", "target"] {
        run.qmp.run("blockdev-del", json!({"node-name": node}));
    }
    run.quit();
}

#[test]
fn j128_j132_a_backup_is_verified_and_noted_and_copies_in_iothreads() {
    let mut run = Run::new();
    let manifest = run.place.path("manifest");
    let more = json!({
        "x-coblk-verify": "read-back", "x-coblk-manifest": manifest, "auto-finalize": false,
        "x-coblk-iothreads": ["t0", "t1"], "x-coblk-guest-latency-us": 5_000_000,
    });
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    run.qmp.event("BLOCK_JOB_PENDING");
    let (job, block_job) = run.job();
    assert_eq!((&job["current-progress"], &job["total-progress"]), (&json!(SIZE), &json!(SIZE)));
    assert_eq!((&job["status"], &block_job["len"]), (&json!("pending"), &json!(SIZE)));
    run.qmp.run("job-finalize", json!({"id": "j"}));
    assert_eq!(run.end(), None);
    assert!(fs::read(run.place.path("target")).unwrap() == fs::read(run.place.image()).unwrap());
    let told = fs::read_to_string(&manifest).unwrap();
    let head = format!("coblk-manifest 1\nlength {SIZE}\ngranularity 65536\ncrc32c\n");
    assert!(told.starts_with(&head), "{told}");
    let lines = told.strip_prefix(&head).unwrap().lines();
    let granules: u64 = lines.map(|it| it.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(granules, SIZE / 65536);
    // A target that keeps nothing.
    let liar = json!({
        "driver": "null-co", "node-name": "liar", "size": SIZE, "read-zeroes": true,
    });
    run.qmp.run("blockdev-add", liar);
    let more = json!({"x-coblk-verify": "read-back", "target": "liar", "auto-dismiss": false});
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    let error = run.end().expect("it is seen");
    let (job, block_job) = run.job();
    assert_eq!((&job["status"], &job["error"]), (&json!("concluded"), &json!(error)));
    assert_eq!(block_job["error"], json!(error));
    run.qmp.run("job-dismiss", json!({"id": "j"}));
    // Without it nothing is looked at.
    let more = json!({"x-coblk-verify": "none", "target": "liar"});
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    assert_eq!(run.end(), None);
    run.quit();
}

#[test]
fn j131_with_a_spill_guests_do_not_wait_for_a_slow_target() {
    let mut run = Run::new();
    let instant = fs::read(run.place.image()).unwrap();
    run.add("spill", SIZE);
    run.add_slow("far", "target");
    let more = json!({"target": "far", "x-coblk-spill": "spill", "speed": 65536});
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    // The target takes a byte a second.
    run.io(&["write -P 7 8M 64k", "write -P 8 12M 4k", "flush"]);
    let spilled = fs::read(run.place.path("spill")).unwrap();
    assert!(spilled[8 << 20..][..65536] == instant[8 << 20..][..65536], "the old bytes are there");
    let (job, block_job) = run.job();
    assert_eq!((&job["type"], &job["status"]), (&json!("backup"), &json!("running")));
    assert_eq!((&block_job["speed"], &block_job["len"]), (&json!(65536), &json!(SIZE)));
    // Made fast, it is the disk at the instant.
    let limits = json!({"path": "/objects/slow", "property": "limits", "value": {"bps-total": 0}});
    run.qmp.run("qom-set", limits);
    run.qmp.run("block-job-set-speed", json!({"device": "j", "speed": 0}));
    assert_eq!(run.end(), None);
    assert!(fs::read(run.place.path("target")).unwrap() == instant);
    run.quit();
}

#[test]
fn j130_with_a_hold_guests_do_not_wait_for_a_slow_target() {
    let mut run = Run::new();
    run.add_slow("far", "target");
    let more = json!({
        "target": "far", "sync": "none", "on-cbw-error": "break-snapshot", "x-coblk-hold": MIB,
    });
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    run.io(&["write -P 7 8M 64k", "write -P 8 12M 4k", "flush"]);
    let (job, block_job) = run.job();
    assert_eq!((&job["status"], &block_job["io-status"]), (&json!("running"), &json!("ok")));
    run.qmp.run("job-cancel", json!({"id": "j"}));
    run.qmp.event("BLOCK_JOB_CANCELLED");
    run.quit();
}

#[test]
fn j128_a_mirror_copies_in_iothreads_and_bears_a_limit_of_latency() {
    let mut run = Run::new();
    let more = json!({"x-coblk-iothreads": ["t0", "t1"], "x-coblk-guest-latency-us": 5_000_000});
    run.qmp.run("blockdev-mirror", with(&backup(), &more));
    run.qmp.event("BLOCK_JOB_READY");
    let (_, block_job) = run.job();
    assert_eq!((&block_job["ready"], &block_job["len"]), (&json!(true), &json!(SIZE)));
    run.io(&["write -P 9 5M 1M"]);
    run.qmp.run("job-complete", json!({"id": "j"}));
    assert_eq!(run.end(), None);
    run.io(&["read -P 9 5M 1M"]);
    let copy = fs::read(run.place.path("target")).unwrap();
    assert!(fs::read(run.place.image()).unwrap() == copy);
    run.quit();
}

/// The next event of jobs that is not a change of state.
fn told(qmp: &mut Client) -> (String, Value) {
    loop {
        let (name, data) = qmp.any_event();
        if name.starts_with("BLOCK_JOB") {
            return (name, data);
        }
    }
}

#[test]
fn j25_events_have_these_members() {
    let mut run = Run::new();
    let bad = json!({
        "driver": "blkdebug", "node-name": "bad", "image": "target",
        "inject-error": [{"event": "none", "iotype": "write", "errno": 28, "once": true}],
    });
    run.qmp.run("blockdev-add", bad);
    let of = |len: u64, offset: u64, speed: u64| {
        let device = "j";
        json!({"type": "mirror", "device": device, "len": len, "offset": offset, "speed": speed})
    };
    let more = json!({"target": "bad", "on-target-error": "stop", "speed": 1_u64 << 40});
    run.qmp.run("blockdev-mirror", with(&backup(), &more));
    let error = json!({"device": "j", "operation": "write", "action": "stop"});
    assert_eq!(told(&mut run.qmp), ("BLOCK_JOB_ERROR".to_owned(), error));
    run.qmp.run("job-resume", json!({"id": "j"}));
    assert_eq!(told(&mut run.qmp), ("BLOCK_JOB_READY".to_owned(), of(SIZE, SIZE, 1_u64 << 40)));
    run.qmp.run("job-cancel", json!({"id": "j"}));
    assert_eq!(told(&mut run.qmp), ("BLOCK_JOB_CANCELLED".to_owned(), of(SIZE, SIZE, 1_u64 << 40)));
    let more = json!({"auto-finalize": false});
    run.qmp.run("blockdev-backup", with(&backup(), &more));
    let pending = json!({"type": "backup", "id": "j"});
    assert_eq!(told(&mut run.qmp), ("BLOCK_JOB_PENDING".to_owned(), pending));
    run.qmp.run("job-finalize", json!({"id": "j"}));
    let completed = with(&of(SIZE, SIZE, 0), &json!({"type": "backup"}));
    assert_eq!(told(&mut run.qmp), ("BLOCK_JOB_COMPLETED".to_owned(), completed));
    // One that fails at once has done nothing, and says why.
    run.add("short", MIB);
    run.qmp.run("blockdev-mirror", with(&backup(), &json!({"target": "short"})));
    let (name, failed) = told(&mut run.qmp);
    let text = json!("Source and target image have different sizes");
    assert_eq!((name.as_str(), &failed["error"]), ("BLOCK_JOB_COMPLETED", &text));
    assert_eq!(failed.as_object().unwrap().len(), 6);
    // Jobs of type create tell of their states alone.
    let options = json!({"driver": "file", "filename": run.place.path("new"), "size": 0});
    run.qmp.run("blockdev-create", json!({"job-id": "j", "options": options}));
    loop {
        let (name, data) = run.qmp.any_event();
        assert_eq!(name, "JOB_STATUS_CHANGE");
        assert_eq!((data.as_object().unwrap().len(), &data["id"]), (2, &json!("j")));
        if data["status"] == "concluded" {
            break;
        }
    }
    run.quit();
}
