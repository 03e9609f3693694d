//! `docs/jobs.md` against the tests in the tree, as [`qcow2`](super::qcow2) does for its page: its table lists each
//! test that is named after a line of the contract of jobs, and no others.

use std::collections::BTreeSet;

use crate::rust;
use crate::tree::{demand, files_ending, read};

const TABLE: &str = "docs/jobs.md";

/// A line, a file, and a test there.
type Listed = BTreeSet<(u32, String, String)>;

/// Rows look like `` | 13 | words | `path`: `j13_one`, `j13_j14_two`; `path`: `j13_three` | ``.
fn listed() -> Listed {
    let mut listed = Listed::new();
    for line in read(TABLE).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(number) = cells.get(1).and_then(|cell| cell.parse().ok()) else { continue };
        assert_eq!(cells.len(), 5, "{TABLE}: {line}");
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

/// The lines that a test is about: `j13_j14_groups` is about 13 and 14.
fn lines_of(function: &str) -> Vec<u32> {
    let numbers = function.split('_').map_while(|word| word.strip_prefix('j')?.parse().ok());
    numbers.collect()
}

fn in_the_tree() -> Listed {
    let mut found = Listed::new();
    for file in files_ending(".rs") {
        for function in rust::functions(&rust::code_only(&file.text)) {
            for line in lines_of(&function.name) {
                found.insert((line, file.path.clone(), function.name.clone()));
            }
        }
    }
    found
}

#[test]
fn lines_of_jobs_and_their_tests_are_listed() {
    let (listed, found) = (listed(), in_the_tree());
    let words = |list: &Listed, other: &Listed| -> Vec<String> {
        list.difference(other).map(|(line, path, test)| format!("{line}: {path}: {test}")).collect()
    };
    demand("tests that docs/jobs.md lists, and that are not there", &words(&listed, &found));
    demand("tests that docs/jobs.md does not list", &words(&found, &listed));
}

#[test]
fn tests_have_the_numbers_of_lines() {
    assert_eq!(lines_of("j2_j14_groups_end"), [2, 14]);
    assert!(lines_of("job_ends").is_empty() && lines_of("join").is_empty());
}
