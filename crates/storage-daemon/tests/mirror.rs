//! `blockdev-mirror`, and the commands of block jobs. The same script runs on this daemon and on QEMU's.

mod util;

use serde_json::{Value, json};
use util::Place;
use util::both::{MONITOR, Talk, assert_same, on_both};

const LENGTH: usize = 1 << 20;

fn mirror(talk: &mut Talk<'_>, more: Value) {
    let mut arguments =
        json!({"job-id": "j", "device": "source", "target": "target", "sync": "full"});
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    talk.ask("blockdev-mirror", arguments);
}

/// What can be asked of a job, and is told of it, at this moment.
fn look(talk: &mut Talk<'_>, asked: &[&str]) {
    talk.ask("query-jobs", json!({}));
    talk.ask("query-block-jobs", json!({}));
    for command in asked {
        let key = match *command {
            "block-job-finalize" | "block-job-dismiss" | "block-job-change" => "id",
            command if command.starts_with("block-job") => "device",
            _ => "id",
        };
        let mut arguments = json!({key: "j"});
        match *command {
            "block-job-set-speed" => arguments["speed"] = json!(-1),
            "block-job-change" => {
                arguments["type"] = json!("mirror");
                arguments["copy-mode"] = json!("background");
            }
            _ => {}
        }
        talk.ask(command, arguments);
    }
}

const ALL: [&str; 14] = [
    "job-pause",
    "job-resume",
    "job-cancel",
    "job-complete",
    "job-finalize",
    "job-dismiss",
    "block-job-pause",
    "block-job-resume",
    "block-job-complete",
    "block-job-cancel",
    "block-job-finalize",
    "block-job-dismiss",
    "block-job-set-speed",
    "block-job-change",
];

fn add_nodes(talk: &mut Talk<'_>) {
    for (name, length) in [("source", LENGTH), ("target", LENGTH), ("short", LENGTH / 2)] {
        std::fs::write(talk.place.path(name), vec![name.as_bytes()[0]; length]).unwrap();
        let node = json!({"driver": "file", "node-name": name, "filename": talk.place.path(name)});
        talk.ask("blockdev-add", node);
    }
}

fn refusals(talk: &mut Talk<'_>) {
    for wrong in [
        json!({"job-id": ""}),
        json!({"job-id": "1a"}),
        json!({"device": "nowhere"}),
        json!({"target": "nowhere"}),
        json!({"target": "source"}),
        json!({"sync": "incremental"}),
        json!({"sync": "bitmap"}),
        json!({"granularity": 513}),
        json!({"granularity": 256}),
        json!({"granularity": 1 << 27}),
        json!({"speed": -1}),
        json!({"buf-size": -1}),
        json!({"replaces": "target"}),
        json!({"replaces": "nowhere"}),
        json!({"filter-node-name": "target"}),
    ] {
        mirror(talk, wrong);
    }
    look(talk, &ALL);
}

/// A whole run, with all that can be asked in each state.
fn run(talk: &mut Talk<'_>) {
    mirror(talk, json!({"job-id": "short", "target": "short"}));
    talk.until("short null");
    mirror(talk, json!({"auto-finalize": false, "auto-dismiss": false, "filter-node-name": "flt"}));
    talk.until("BLOCK_JOB_READY");
    look(talk, &["job-resume", "job-finalize", "job-dismiss", "block-job-set-speed"]);
    look(talk, &["block-job-change", "block-job-finalize", "block-job-dismiss"]);
    mirror(talk, json!({}));
    mirror(talk, json!({"job-id": "k"}));
    talk.ask("job-pause", json!({"id": "j"}));
    talk.until("j standby");
    look(
        talk,
        &["job-pause", "block-job-cancel", "block-job-pause", "job-dismiss", "job-finalize"],
    );
    talk.ask("job-complete", json!({"id": "j"}));
    talk.ask("job-resume", json!({"id": "j"}));
    talk.until("BLOCK_JOB_PENDING");
    look(talk, &["job-pause", "job-resume", "job-complete", "job-dismiss", "block-job-set-speed"]);
    talk.ask("block-job-finalize", json!({"id": "j"}));
    look(talk, &["job-cancel", "job-pause", "block-job-resume", "block-job-finalize"]);
    talk.ask("block-job-dismiss", json!({"id": "j"}));
    talk.until("j null");
}

/// The ways in which a mirror is cancelled.
fn cancellations(talk: &mut Talk<'_>) {
    for (force, more) in [
        (json!(false), json!({})),
        (json!(true), json!({})),
        (json!(true), json!({"auto-dismiss": false})),
        (json!(false), json!({"sync": "none"})),
    ] {
        mirror(talk, more.clone());
        talk.until("BLOCK_JOB_READY");
        talk.ask("block-job-cancel", json!({"device": "j", "force": force}));
        talk.until("j concluded");
        if more.get("auto-dismiss").is_some() {
            look(talk, &["job-dismiss"]);
        }
        talk.until("j null");
    }
    mirror(talk, json!({"auto-finalize": false}));
    talk.until("BLOCK_JOB_READY");
    talk.ask("job-complete", json!({"id": "j"}));
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("block-job-cancel", json!({"device": "j"}));
    talk.until("j null");
    look(talk, &[]);
}

/// Leaves out what is to differ: a mirror of QEMU's holds its guests up while it is pending, and its background
/// mode tells of a mode that it is not in.
fn comparable(mut reply: Value) -> Value {
    let listed = reply.get_mut("return").and_then(Value::as_array_mut);
    for job in listed.into_iter().flatten().filter_map(Value::as_object_mut) {
        job.remove("actively-synced");
        if job.get("status") == Some(&json!("pending")) {
            job.remove("paused");
        }
    }
    reply
}

#[test]
fn j26_j42_j43_mirrors_say_what_those_of_qemu_say() {
    let both = on_both(Place::new, MONITOR, |talk| {
        add_nodes(talk);
        refusals(talk);
        cancellations(talk);
        run(talk);
    });
    assert_same(&both, comparable);
    let images = both.map(|(place, _)| std::fs::read(place.path("target")).unwrap());
    assert_eq!(images, [vec![b's'; LENGTH], vec![b's'; LENGTH]]);
}
