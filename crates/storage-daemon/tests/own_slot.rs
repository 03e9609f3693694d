//! A slot of an embedder's driver, as the daemon's users see it: in options, over QMP, in what is printed.

use std::ffi::OsString;
use std::io;
use std::process::{Command, ExitCode, Stdio};

use coblk::block::options::{DriverOptions, NodeRef, NodeRefOrNull};
use coblk::block::{
    BlockDriver, Child, ChildRole, ChildSlot, Driver, EdgeId, OpenError, Opening, ReadFlags,
    WriteFlags,
};
use coblk::{Co, IoVector, IoVectorMut};
use coblk_storage_daemon::daemon::Daemon;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use util::qmp::Client;
use util::{Place, stderr};

mod util;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct OverlayOptions {
    file: NodeRef,
    backing: Option<NodeRefOrNull>,
}

impl DriverOptions for OverlayOptions {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        visit("file", &mut self.file);
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        visit("backing", &mut self.backing);
    }
}

/// Reads its backing file, as long as there is one.
struct Overlay {
    file: Child,
    backing: ChildSlot,
}

impl Driver for Overlay {
    const NAMES: &'static [&'static str] = &["overlay"];
    type Options = OverlayOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &OverlayOptions) -> Result<Overlay, OpenError> {
        let backing = options.backing.as_ref().and_then(NodeRefOrNull::node);
        Ok(Overlay {
            file: opening.co_child("file", ChildRole::IMAGE, &options.file)?,
            backing: opening.co_slot("backing", ChildRole::COW, backing)?,
        })
    }
}

impl BlockDriver for Overlay {
    fn format_name(&self) -> &'static str {
        "overlay"
    }

    fn length(&self) -> u64 {
        self.file.length()
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id(), self.backing.id()]
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        match self.backing.get() {
            Some(backing) => backing.co_preadv(co, offset, target, flags),
            None => self.file.co_preadv(co, offset, target, flags),
        }
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.file.co_pwritev(co, offset, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
}

/// The arguments of the daemon, in a process that is to be one.
const ARGUMENTS: &str = "COBLK_OWN_SLOT";
/// What that process is called by.
const PROGRAM: &str = "the_program_with_the_driver";

#[test]
fn the_program_with_the_driver() {
    let Some(arguments) = std::env::var_os(ARGUMENTS) else { return };
    let arguments = arguments.into_string().unwrap();
    let words = ["overlay"].into_iter().chain(arguments.split_whitespace());
    let builder = Daemon::builder().driver::<Overlay>();
    let code = coblk_storage_daemon::run::main_with(builder, words.map(OsString::from));
    std::process::exit(i32::from(code != ExitCode::SUCCESS));
}

fn command(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", PROGRAM, "--nocapture"]).env(ARGUMENTS, place.fill_in(arguments));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

const LINE: &str = "--chardev socket,id=c0,path=@/qmp.sock,server=on,wait=off --monitor c0 \
    --blockdev null-co,node-name=base,size=1048576 --blockdev null-co,node-name=file,size=1048576 \
    --blockdev overlay,node-name=top,file=file,backing=base --pidfile @/pid";

fn reopen(client: &mut Client, backing: &Value) {
    let options =
        json!({"driver": "overlay", "node-name": "top", "file": "file", "backing": backing});
    client.run("blockdev-reopen", json!({"options": [options]}));
}

/// The nodes that the edges of `top` lead to.
fn children(client: &mut Client) -> Vec<String> {
    let nodes = client.run("query-named-block-nodes", json!({}));
    let mut nodes = nodes.as_array().unwrap().iter();
    let top = nodes.find(|node| node["node-name"] == "top").unwrap();
    let children = top["x-coblk-children"].as_array().unwrap().iter();
    children.map(|child| child["node-name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_slot_is_in_the_schema_and_is_emptied_and_filled_over_qmp() {
    let place = Place::new();
    let daemon = place.start_command(command(&place, LINE));
    let mut client = Client::new(&place.path("qmp.sock"));
    let schema = client.run("query-qmp-schema", json!({}));
    let find = |name: &Value| {
        let mut entries = schema.as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == *name).unwrap()
    };
    let add = find(&find(&json!("blockdev-add"))["arg-type"]);
    let mut variants = add["variants"].as_array().unwrap().iter();
    let overlay = find(&variants.find(|variant| variant["case"] == "overlay").unwrap()["type"]);
    let backing = &overlay["members"][1];
    assert_eq!((&backing["name"], &backing["default"]), (&json!("backing"), &Value::Null));
    let choices = find(&backing["type"]);
    assert_eq!(choices["meta-type"], "alternate");
    let types: Vec<_> =
        choices["members"].as_array().unwrap().iter().map(|it| &it["type"]).collect();
    assert_eq!(types, [&json!("str"), &add["name"], &json!("null")]);

    assert_eq!(children(&mut client), ["file", "base"]);
    reopen(&mut client, &Value::Null);
    assert_eq!(children(&mut client), ["file"]);
    reopen(&mut client, &json!("base"));
    assert_eq!(children(&mut client), ["file", "base"]);
    client.run("quit", json!({}));
    assert!(daemon.wait().success());
}

#[test]
fn null_is_printed_as_it_is_read() {
    let place = Place::new();
    let printed = |backing: &str| {
        let top = format!("--blockdev overlay,node-name=top,file.driver=null-co{backing}");
        let line = format!("--blockdev null-co,node-name=base {top} --dump-config");
        let output = command(&place, &line).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(printed(",backing=").contains("overlay,backing=,file.driver=null-co"));
    assert!(printed(",backing=base").contains("overlay,backing=base,file.driver=null-co"));
    // The driver opens none by itself.
    assert!(printed("").contains("overlay,backing=,file.driver=null-co"));
}
