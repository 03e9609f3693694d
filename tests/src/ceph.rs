//! The Ceph cluster that `tests/ceph/up` brings up, and images in it.
//!
//! Tests that need it have `ceph_` in their names: where there is no cluster, `tests/run` leaves them out.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use coblk::options::NodeOptions;
use coblk::{AioContext, BlockNode, Blockdevs};

use crate::tools;

/// Where the cluster is.
#[track_caller]
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")) //
    });
    let folder = folder.join("ceph");
    assert!(folder.join("up").exists(), "there is no Ceph cluster: tests/ceph/up brings one up");
    folder.canonicalize().expect("a folder")
}

/// The path of its configuration.
#[track_caller]
pub fn conf() -> String {
    tools::text(&folder().join("ceph.conf")).to_owned()
}

/// The key of a client, in base64.
#[track_caller]
pub fn key(client: &str) -> String {
    let keyring = std::fs::read_to_string(folder().join("keyring")).expect("a keyring");
    let section = keyring.split(&format!("[{client}]")).nth(1).expect("the client");
    let line = section.lines().find_map(|line| line.trim().strip_prefix("key = "));
    line.expect("its key").to_owned()
}

/// The program `rbd`, as the client that may do everything.
#[track_caller]
pub fn rbd(arguments: &[&str]) -> String {
    let mut command = tools::command("rbd");
    command.arg("--conf").arg(conf()).args(arguments);
    tools::expect_success("rbd", &tools::finish("rbd", &mut command))
}

/// An image of a test's own, removed with the value.
pub struct Image {
    /// The pool, and the namespace if it is in one.
    pub place: String,
    /// Its name, which no other image has.
    pub name: String,
}

impl Image {
    /// A name for an image that is made later.
    pub fn named(place: &str) -> Image {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Image { place: place.to_owned(), name: format!("test{}.{number}", std::process::id()) }
    }

    /// An empty image, with more arguments for `rbd create`.
    #[track_caller]
    pub fn new(place: &str, bytes: u64, more: &[&str]) -> Image {
        let image = Image::named(place);
        let size = format!("{bytes}B");
        rbd(&[&["create", "--size", &size, &image.spec()], more].concat());
        image
    }

    /// It as `rbd` names it.
    pub fn spec(&self) -> String {
        format!("{}/{}", self.place, self.name)
    }

    /// Options of a node of it, as a list.
    #[track_caller]
    pub fn options(&self) -> String {
        let (pool, namespace) = match self.place.split_once('/') {
            Some((pool, namespace)) => (pool, format!(",namespace={namespace}")),
            None => (&*self.place, String::new()),
        };
        format!("rbd,pool={pool}{namespace},image={},conf={}", self.name, conf())
    }

    /// A node of it, with more options behind a comma. It is closed when it is dropped.
    #[track_caller]
    pub fn open(&self, ctx: &AioContext, more: &str) -> Arc<BlockNode> {
        let options = NodeOptions::from_keyval(format!("{}{more}", self.options()));
        let blockdevs = Blockdevs::new(coblk::drivers());
        blockdevs.open(ctx, options.expect("options")).expect("a node")
    }

    /// Its file name.
    #[track_caller]
    pub fn filename(&self) -> String {
        format!("rbd:{}:conf={}", self.spec(), conf())
    }
}

impl Drop for Image {
    /// With its snapshots; what a failed test has left open stays.
    fn drop(&mut self) {
        let conf = conf();
        for verb in [&["snap", "purge"][..], &["rm"]] {
            let mut command = Command::new("rbd");
            command.args(["--conf", &conf]).args(verb).args(["--no-progress", &self.spec()]);
            let _ = command.output();
        }
    }
}

/// A process of the cluster that is to die: an OSD.
pub struct Osd(pub u32);

impl Osd {
    fn pid(&self) -> String {
        let file = folder().join(format!("osd.{}.pid", self.0));
        std::fs::read_to_string(file).expect("its number").trim().to_owned()
    }

    /// Kills it.
    pub fn kill(&self) {
        tools::run("kill", ["-KILL", &self.pid()]);
    }

    /// Stops it, so that it answers nothing, or has it go on.
    pub fn stop(&self, stops: bool) {
        tools::run("kill", [if stops { "-STOP" } else { "-CONT" }, &self.pid()]);
    }

    /// Starts it again.
    pub fn start(&self) {
        let program = folder().join(format!("osd.{}.start", self.0));
        tools::run(tools::text(&program), [""; 0]);
    }
}

/// What a command of the cluster's administration says.
#[track_caller]
pub fn admin(arguments: &[&str]) -> String {
    let mut command = tools::command("ceph");
    command.args(["--conf", &conf(), "--connect-timeout", "30"]).args(arguments);
    tools::expect_success("ceph", &tools::finish("ceph", &mut command))
}
