//! Comments name the actor by its noun: the waker, the caller, the client.

use crate::tree::{demand, files_ending};

/// Words that make a reader guess what acts.
const RIDDLES: [&str; 9] =
    ["nobody", "somebody", "whoever", "whomever", "whom", "he", "him", "himself", "his"];

#[test]
fn comments_name_the_actor() {
    let mut places = Vec::new();
    for file in files_ending(".rs") {
        for (number, line) in file.text.lines().enumerate() {
            let words = comment(line).split(|it: char| !it.is_alphanumeric());
            for word in words.filter(|word| RIDDLES.contains(&word.to_lowercase().as_str())) {
                places.push(format!("{}:{}: {word}", file.path, number + 1));
            }
        }
    }
    demand("name the actor by its noun", &places);
}

/// What a line says in its comment.
fn comment(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") { line } else { line.split_once(" // ").map_or("", |(_, text)| text) }
}

#[test]
fn comments_are_found() {
    assert_eq!(comment("    /// A word."), "/// A word.");
    assert_eq!(comment("let x = 1; // word"), "word");
    assert_eq!(comment("let word = \"//x\";"), "");
}
