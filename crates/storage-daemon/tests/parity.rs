//! What QEMU's daemon has by name, and is not here, is in a table of the manual: all of it, and nothing else.

mod util;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Stdio};

use coblk_tests::tools;
use rustix::process::Signal;
use serde_json::{Value, json};
use util::Place;
use util::qmp::Client;

/// Names by what they are of.
type Names = BTreeMap<String, BTreeSet<String>>;

const MONITOR: &str =
    "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor chardev=c0";

/// The names that are kept of QEMU's daemon: those of the newest version that is kept.
fn kept() -> Names {
    read(include_str!("peer/names-10.0.txt"))
}

/// The names that are kept of one version.
fn kept_of(version: &str) -> Names {
    match version {
        "10.0" => kept(),
        "7.2" => read(include_str!("peer/names-7.2.txt")),
        _ => Names::new(),
    }
}

fn read(text: &str) -> Names {
    let (mut names, mut kind) = (Names::new(), String::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some(next) => kind = next.to_owned(),
            None => {
                let words = line.split_whitespace().map(str::to_owned);
                names.entry(kind.clone()).or_default().extend(words);
            }
        }
    }
    names.remove("");
    names
}

/// `query-qmp-schema`, to be asked.
struct Schema(Vec<Value>);

impl Schema {
    fn of(qmp: &mut Client) -> Schema {
        Schema(qmp.run("query-qmp-schema", json!({})).as_array().unwrap().clone())
    }

    fn find(&self, name: &str, kinds: &[&str]) -> &Value {
        let is_it = |info: &&Value| {
            info["name"] == name && kinds.contains(&info["meta-type"].as_str().unwrap())
        };
        self.0.iter().find(is_it).unwrap_or_else(|| panic!("{name}"))
    }

    /// A type, by the name that others have for it.
    fn named(&self, name: &Value) -> &Value {
        self.find(name.as_str().unwrap(), &["object", "array", "enum", "alternate", "builtin"])
    }

    fn called(&self, kind: &str) -> BTreeSet<String> {
        let entities = self.0.iter().filter(|info| info["meta-type"] == kind);
        entities.map(|info| text(&info["name"])).collect()
    }

    fn arguments(&self, command: &str) -> &Value {
        let command = self.find(command, &["command"]);
        self.find(command["arg-type"].as_str().unwrap(), &["object"])
    }

    /// The type of a member.
    fn member<'a>(&'a self, object: &Value, name: &str) -> &'a Value {
        let members = object["members"].as_array().unwrap();
        let member = members.iter().find(|member| member["name"] == name).unwrap();
        self.find(member["type"].as_str().unwrap(), &["object", "array", "enum", "alternate"])
    }

    /// What the member can be that says which kind it is: QEMU has no variant where it adds nothing.
    fn words(&self, object: &Value) -> BTreeSet<String> {
        let words = self.member(object, object["tag"].as_str().unwrap());
        words["values"].as_array().unwrap().iter().map(text).collect()
    }

    fn variant<'a>(&'a self, object: &Value, word: &str) -> Option<&'a Value> {
        let variants = object["variants"].as_array().unwrap();
        let variant = variants.iter().find(|variant| variant["case"] == word)?;
        Some(self.find(variant["type"].as_str().unwrap(), &["object"]))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn members(object: &Value) -> BTreeSet<String> {
    object["members"].as_array().unwrap().iter().map(|member| text(&member["name"])).collect()
}

/// The words that members can be.
fn put_words(names: &mut Names, schema: &Schema, kind: &str, object: &Value) {
    for member in object["members"].as_array().unwrap() {
        let (name, mut info) = (text(&member["name"]), schema.named(&member["type"]));
        if info["meta-type"] == "array" {
            info = schema.named(&info["element-type"]);
        }
        // The tag's words are names of kinds.
        if info["meta-type"] == "enum" && object.get("tag") != member.get("name") {
            let words = info["values"].as_array().unwrap().iter().map(text).collect();
            names.insert(format!("words of {name} of {kind}"), words);
        }
    }
}

/// The names that a daemon has, of the same kinds as those that are kept.
fn names_of(qmp: &mut Client, help: &str) -> Names {
    let schema = Schema::of(qmp);
    let mut names = Names::new();
    let mut put = |kind: &str, found: BTreeSet<String>| _ = names.insert(kind.to_owned(), found);
    let words = help.split(|it: char| !it.is_ascii_alphanumeric() && it != '-');
    let options = words.filter_map(|word| word.strip_prefix("--"));
    let is_option = |word: &&str| word.starts_with(|it: char| it.is_ascii_lowercase());
    put("options of the command line", options.filter(is_option).map(str::to_owned).collect());
    put("commands", schema.called("command"));
    let listed = qmp.run("query-commands", json!({}));
    let listed: BTreeSet<String> =
        listed.as_array().unwrap().iter().map(|it| text(&it["name"])).collect();
    assert_eq!(listed, schema.called("command"));
    put("events", schema.called("event"));
    let types = qmp.run("qom-list-types", json!({"implements": "user-creatable"}));
    put("objects", types.as_array().unwrap().iter().map(|it| text(&it["name"])).collect());
    let nodes = schema.arguments("blockdev-add");
    put("drivers", schema.words(nodes));
    put("options of all nodes", members(nodes));
    let exports = schema.arguments("block-export-add");
    put("exports", schema.words(exports));
    put("options of all exports", members(exports));
    let objects = schema.arguments("object-add");
    let server = schema.arguments("nbd-server-start");
    put("options of --nbd-server", members(server));
    let address = schema.member(server, "addr");
    let kinds = schema.member(address, "type");
    put("addresses", kinds["values"].as_array().unwrap().iter().map(text).collect());
    for kind in kept().keys() {
        for (what, object) in [("driver", nodes), ("export", exports), ("object", objects)] {
            let word = kind.strip_prefix(&format!("options of {what} "));
            if let Some(variant) = word.and_then(|word| schema.variant(object, word)) {
                names.insert(kind.clone(), members(variant));
                let kind = kind.strip_prefix("options of ").unwrap();
                put_words(&mut names, &schema, kind, variant);
            }
        }
    }
    let debug = schema.variant(nodes, "blkdebug").unwrap();
    let rules = schema.member(debug, "inject-error");
    let rule = schema.find(rules["element-type"].as_str().unwrap(), &["object"]);
    names.insert("options of inject-error".to_owned(), members(rule));
    put_words(&mut names, &schema, "inject-error", rule);
    put_words(&mut names, &schema, "all nodes", nodes);
    put_words(&mut names, &schema, "all exports", exports);
    names
}

/// The table of the manual.
fn missing_by_the_manual() -> Names {
    let manual = include_str!("../../../docs/storage-daemon.md");
    let (_, section) = manual.split_once("\n## What is missing\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let row = |row: &str| {
        let (kind, names) = row.trim_matches('|').split_once('|').unwrap();
        let names = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (kind.replace('`', "").trim().to_owned(), names)
    };
    rows.map(row).collect()
}

#[test]
fn what_is_missing_is_in_the_manual() {
    let place = Place::new();
    let daemon = place.start(MONITOR);
    let mut qmp = Client::new(&place.path("qmp.sock"));
    let help = String::from_utf8(place.output("--help").stdout).unwrap();
    let here = names_of(&mut qmp, &help);
    daemon.stop(Signal::TERM);
    let mut missing = Names::new();
    for (kind, theirs) in kept() {
        let ours = here.get(&kind).cloned().unwrap_or_default();
        let left: BTreeSet<String> = theirs.difference(&ours).cloned().collect();
        if !left.is_empty() {
            missing.insert(kind, left);
        }
    }
    let table = |names: &Names| -> Vec<String> {
        let names = names.iter().map(|(kind, names)| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("| {kind} | {} |", names.join(", "))
        });
        names.collect()
    };
    let (found, told) = (table(&missing), table(&missing_by_the_manual()));
    assert!(
        found == told,
        "the table is to be:\n{}\nand not:\n{}",
        found.join("\n"),
        told.join("\n")
    );
}

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself, and then the test has failed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_names_that_are_kept_are_those_of_the_peer() {
    let place = Place::new();
    let mut command = tools::command("qemu-storage-daemon");
    command.args(place.fill_in(MONITOR).split(' ')).stdin(Stdio::null());
    let _qemu = Qemu(command.spawn().expect("qemu-storage-daemon: install qemu-system-common"));
    let mut qmp = Client::of_peer(&place.path("qmp.sock"));
    let version = qmp.run("query-version", json!({}))["qemu"].clone();
    let version = format!("{}.{}", version["major"], version["minor"]);
    let theirs = names_of(&mut qmp, &tools::run("qemu-storage-daemon", ["--help"]));
    assert!(
        kept_of(&version) == theirs,
        "peer/names-{version}.txt is not what the peer has, which is:\n{}",
        written(&theirs)
    );
}

/// What a file of names says.
fn written(names: &Names) -> String {
    let kind = |(kind, names): (&String, &BTreeSet<String>)| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        format!("[{kind}]\n{}\n", names.join(" "))
    };
    names.iter().map(kind).collect()
}
