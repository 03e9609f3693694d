//! Imports point one way: between crates, and between the folders of a crate.
//!
//! A crate's modules stand in one list, from the ground up. A module may import those before it, and those
//! of its own group. A group of more than one is a knot: modules that need each other, and say so.

use std::collections::{BTreeMap, BTreeSet};

use crate::houses::{CRATES, HOUSES};
use crate::rust;
use crate::tree::{demand, files_ending, read};

#[test]
fn crates_depend_one_way() {
    let level = |name: &str| CRATES.iter().position(|group| group.contains(&name));
    let mut faults = Vec::new();
    for (at, group) in CRATES.iter().enumerate() {
        for name in *group {
            for dependency in dependencies(&read(&format!("crates/{name}/Cargo.toml"))) {
                match level(&dependency) {
                    Some(below) if below < at => {}
                    _ => faults.push(format!("{name} -> {dependency}")),
                }
            }
        }
    }
    demand("crates that depend on what is not below them", &faults);
}

/// Crates of this workspace that a manifest needs to build the library.
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[").find(|section| section.starts_with("dependencies]"));
    let lines = section.unwrap_or_default().lines();
    lines
        .filter_map(|line| {
            let name = line.split(['.', ' ', '=']).next()?;
            if name == "coblk" { Some("coblk") } else { name.strip_prefix("coblk-") }
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_crate_has_its_place() {
    let mut faults = Vec::new();
    for file in files_ending("Cargo.toml") {
        let Some(name) = file.path.strip_prefix("crates/") else { continue };
        let name = name.trim_end_matches("/Cargo.toml");
        if !CRATES.iter().any(|group| group.contains(&name)) {
            faults.push(name.to_owned());
        }
    }
    demand("crates without a place in the table", &faults);
}

#[test]
fn modules_import_one_way() {
    let mut faults = Vec::new();
    for (name, house) in HOUSES {
        let prefix = format!("crates/{name}/src/");
        let exports = exports(&read(&format!("{prefix}lib.rs")));
        let level = |module: &str| house.iter().position(|group| group.contains(&module));
        let mut seen = BTreeSet::new();
        for file in files_ending(".rs") {
            let Some(inside) = file.path.strip_prefix(&prefix) else { continue };
            let Some(module) = module_of(inside) else { continue };
            seen.insert(module.to_owned());
            let Some(own) = level(module) else {
                faults.push(format!("{}: '{module}' has no place in the table", file.path));
                continue;
            };
            let code = rust::code_only(&file.text);
            let depth = inside.trim_end_matches("/mod.rs").split('/').count();
            for word in imports(without_tests(&code), depth) {
                let target = exports.get(&word).unwrap_or(&word);
                if level(target).is_some_and(|theirs| theirs > own) {
                    faults.push(format!("{}: {module} -> {target}", file.path));
                }
            }
        }
        let listed = house.iter().flat_map(|group| group.iter());
        let gone = listed.filter(|module| !seen.contains(**module));
        faults.extend(gone.map(|module| format!("{name}: there is no '{module}' any more")));
    }
    faults.dedup();
    demand("imports that point up", &faults);
}

/// The top module that a file below `src` belongs to. Not the root, which sees all, and no tests.
fn module_of(path: &str) -> Option<&str> {
    let top = path.split('/').next().unwrap_or(path);
    let module = top.trim_end_matches(".rs");
    let tests = path.ends_with("/tests.rs") || path.contains("/tests/") || module == "models";
    (!["lib", "main", "tests"].contains(&module) && !tests).then_some(module)
}

/// Code before the unit tests at the foot, which may use anything.
fn without_tests(code: &str) -> &str {
    code.split_once("#[cfg(test)]").map_or(code, |(code, _)| code)
}

/// The first names behind `crate::`, and behind as many `super::` as lead to the root from a file that
/// is `depth` modules below it.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let root = format!("{}x", "super::".repeat(depth));
    let root = root.trim_end_matches('x');
    for start in ["crate::", root] {
        for (at, _) in code.match_indices(start) {
            // `$crate::`, and one `super::` of more or of fewer, lead elsewhere.
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if !(before.is_alphanumeric() || "_$:".contains(before)) {
                found.extend(first_names(&code[at + start.len()..]));
            }
        }
    }
    found
}

/// The names that a path, or a group of them in braces, begins with.
fn first_names(path: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut names, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b',' | b'}' if depth == 0 => {
                names.push(word(&group[begin..at]));
                begin = at + 1;
                if byte == b'}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

/// Names that the root takes from its modules, with their modules.
fn exports(root: &str) -> BTreeMap<String, String> {
    let code = rust::code_only(root);
    let mut exports = BTreeMap::new();
    for (at, _) in code.match_indices("use ") {
        let Some(end) = code[at..].find(';') else { continue };
        let path = code[at + "use ".len()..at + end].trim_start_matches("crate::");
        let Some((module, names)) = path.split_once("::") else { continue };
        for (_, name) in rust::words(names) {
            exports.insert(name.to_owned(), module.to_owned());
        }
    }
    exports
}

#[test]
fn imports_are_found() {
    let code = "use crate::{a::{B, c}, D};\nuse super::e::F; let x = crate::g::h; $crate::no::no";
    let found = imports(code, 1);
    assert_eq!(Vec::from_iter(found), ["D", "a", "e", "g"]);
    assert_eq!(Vec::from_iter(imports("super::super::y super::z", 2)), ["y"]);
    let exports = exports("mod a;\npub use a::{B, C as D};\npub use e::F;\n");
    assert_eq!(exports["B"], "a");
    assert_eq!((exports["D"].as_str(), exports["F"].as_str()), ("a", "e"));
    assert_eq!(
        dependencies("[package]\nx = 1\n[dependencies]\ncoblk-aio.workspace = true\nz = 1\n"),
        ["aio"]
    );
    assert_eq!(
        [module_of("lib.rs"), module_of("a/mod.rs"), module_of("b.rs")],
        [None, Some("a"), Some("b")]
    );
}
