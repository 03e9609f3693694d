//! `block-commit`. The same script runs on this daemon and on QEMU's.

mod util;

use serde_json::{Value, json};
use util::Place;
use util::chain_script::{Talk, backing, check, content, make_chain, on_both};

const IMAGES: [&str; 5] = ["base", "low", "mid", "high", "top"];

fn commit(talk: &mut Talk<'_>, more: Value) {
    let mut arguments = json!({"job-id": "j", "device": "top"});
    for (name, value) in more.as_object().unwrap() {
        arguments[name] = value.clone();
    }
    talk.ask("block-commit", arguments);
}

fn refusals(talk: &mut Talk<'_>) {
    for wrong in [
        json!({"job-id": ""}),
        json!({"device": "nowhere"}),
        json!({"device": "nowhere", "top": "a", "top-node": "b"}),
        json!({"device": "low"}),
        json!({"top": "low", "top-node": "low"}),
        json!({"base": "low", "base-node": "low"}),
        json!({"top": "nowhere"}),
        json!({"top-node": "nowhere"}),
        json!({"top-node": "top-file"}),
        json!({"base": "nowhere"}),
        json!({"base-node": "nowhere"}),
        json!({"top-node": "low", "base-node": "high"}),
        json!({"top-node": "low", "base-node": "low"}),
        json!({"top-node": "base"}),
        json!({"base-node": "low", "backing-file": "x"}),
        json!({"top-node": "low", "speed": -1}),
        json!({"speed": -1}),
        json!({"filter-node-name": "low"}),
        json!({"top-node": "low", "filter-node-name": "low"}),
    ] {
        commit(talk, wrong);
    }
}

fn script(talk: &mut Talk<'_>) {
    talk.add_chain(&IMAGES);
    refusals(talk);
    talk.look_at_nodes();
    // Between, by the names of files, with all of the states.
    let [base, top] = [talk.place.path("low"), talk.place.path("mid")];
    commit(
        talk,
        json!({"base": base, "top": top, "auto-finalize": false, "auto-dismiss": false,
        "filter-node-name": "flt"}),
    );
    talk.until("BLOCK_JOB_PENDING");
    talk.ask("query-jobs", json!({}));
    talk.ask("job-complete", json!({"id": "j"}));
    talk.ask("job-finalize", json!({"id": "j"}));
    talk.ask("query-jobs", json!({}));
    talk.ask("job-dismiss", json!({"id": "j"}));
    talk.until("j null");
    talk.look_at_nodes();
    // By nodes, with another name.
    commit(talk, json!({"base-node": "base", "top-node": "low", "backing-file": "base"}));
    talk.until("j null");
    talk.look_at_nodes();
    // What guests write to: softly cancelled, by force, and then for good.
    for force in [false, true] {
        commit(talk, json!({}));
        talk.until("BLOCK_JOB_READY");
        talk.ask("block-job-cancel", json!({"device": "j", "force": force}));
        talk.until("j null");
        talk.look_at_nodes();
    }
    commit(talk, json!({"base-node": "base"}));
    talk.until("BLOCK_JOB_READY");
    talk.ask("query-jobs", json!({}));
    talk.ask("block-job-change", json!({"id": "j", "type": "mirror", "copy-mode": "background"}));
    talk.ask("job-complete", json!({"id": "j"}));
    talk.until("j null");
    talk.look_at_nodes();
    talk.del(&["top", "high", "mid", "low", "base"]);
}

#[test]
fn j26_j91_j92_j93_commits_say_what_those_of_qemu_say() {
    let places = on_both(&IMAGES, script, |reply| reply);
    let expected = {
        let place = Place::new();
        make_chain(&place, &IMAGES);
        content(&place, "top")
    };
    for place in &places {
        check(place, "base");
        assert!(content(place, "base") == expected);
        assert_eq!(backing(place, "top"), (json!("high"), json!("qcow2")));
        assert_eq!(backing(place, "high"), (json!("base"), json!("qcow2")));
    }
}
