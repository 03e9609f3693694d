//! Lengths, unfinished code, white space, and paths of one machine.

use crate::rust;
use crate::tree::{demand, files_ending, text_files};

/// Lines of a source file.
const MAX_FILE_LINES: usize = 500;
/// Files that are longer, and how long they may be until they are split.
const LONGER_FILES: [(&str, usize); 0] = [];
/// Lines of a function.
const MAX_FUNCTION_LINES: usize = 70;
/// Functions that are longer, and how long they may be until they are split.
const LONGER_FUNCTIONS: [(&str, usize); 1] = [("hot_paths_allocate_nothing_in_steady_state", 81)];
/// Columns of a line of code or prose; licence texts and tables are as wide as they are.
const MAX_COLUMNS: usize = 120;

#[test]
fn files_are_short() {
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        let lines = file.text.lines().count();
        let longer = LONGER_FILES.iter().find(|(path, _)| *path == file.path);
        if lines > longer.map_or(MAX_FILE_LINES, |(_, limit)| *limit) {
            faults.push(format!("{}: {lines} lines", file.path));
        }
    }
    demand("files too long; is there a second idea in them?", &faults);
}

#[test]
fn functions_are_short() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for file in files_ending(".rs") {
        for function in rust::functions(&rust::code_only(&file.text)) {
            seen += 1;
            let longer = LONGER_FUNCTIONS.iter().find(|(name, _)| *name == function.name);
            if function.lines > longer.map_or(MAX_FUNCTION_LINES, |(_, limit)| *limit) {
                let (path, line, name) = (&file.path, function.line, &function.name);
                faults.push(format!("{path}:{line}: {name} has {} lines", function.lines));
            }
        }
    }
    assert!(seen > 100, "functions were not found: {seen}");
    demand("functions too long", &faults);
}

#[test]
fn nothing_is_left_unfinished() {
    let forbidden = ["todo", "unimplemented", "dbg"];
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        let code = rust::code_only(&file.text);
        for (at, word) in rust::words(&code) {
            if forbidden.contains(&word) && code[at + word.len()..].starts_with('!') {
                let line = code[..at].matches('\n').count() + 1;
                faults.push(format!("{}:{line}: {word}!", file.path));
            }
        }
        for (number, line) in code.lines().enumerate() {
            if line.trim_start().starts_with("#[ignore]") {
                faults.push(format!("{}:{}: ignored without a reason", file.path, number + 1));
            }
        }
    }
    demand("unfinished code", &faults);
}

#[test]
fn lines_are_clean() {
    let mut faults = Vec::new();
    for file in text_files() {
        let path = &file.path;
        if !file.text.is_empty() && !file.text.ends_with('\n') {
            faults.push(format!("{path}: the last line does not end"));
        }
        if file.text.ends_with("\n\n") {
            faults.push(format!("{path}: empty lines at the end"));
        }
        for (number, line) in file.text.split('\n').enumerate() {
            let number = number + 1;
            if line.ends_with([' ', '\t', '\r']) {
                faults.push(format!("{path}:{number}: white space at the end of the line"));
            }
            let indented = line.trim_start_matches(' ');
            if path.ends_with(".rs") && indented.starts_with('\t') {
                faults.push(format!("{path}:{number}: indented with a tab"));
            }
            if path.ends_with(".rs") && line.chars().count() > MAX_COLUMNS {
                faults.push(format!("{path}:{number}: more than {MAX_COLUMNS} columns"));
            }
        }
    }
    demand("lines to clean", &faults);
}

/// Folders at the root of every Linux system, of which a file may name a place.
const SYSTEM: [&str; 13] =
    ["bin", "boot", "dev", "etc", "lib", "mnt", "proc", "run", "sbin", "sys", "tmp", "usr", "var"];
/// First parts of paths that exist nowhere, for examples and for tests of what is refused; `objects` is
/// where QMP has them.
const NOWHERE: [&str; 8] =
    ["disk.img", "folder", "none", "nonexistent", "nowhere", "objects", "srv", "x"];

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let mut faults = Vec::new();
    for file in text_files() {
        for (number, line) in file.text.lines().enumerate() {
            for path in absolute_paths(line) {
                let top = path.split('/').nth(1).unwrap_or_default();
                if !SYSTEM.contains(&top) && !NOWHERE.contains(&top) {
                    faults.push(format!("{}:{}: {path}", file.path, number + 1));
                }
            }
        }
    }
    demand("paths that exist on one machine only", &faults);
}

/// What looks like an absolute path of at least two parts.
fn absolute_paths(line: &str) -> Vec<&str> {
    let part = |it: char| it.is_ascii_alphanumeric() || "._-".contains(it);
    let begins = line.match_indices('/').filter(|(at, _)| begins_a_path(line, *at));
    let paths = begins.map(|(at, _)| {
        let rest = &line[at..];
        &rest[..rest.find(|it| it != '/' && !part(it)).unwrap_or(rest.len())]
    });
    paths
        .filter(|path| {
            let mut parts = path[1..].split('/');
            let first = parts.next().unwrap_or_default();
            first.starts_with(|it: char| it.is_ascii_lowercase())
                && parts.next().is_some_and(|second| !second.is_empty())
        })
        .collect()
}

/// Whether the slash at `at` is the first of its path.
fn begins_a_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    before.is_none_or(|it| !(it.is_alphanumeric() || "._-}/~)]>*:$".contains(it)))
}

#[test]
fn absolute_paths_are_found() {
    let line = "a/b /x/d \"/x/f.rs\" //g/h ../i/j ~/k/l https://m/n and/or /o (/x/q) /R/s";
    assert_eq!(absolute_paths(line), ["/x/d", "/x/f.rs", "/x/q"]);
}
