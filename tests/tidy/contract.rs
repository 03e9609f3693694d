//! `docs/contract.md` against the tests in the tree: what it claims is tested, and what is tested
//! it lists.

use std::collections::{BTreeMap, BTreeSet};

use crate::rust;
use crate::tree::{demand, files_ending, paths, read};

const TABLE: &str = "docs/contract.md";
const LINES: u32 = 95;

/// What a line's state may be.
const KEPT: [&str; 2] = ["kept", "better"];
/// A line that the contract skips is `reserved`.
const OPEN: [&str; 2] = ["not built yet", "reserved"];

/// One line of the table.
struct Row {
    number: u32,
    state: String,
    /// Files, each with test functions, or with `compile_fail` for documentation tests.
    tests: Vec<(String, Vec<String>)>,
}

/// Rows look like `` | 13 | words | kept | `path`: `c13_one`, `c13_two`; `path`: `c13_three` | ``.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for line in read(TABLE).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Some(number) = cells.get(1).and_then(|cell| cell.parse().ok()) else { continue };
        assert_eq!(cells.len(), 6, "{TABLE}: {line}");
        let mut tests: Vec<(String, Vec<String>)> = Vec::new();
        for word in cells[4].split('`').skip(1).step_by(2) {
            match tests.last_mut() {
                _ if word.contains('/') => tests.push((word.to_owned(), Vec::new())),
                Some((_, functions)) => functions.push(word.to_owned()),
                None => panic!("{TABLE}: line {number} names a test without its file"),
            }
        }
        rows.push(Row { number, state: cells[3].to_owned(), tests });
    }
    rows
}

/// The functions named after contract lines, by file.
fn tests_in_the_tree() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files_ending(".rs") {
        let code = rust::code_only(&file.text);
        for function in rust::functions(&code) {
            if line_of(&function.name).is_some() {
                found.entry(file.path.clone()).or_default().insert(function.name);
            }
        }
    }
    found
}

/// `c13_queued_wakeups` is about line 13.
fn line_of(function: &str) -> Option<u32> {
    let (number, rest) = function.strip_prefix('c')?.split_once('_')?;
    (number.len() >= 2 && !rest.is_empty()).then(|| number.parse().ok()).flatten()
}

#[test]
fn every_line_is_listed_once() {
    let numbers: Vec<u32> = rows().iter().map(|row| row.number).collect();
    let expected: Vec<u32> = (1..=LINES).collect();
    assert_eq!(numbers, expected, "the lines in {TABLE}");
}

#[test]
fn every_claim_has_its_test() {
    let in_the_tree = tests_in_the_tree();
    let all = paths();
    let mut faults = Vec::new();
    for row in rows() {
        let number = row.number;
        let claimed = KEPT.contains(&row.state.as_str());
        if !claimed && !OPEN.contains(&row.state.as_str()) {
            faults.push(format!("line {number}: unknown state '{}'", row.state));
        }
        if claimed && row.tests.iter().all(|(_, functions)| functions.is_empty()) {
            faults.push(format!("line {number}: {} without a test", row.state));
        }
        for (path, functions) in &row.tests {
            if !all.contains(path) {
                faults.push(format!("line {number}: there is no {path}"));
                continue;
            }
            for function in functions {
                let there = if function == "compile_fail" {
                    read(path).contains("```compile_fail")
                } else {
                    line_of(function) == Some(number)
                        && in_the_tree.get(path).is_some_and(|tests| tests.contains(function))
                };
                if !there {
                    faults.push(format!("line {number}: no {function} in {path}"));
                }
            }
        }
    }
    demand("claims without a test", &faults);
}

#[test]
fn every_contract_test_is_listed() {
    let rows = rows();
    let mut faults = Vec::new();
    for (path, functions) in tests_in_the_tree() {
        for function in functions {
            let listed = rows.iter().any(|row| {
                row.tests.iter().any(|(file, tests)| *file == path && tests.contains(&function))
            });
            if !listed {
                faults.push(format!("{path}: {function}"));
            }
        }
    }
    demand(&format!("tests that {TABLE} does not list"), &faults);
}

#[test]
fn references_are_to_lines_of_the_contract() {
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        for (number, line) in file.text.lines().enumerate() {
            let Some((before, cited)) = line.split_once("contract: C") else { continue };
            if !before.contains("//") {
                continue;
            }
            let digits: String = cited.chars().take_while(char::is_ascii_digit).collect();
            if !digits.parse().is_ok_and(|line: u32| (1..=LINES).contains(&line)) {
                faults.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    demand("references to no line of the contract", &faults);
}
