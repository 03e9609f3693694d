//! What lies where: the top level, dead files, versions, fenced unsafe code.

use std::collections::BTreeSet;

use crate::rust;
use crate::tree::{demand, files_ending, paths, read};

/// What may be at the top, besides names that begin with a dot.
const TOP_LEVEL: [&str; 13] = [
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "crates",
    "docs",
    "examples",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "target",
    "tests",
];

/// Crates that may hold unsafe code, in the files that their documentation names.
const FENCED: [&str; 5] =
    ["crates/aio", "crates/bench", "crates/coroutine", "crates/rbd", "crates/vhost-user-blk"];

/// Test programs of crates without unsafe code that count allocations: only unsafe code can replace
/// the allocator.
const COUNT_ALLOCATIONS: [&str; 2] =
    ["crates/nbd/tests/allocations.rs", "crates/virtio-blk/tests/allocations.rs"];

/// Packages that are workspaces of their own, and take nothing from this one.
const APART: [&str; 5] = [
    "tests/fuzz/fuse",
    "tests/fuzz/nbd",
    "tests/fuzz/qcow2",
    "tests/fuzz/vhost-user",
    "tests/readers",
];

#[test]
fn the_top_level_is_tidy() {
    let mut faults = Vec::new();
    for path in paths() {
        let top = path.split('/').next().unwrap_or_default();
        if !top.starts_with('.') && !TOP_LEVEL.contains(&top) {
            faults.push(path);
        }
    }
    demand("not at home at the top level", &faults);
}

/// The directories of all packages, from the root.
fn packages() -> Vec<String> {
    let manifests = paths().into_iter().filter_map(|path| {
        path.strip_suffix("/Cargo.toml").map(str::to_owned) //
    });
    let packages: Vec<String> = manifests.collect();
    assert!(packages.len() >= 8, "packages were not found: {packages:?}");
    packages
}

#[test]
fn every_source_file_is_used() {
    let sources: BTreeSet<String> = files_ending(".rs").into_iter().map(|file| file.path).collect();
    let mut used = BTreeSet::new();
    let mut open: Vec<String> =
        packages().iter().flat_map(|package| roots(package, &sources)).collect();
    while let Some(path) = open.pop() {
        let (modules, is_root) = (modules_of(&path), !used.contains(&path));
        if is_root {
            used.insert(path.clone());
            open.extend(modules.into_iter().filter_map(|module| {
                candidates(&path, &module).into_iter().find(|it| sources.contains(it))
            }));
        }
    }
    let faults: Vec<String> = sources.difference(&used).cloned().collect();
    demand("source files that nothing refers to", &faults);
}

/// Files that cargo compiles by itself.
fn roots(package: &str, sources: &BTreeSet<String>) -> Vec<String> {
    let manifest = read(&format!("{package}/Cargo.toml"));
    let named = manifest.lines().filter_map(|line| {
        let path = line.trim().strip_prefix("path = \"")?.strip_suffix('"')?;
        Some(format!("{package}/{path}"))
    });
    let usual = ["src/lib.rs", "src/main.rs", "build.rs"].map(|path| format!("{package}/{path}"));
    let mut roots: Vec<String> = usual.into_iter().chain(named).collect();
    for (dir, switch) in [("tests", "autotests"), ("examples", "autoexamples"), ("src/bin", "")] {
        if !switch.is_empty() && manifest.contains(&format!("{switch} = false")) {
            continue;
        }
        let prefix = format!("{package}/{dir}/");
        let inside = |path: &&String| {
            path.strip_prefix(&prefix).is_some_and(|rest| {
                !rest.contains('/') || rest.ends_with("/main.rs") && rest.split('/').count() == 2
            })
        };
        roots.extend(sources.iter().filter(inside).cloned());
    }
    roots.retain(|path| sources.contains(path));
    roots
}

/// What `mod name;` says in a file.
fn modules_of(path: &str) -> Vec<String> {
    let text = read(path);
    let code = rust::code_only(&text);
    let mut modules = Vec::new();
    let mut previous = "";
    for (at, word) in rust::words(&code) {
        if previous == "mod" && code[at + word.len()..].trim_start().starts_with(';') {
            modules.push(word.to_owned());
        }
        previous = word;
    }
    modules
}

/// Where the module `name` of the file at `path` may be.
fn candidates(path: &str, name: &str) -> [String; 4] {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    [
        format!("{dir}/{stem}/{name}.rs"),
        format!("{dir}/{stem}/{name}/mod.rs"),
        format!("{dir}/{name}.rs"),
        format!("{dir}/{name}/mod.rs"),
    ]
}

#[test]
fn versions_are_in_the_root_manifest_alone() {
    let mut faults = Vec::new();
    for package in packages() {
        if APART.contains(&package.as_str()) {
            continue;
        }
        let path = format!("{package}/Cargo.toml");
        let mut section = String::new();
        for (number, line) in read(&path).lines().enumerate() {
            if line.starts_with('[') {
                section = line.trim_matches(['[', ']']).to_owned();
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let key = key.trim();
            let shared = key.ends_with(".workspace") || value.contains("workspace = true");
            let must_be_shared = if section.ends_with("dependencies") {
                true
            } else {
                section == "package"
                    && ["version", "edition", "rust-version", "license"].contains(&key)
            };
            if must_be_shared && !shared {
                faults.push(format!("{path}:{}: {line}", number + 1));
            }
        }
    }
    demand("to be taken from the workspace", &faults);
}

#[test]
fn every_package_takes_the_lints_of_the_workspace() {
    let without: Vec<String> = packages()
        .into_iter()
        .filter(|package| !APART.contains(&package.as_str()))
        .filter(|package| {
            !read(&format!("{package}/Cargo.toml")).contains("[lints]\nworkspace = true\n")
        })
        .collect();
    demand("packages without the lints of the workspace", &without);
}

#[test]
fn unsafe_code_is_fenced() {
    let mut faults = Vec::new();
    for package in packages() {
        let root = ["src/lib.rs", "src/main.rs"].map(|root| format!("{package}/{root}"));
        let root = root.into_iter().find(|root| paths().contains(root));
        let root = root.unwrap_or_else(|| panic!("{package} has no root module"));
        let text = read(&root);
        let code = rust::code_only(&text);
        if code.contains("#![forbid(unsafe_code)]") || rust::words(&code).next().is_none() {
            // Other files may be crates of their own, as examples are: the word is looked for.
            faults.extend(unsafe_outside(&format!("{package}/"), &[]));
            continue;
        }
        if !FENCED.contains(&package.as_str()) {
            faults.push(format!("{root}: does not say #![forbid(unsafe_code)]"));
            continue;
        }
        faults.extend(unsafe_outside(&format!("{package}/src/"), &fence(&text)));
    }
    demand("unsafe code outside its fence", &faults);
}

/// The files and folders that a crate's documentation names, as they are called below `src`.
fn fence(root: &str) -> Vec<String> {
    let docs: String =
        root.lines().filter(|line| line.starts_with("//!")).map(|line| &line[3..]).collect();
    let section = docs.to_lowercase().find("unsafe code").map_or("", |at| &docs[at..]);
    section.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Files below `dir` with unsafe code in them, but for those inside the fence.
fn unsafe_outside(dir: &str, fence: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    for file in files_ending(".rs") {
        let Some(inside) = file.path.strip_prefix(dir) else { continue };
        if COUNT_ALLOCATIONS.contains(&file.path.as_str()) {
            continue;
        }
        let name = inside.trim_end_matches(".rs");
        let fenced = fence.iter().any(|place| {
            let place = place.trim_end_matches('/').trim_end_matches(".rs");
            name == place || name.starts_with(&format!("{place}/"))
        });
        let code = rust::code_only(&file.text);
        if !fenced && rust::words(&code).any(|(_, word)| word == "unsafe") {
            faults.push(format!("{}: the crate's documentation does not name it", file.path));
        }
    }
    faults
}
