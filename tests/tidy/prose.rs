//! Comments and documents name the actor by its noun: the waker, the caller, the client.

use crate::docs::{prose, without_code};
use crate::tree::{demand, files_ending};

/// Words that make a reader guess what acts.
const RIDDLES: [&str; 9] =
    ["nobody", "somebody", "whoever", "whomever", "whom", "he", "him", "himself", "his"];

#[test]
fn comments_name_the_actor() {
    let mut places = Vec::new();
    for file in files_ending(".rs") {
        for (number, line) in file.text.lines().enumerate() {
            let words = riddles(comment(line));
            places.extend(words.map(|word| format!("{}:{}: {word}", file.path, number + 1)));
        }
    }
    demand("name the actor by its noun", &places);
}

#[test]
fn documents_name_the_actor() {
    let mut places = Vec::new();
    for file in files_ending(".md") {
        for (number, line) in prose(&file.text) {
            let words = without_code(line);
            places.extend(riddles(&words).map(|word| format!("{}:{number}: {word}", file.path)));
        }
    }
    demand("name the actor by its noun", &places);
}

/// The words of a text that are riddles.
fn riddles(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|it: char| !it.is_alphanumeric());
    words.filter(|word| RIDDLES.contains(&word.to_lowercase().as_str()))
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
