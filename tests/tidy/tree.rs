//! The files of the project.

use std::fs;
use std::path::{Path, PathBuf};

/// One text file: its path from the root, and what it holds.
pub struct TextFile {
    pub path: String,
    pub text: String,
}

/// The project's top directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the root").to_owned()
}

/// All files, but for git's own and what a build makes. Paths from the root, sorted.
pub fn paths() -> Vec<String> {
    let mut found = Vec::new();
    walk(&root(), "", &mut found);
    found.sort();
    found
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("a directory entry");
        let name = entry.file_name().into_string().expect("file names are UTF-8");
        let path = format!("{prefix}{name}");
        if path == ".git" || path == "target" {
            continue;
        }
        if entry.file_type().expect("a file type").is_dir() {
            walk(&entry.path(), &format!("{path}/"), found);
        } else {
            found.push(path);
        }
    }
}

/// All text files.
pub fn text_files() -> Vec<TextFile> {
    paths().into_iter().map(|path| TextFile { text: read(&path), path }).collect()
}

/// All text files with this ending.
pub fn files_ending(ending: &str) -> Vec<TextFile> {
    text_files().into_iter().filter(|file| file.path.ends_with(ending)).collect()
}

/// A file of the tree, which holds nothing but text.
pub fn read(path: &str) -> String {
    match fs::read_to_string(root().join(path)) {
        Ok(text) => text,
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Fails with all faults at once, one a line.
#[track_caller]
pub fn demand(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n  {}\n", faults.join("\n  "));
}
