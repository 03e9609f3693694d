//! Links in Markdown files lead somewhere.

use crate::tree::{demand, files_ending, paths, read};

#[test]
fn links_resolve() {
    let all = paths();
    let mut faults = Vec::new();
    for file in files_ending(".md") {
        for (line, target) in links(&file.text) {
            let elsewhere = ["https:", "http:", "mailto:"];
            if elsewhere.iter().any(|scheme| target.starts_with(scheme)) {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() { file.path.clone() } else { join(&file.path, path) };
            let folder = format!("{}/", path.trim_end_matches('/'));
            let there = all.contains(&path) || all.iter().any(|it| it.starts_with(&folder));
            let anchored =
                anchor.is_empty() || there && anchors(&read(&path)).contains(&anchor.to_owned());
            if !there || !anchored {
                faults.push(format!("{}:{line}: {target}", file.path));
            }
        }
    }
    demand("links that lead nowhere", &faults);
}

/// Merges of branches put entries back that have been merged into others.
#[test]
fn changes_are_listed_once() {
    let text = read("CHANGELOG.md");
    let newest = text.split("\n## ").nth(1).expect("a version");
    let heads = || newest.lines().filter(|line| line.starts_with("- ") || line.starts_with("### "));
    let again = |head: &str| heads().filter(|other| *other == head).count() > 1;
    let faults: Vec<String> = heads().filter(|head| again(head)).map(str::to_owned).collect();
    demand("CHANGELOG.md says it twice", &faults);
}

/// `target` as seen from the file at `from`, both from the root.
fn join(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Lines of prose, with their numbers: fenced code is left out.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((number + 1, line))
    })
}

/// The targets of `[text](target)` and `[text]: target`, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            if let Some(target) = line[at + 2..].split([')', ' ']).next() {
                found.push((number, target.to_owned()));
            }
        }
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]: ")
        {
            found.push((number, target.trim().to_owned()));
        }
    }
    found
}

/// A line without what stands between backticks.
pub fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// What headings can be linked to by, as the usual viewers name them.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then(|| title.trim().to_lowercase())
    });
    let slug = |title: String| {
        let kept = title.chars().filter(|it| it.is_alphanumeric() || " -_".contains(*it));
        kept.map(|it| if it == ' ' { '-' } else { it }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn links_are_found() {
    let text = "# A `b` c!\n[x](y.md#z) `[no](t)`\n```\n[no](u)\n```\n[r]: ../v w\n";
    let found: Vec<String> = links(text).into_iter().map(|(_, target)| target).collect();
    assert_eq!(found, ["y.md#z", "../v w"]);
    assert_eq!(anchors(text), ["a-b-c"]);
    assert_eq!(join("docs/a.md", "../crates/x/"), "crates/x");
}
