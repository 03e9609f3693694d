//! Images made by QEMU's programs, and nodes on them.
#![allow(dead_code)] // Each test file uses some of them.

pub mod encrypted;
pub mod map;
pub mod model;
pub mod repair;
pub mod shape;
pub mod small_host;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, BlockdevError, Blockdevs, DriverEvent, Extent,
    WriteFlags,
};
use coblk_qcow2::Qcow2;
use coblk_tests::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory of images, and nodes on them.
pub struct Stand {
    pub ctx: AioContext,
    pub blockdevs: Blockdevs,
    pub dir: TempDir,
    pub events: Arc<Mutex<Vec<DriverEvent>>>,
}

impl Stand {
    pub fn new() -> Stand {
        Self::in_dir(coblk_tests::image_dir!())
    }

    /// In memory, where syncs take no time: QEMU makes one for each table.
    pub fn in_memory() -> Stand {
        Self::in_dir(TempDir::new_in("/dev/shm").expect("a tmpfs"))
    }

    /// In a directory of that one.
    pub fn in_parent(parent: &Path) -> Stand {
        Self::in_dir(TempDir::new_in(parent).expect("a directory"))
    }

    fn in_dir(dir: TempDir) -> Stand {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        drivers.add_creates::<Qcow2>();
        drivers.add_measures::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        let events = Arc::<Mutex<Vec<DriverEvent>>>::default();
        let told = Arc::clone(&events);
        blockdevs.set_event_listener(move |event| told.lock().unwrap().push(event));
        Stand { ctx: AioContext::for_test().unwrap(), blockdevs, dir, events }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `qemu-img create` with these options of the format.
    pub fn create(&self, name: &str, options: &str, size: &str) -> PathBuf {
        let path = self.path(name);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        let mut command = tools::command("qemu-img");
        command.current_dir(self.dir.path()).args(args).args([tools::text(&path), size]);
        let output = tools::finish("qemu-img", &mut command);
        tools::expect_success("qemu-img create", &output);
        path
    }

    /// A raw file with random bytes.
    pub fn random_file(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.path(name);
        let mut random = fastrand::Rng::with_seed(bytes as u64);
        let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(bytes).collect();
        fs::write(&path, data).unwrap();
        path
    }

    /// Runs `qemu-io` on a qcow2 image. All commands succeed.
    #[track_caller]
    pub fn qemu_io(&self, image: &Path, commands: &[String]) {
        let mut args = vec!["-f".to_owned(), "qcow2".to_owned()];
        commands.iter().for_each(|it| args.extend(["-c".to_owned(), it.clone()]));
        args.push(tools::text(image).to_owned());
        let mut command = tools::command("qemu-io");
        let output = tools::finish("qemu-io", command.current_dir(self.dir.path()).args(args));
        let said = tools::expect_success("qemu-io", &output);
        assert!(!said.contains("failed"), "{commands:?}: {said}");
    }

    /// What a guest reads, as QEMU has it.
    #[track_caller]
    pub fn content(&self, image: &Path) -> Vec<u8> {
        let raw = self.path("as.raw");
        let mut command = tools::command("qemu-img");
        command.current_dir(self.dir.path()).args(["convert", "-f", "qcow2", "-O", "raw"]);
        command.args([image, &raw]);
        tools::expect_success("qemu-img convert", &tools::finish("qemu-img", &mut command));
        let content = fs::read(&raw).unwrap();
        fs::remove_file(raw).unwrap();
        content
    }

    /// `qemu-img COMMAND --output=json`, whether it succeeds or not; and its exit code.
    #[track_caller]
    pub fn qemu_img(&self, command: &str, image: &Path) -> (Value, i32) {
        let mut program = tools::command("qemu-img");
        program.current_dir(self.dir.path()).args([command, "-f", "qcow2", "--output=json"]);
        let output = tools::finish("qemu-img", program.arg(image));
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (value, output.status.code().unwrap())
    }

    /// Options of a node on an image, with others.
    pub fn options(&self, image: &Path, more: Value) -> NodeOptions {
        let mut options = json!({
            "driver": "qcow2",
            "read-only": true,
            "file": {"driver": "file", "filename": tools::text(image)},
        });
        let members = options.as_object_mut().unwrap();
        more.as_object().unwrap().iter().for_each(|(name, value)| {
            members.insert(name.clone(), value.clone());
        });
        NodeOptions::from_value(options).unwrap()
    }

    pub fn try_open(&self, image: &Path, more: Value) -> Result<Arc<BlockNode>, BlockdevError> {
        self.blockdevs.open(&self.ctx, self.options(image, more))
    }

    /// Why a node cannot be opened.
    #[track_caller]
    pub fn refusal(&self, image: &Path, more: Value) -> String {
        let error = self.try_open(image, more).map(|node| node.name().to_owned());
        let error = error.expect_err("an image that is refused");
        assert!(self.blockdevs.nodes().is_empty(), "{error}");
        error.to_string()
    }

    pub fn open(&self, image: &Path, more: Value) -> Opened<'_> {
        let node = self.try_open(image, more).unwrap_or_else(|error| panic!("{error}"));
        Opened::new(self, node)
    }

    /// A node on an image that is written.
    pub fn open_writable(&self, image: &Path, more: Value) -> Opened<'_> {
        let mut options = json!({"read-only": false});
        let members = options.as_object_mut().unwrap();
        more.as_object().unwrap().iter().for_each(|(name, value)| {
            members.insert(name.clone(), value.clone());
        });
        let node = self.try_open(image, options).unwrap_or_else(|error| panic!("{error}"));
        let backend = BackendOptions::new("writer").open(&self.ctx, Arc::clone(&node)).unwrap();
        Opened { stand: self, node, backend: Some(backend) }
    }

    /// That `qemu-img check` finds nothing, not even a leak.
    #[track_caller]
    pub fn check(&self, image: &Path) {
        let (report, code) = self.qemu_img("check", image);
        assert_eq!(code, 0, "{report}");
    }

    pub fn end(self) {
        for node in self.blockdevs.nodes() {
            let _ = self.blockdevs.close(&self.ctx, node.name());
        }
    }
}

/// A node with a backend that reads.
pub struct Opened<'a> {
    pub stand: &'a Stand,
    pub node: Arc<BlockNode>,
    pub backend: Option<BlockBackend>,
}

impl<'a> Opened<'a> {
    pub fn new(stand: &'a Stand, node: Arc<BlockNode>) -> Opened<'a> {
        let backend = BackendOptions::new("reader").read_only(true);
        let backend = backend.open(&stand.ctx, Arc::clone(&node)).unwrap();
        Opened { stand, node, backend: Some(backend) }
    }

    pub fn ctx(&self) -> &AioContext {
        &self.stand.ctx
    }

    pub fn backend(&self) -> &BlockBackend {
        self.backend.as_ref().unwrap()
    }

    pub fn read(&self, offset: u64, bytes: usize) -> std::io::Result<Vec<u8>> {
        // Nothing of a former read passes for data.
        let mut data = vec![0xdb; bytes];
        self.backend().preadv(&self.stand.ctx, offset, &mut IoVectorMut::from(&mut data[..]))?;
        Ok(data)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.backend().pwritev(&self.stand.ctx, offset, &IoVector::from(data), WriteFlags::empty())
    }

    pub fn flush(&self) -> std::io::Result<()> {
        self.backend().flush(&self.stand.ctx)
    }

    /// Closes the node.
    pub fn close(self) {}

    /// Reads all, in pieces of random lengths.
    #[track_caller]
    pub fn read_all(&self, random: &mut fastrand::Rng) -> Vec<u8> {
        let length = self.node.length();
        let mut all = Vec::with_capacity(length as usize);
        while (all.len() as u64) < length {
            let most = 1 << random.u32(0..23);
            let bytes = random.u64(1..=most).min(length - all.len() as u64);
            let read = self.read(all.len() as u64, bytes as usize);
            all.extend(read.unwrap_or_else(|error| panic!("at {}: {error}", all.len())));
        }
        all
    }

    /// The state of a range in this layer.
    pub fn status(&self, offset: u64, bytes: u64) -> Extent {
        self.backend().block_status(&self.stand.ctx, offset, bytes).unwrap()
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.backend = None;
        if !std::thread::panicking() {
            let name = self.node.name().to_owned();
            self.stand.blockdevs.close(&self.stand.ctx, &name).unwrap();
        }
    }
}

/// Panics at the first byte that differs.
#[track_caller]
pub fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "length of {what}");
    if ours == theirs {
        return;
    }
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("{what}: at {at:#x} there is {:#x} and not {:#x}", ours[at], theirs[at]);
    }
}

/// Writes bytes into a file.
pub fn patch(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// The word at an offset of a file.
pub fn word(path: &Path, at: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 8];
    fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// Where the first L2 table is.
pub fn first_l2(path: &Path) -> u64 {
    word(path, word(path, 40)) & 0x00ff_ffff_ffff_fe00
}
