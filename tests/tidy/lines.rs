//! The pages of contracts that number their lines against the tests in the tree: a page's table lists each test
//! that is named after one of its lines, and no others.

use std::collections::BTreeSet;

use crate::rust;
use crate::tree::{demand, files_ending, read};

/// Pages, and the letter before the numbers of their lines in names of tests.
const PAGES: [(&str, char); 2] = [("docs/qcow2.md", 'q'), ("docs/jobs.md", 'j')];

/// A line, a file, and a test there.
type Listed = BTreeSet<(u32, String, String)>;

/// Rows look like `` | 13 | words | `path`: `q13_one`, `q13_q14_two`; `path`: `q13_three` | ``.
fn listed(page: &str) -> Listed {
    let mut listed = Listed::new();
    for line in read(page).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(number) = cells.get(1).and_then(|cell| cell.parse().ok()) else { continue };
        assert_eq!(cells.len(), 5, "{page}: {line}");
        let mut path = "";
        for word in cells[3].split('`').skip(1).step_by(2) {
            match word.contains('/') {
                true => path = word,
                false => drop(listed.insert((number, path.to_owned(), word.to_owned()))),
            }
        }
    }
    listed
}

/// The lines that a test is about: `q13_q14_fields` is about 13 and 14 of the page with `q`.
fn lines_of(function: &str, letter: char) -> Vec<u32> {
    let numbers = function.split('_').map_while(|word| word.strip_prefix(letter)?.parse().ok());
    numbers.collect()
}

fn in_the_tree(letter: char) -> Listed {
    let mut found = Listed::new();
    for file in files_ending(".rs") {
        for function in rust::functions(&rust::code_only(&file.text)) {
            for line in lines_of(&function.name, letter) {
                found.insert((line, file.path.clone(), function.name.clone()));
            }
        }
    }
    found
}

#[test]
fn lines_and_their_tests_are_listed() {
    for (page, letter) in PAGES {
        let (listed, found) = (listed(page), in_the_tree(letter));
        let words = |list: &Listed, other: &Listed| -> Vec<String> {
            let missing = list.difference(other);
            missing.map(|(line, path, test)| format!("{line}: {path}: {test}")).collect()
        };
        demand(
            &format!("tests that {page} lists, and that are not there"),
            &words(&listed, &found),
        );
        demand(&format!("tests that {page} does not list"), &words(&found, &listed));
    }
}

#[test]
fn tests_have_the_numbers_of_lines() {
    assert_eq!(lines_of("q2_q14_fields_are_read", 'q'), [2, 14]);
    assert!(lines_of("quiesce_ends", 'q').is_empty() && lines_of("queue", 'q').is_empty());
    assert!(lines_of("job_ends", 'j').is_empty() && lines_of("q2_fields", 'j').is_empty());
}
