//! `block-stream`. The same script runs on this daemon and on QEMU's.

mod util;

use serde_json::{Value, json};
use util::Place;
use util::chain_script::{Talk, backing, check, content, make_chain, on_both};

const IMAGES: [&str; 4] = ["base", "low", "high", "top"];

fn stream(talk: &mut Talk<'_>, more: Value) {
    let mut arguments = json!({"job-id": "j", "device": "top"});
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    talk.ask("block-stream", arguments);
}

fn refusals(talk: &mut Talk<'_>) {
    for wrong in [
        json!({"job-id": ""}),
        json!({"device": "nowhere"}),
        json!({"base": "low", "base-node": "low"}),
        json!({"base": "low", "bottom": "low"}),
        json!({"base-node": "low", "bottom": "low"}),
        json!({"base": "nowhere"}),
        json!({"base-node": "nowhere"}),
        json!({"base-node": "top"}),
        json!({"base-node": "top-file"}),
        json!({"bottom": "nowhere"}),
        json!({"bottom": "top-file"}),
        json!({"backing-file": "name"}),
        json!({"speed": -1}),
        json!({"filter-node-name": "low"}),
    ] {
        stream(talk, wrong);
    }
}

fn script(talk: &mut Talk<'_>) {
    talk.add_chain(&IMAGES);
    refusals(talk);
    talk.look_at_nodes();
    // What is above the base, with all of the states.
    let base = talk.place.path("low");
    stream(
        talk,
        json!({"base": base, "auto-finalize": false, "auto-dismiss": false,
        "filter-node-name": "flt"}),
    );
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("query-jobs", json!({}));
    talk.ask("job-pause", json!({"id": "j"}));
    talk.ask("job-complete", json!({"id": "j"}));
    talk.ask("job-finalize", json!({"id": "j"}));
    talk.ask("query-jobs", json!({}));
    talk.ask("job-dismiss", json!({"id": "j"}));
    talk.until("j null");
    talk.look_at_nodes();
    // By its node, with another name.
    stream(talk, json!({"base-node": "base", "backing-file": "base"}));
    talk.until("j null");
    talk.look_at_nodes();
    // What is left.
    stream(talk, json!({"speed": 1 << 30}));
    talk.until("j null");
    talk.look_at_nodes();
    stream(talk, json!({}));
    talk.until("j null");
    talk.del(&["top", "high", "low", "base"]);
}

/// Ours says of a name what it says of it elsewhere.
fn comparable(reply: Value) -> Value {
    let text = reply.to_string().replace("Could not create node: ", "");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn j26_j87_j89_streams_say_what_those_of_qemu_say() {
    let places = on_both(&IMAGES, script, comparable);
    let expected = {
        let place = Place::new();
        make_chain(&place, &IMAGES);
        content(&place, "top")
    };
    for place in &places {
        assert_eq!(backing(place, "top"), (Value::Null, Value::Null));
        check(place, "top");
        assert!(content(place, "top") == expected);
    }
}
