//! Comments name the actor by its noun: the waker, the caller, the client.

use crate::tree::{demand, files_ending};

/// Words that make a reader guess what acts.
const RIDDLES: [&str; 9] =
    ["nobody", "somebody", "whoever", "whomever", "whom", "he", "him", "himself", "his"];

/// How many there may still be below a folder. A ratchet: it only goes down.
const LEFT: [(&str, usize); 14] = [
    ("crates/aio/", 0),
    ("crates/bench/", 0),
    ("crates/block/", 29),
    ("crates/coblk/", 0),
    ("crates/coroutine/", 0),
    ("crates/export/", 0),
    ("crates/nbd/", 0),
    ("crates/qapi/", 0),
    ("crates/qmp/", 0),
    ("crates/storage-daemon/", 0),
    ("crates/vhost-user-blk/", 0),
    ("crates/virtio-blk/", 0),
    ("examples/", 7),
    ("tests/", 21),
];

#[test]
fn comments_name_the_actor() {
    let mut places = vec![Vec::new(); LEFT.len()];
    for file in files_ending(".rs") {
        let Some(of) = LEFT.iter().position(|(dir, _)| file.path.starts_with(dir)) else {
            panic!("{} lies in no folder of the table", file.path);
        };
        for (number, line) in file.text.lines().enumerate() {
            let words = comment(line).split(|it: char| !it.is_alphanumeric());
            for word in words.filter(|word| RIDDLES.contains(&word.to_lowercase().as_str())) {
                places[of].push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    let over = LEFT.iter().zip(&places).filter(|((_, left), places)| places.len() > *left);
    let faults: Vec<String> = over.flat_map(|(_, places)| places.clone()).collect();
    demand("name the actor by its noun", &faults);
    let slack = LEFT.iter().zip(&places).filter(|((_, left), places)| places.len() < *left);
    let slack: Vec<String> =
        slack.map(|((dir, _), places)| format!("{dir} has {}", places.len())).collect();
    demand("the ratchet can go down", &slack);
}

/// What a line says in its comment.
fn comment(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") { line } else { line.split_once(" // ").map_or("", |(_, text)| text) }
}

#[test]
fn comments_are_found() {
    assert_eq!(comment("    /// He."), "/// He.");
    assert_eq!(comment("let x = 1; // he"), "he");
    assert_eq!(comment("let he = \"//x\";"), "");
}
