//! [`Shape`]: images of all kinds, in files in memory.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockNode, Blockdevs, Repair};
use coblk_qcow2::Qcow2;
use coblk_qcow2::check::{Check, CheckOptions, co_check, co_check_with};
use coblk_tests::random::Random;
use coblk_tests::recorded::{RecordedFile, SECTOR};
use coblk_tests::survey::{Subject, in_memory, read_all};
use coblk_tests::tools;
use serde_json::{Value, json};

/// A kind of image.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// `qemu-img create -o`.
    pub options: &'static str,
    /// Sectors of a cluster.
    pub cluster: usize,
    /// Sectors of the disk.
    pub sectors: usize,
    /// Whether data is in a file of its own.
    pub has_data_file: bool,
    /// Sectors of the backing file, if there is one.
    pub backing: Option<usize>,
    /// Options of the node, as JSON.
    pub node: &'static str,
}

/// An image with clusters and a disk of so many sectors.
pub const fn shape(options: &'static str, cluster: usize, sectors: usize) -> Shape {
    Shape { options, cluster, sectors, has_data_file: false, backing: None, node: "{}" }
}

const fn data_file(shape: Shape) -> Shape {
    Shape { has_data_file: true, ..shape }
}

const fn backed(shape: Shape, sectors: usize) -> Shape {
    Shape { backing: Some(sectors), ..shape }
}

const fn with(shape: Shape, node: &'static str) -> Shape {
    Shape { node, ..shape }
}

/// All kinds. Small disks, with several tables where clusters are small.
pub const SHAPES: [Shape; 16] = [
    shape("cluster_size=512", 1, 160),
    shape("cluster_size=512,refcount_bits=64", 1, 160),
    shape("cluster_size=1k,refcount_bits=1", 2, 300),
    shape("cluster_size=4k", 8, 512),
    shape("cluster_size=64k", 128, 2048),
    backed(shape("cluster_size=4k", 8, 300), 203),
    backed(shape("cluster_size=512", 1, 160), 400),
    shape("compat=0.10,cluster_size=4k", 8, 300),
    backed(shape("compat=0.10,cluster_size=512", 1, 160), 160),
    shape("extended_l2=on,cluster_size=16k", 32, 1024),
    backed(shape("extended_l2=on,cluster_size=16k", 32, 1024), 777),
    data_file(shape("cluster_size=4k,data_file=data.raw", 8, 300)),
    data_file(backed(shape("cluster_size=512,data_file=data.raw", 1, 160), 160)),
    data_file(shape("cluster_size=4k,data_file=data.raw,data_file_raw=on", 8, 300)),
    shape("cluster_size=512,lazy_refcounts=on", 1, 160),
    LEAST_CACHE,
];

/// Nothing but the least cache: slices come and go, and commits begin without a flush.
pub const LEAST_CACHE: Shape = with(
    shape("cluster_size=512", 1, 600),
    r#"{"l2-cache-size": 2048, "l2-cache-entry-size": 512, "discard": "unmap"}"#,
);

impl Shape {
    /// The files of a new image, in the order image, data file, backing file.
    pub fn create(&self, seed: u64) -> Vec<Vec<u8>> {
        let dir = coblk_tests::image_dir!();
        let mut files = Vec::new();
        let mut options = self.options.to_owned();
        let mut backing = None;
        if let Some(sectors) = self.backing {
            let mut content = vec![0; sectors * SECTOR];
            Random::new(!seed).fill(&mut content);
            fs::write(dir.path().join("back.raw"), &content).unwrap();
            options += ",backing_file=back.raw,backing_fmt=raw";
            backing = Some(content);
        }
        let size = (self.sectors * SECTOR).to_string();
        let args = ["create", "-q", "-f", "qcow2", "-o", &options, "image.qcow2", &size];
        run_in(dir.path(), "qemu-img", &args).unwrap();
        files.push(fs::read(dir.path().join("image.qcow2")).unwrap());
        if self.has_data_file {
            files.push(fs::read(dir.path().join("data.raw")).unwrap());
        }
        files.extend(backing);
        files
    }

    /// What the guest reads at first.
    pub fn content(&self, files: &[Vec<u8>]) -> Vec<u8> {
        let mut content = match self.backing {
            Some(_) => files.last().expect("a backing file").clone(),
            None => vec![],
        };
        content.resize(self.sectors * SECTOR, 0);
        content
    }

    /// Names of the files.
    pub fn names(&self) -> Vec<&'static str> {
        let data = self.has_data_file.then_some("data.raw");
        let backing = self.backing.map(|_| "back.raw");
        ["image.qcow2"].into_iter().chain(data).chain(backing).collect()
    }
}

/// Runs a program in a directory.
///
/// # Errors
/// What it says, if it fails.
fn run_in(dir: &Path, program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = tools::command(program);
    let output = tools::finish(program, command.current_dir(dir).args(args));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let text = said(&output.stdout) + &said(&output.stderr);
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{program} {}: {}: {text}", args.join(" "), output.status)),
    }
}

/// The driver, on images of a shape.
pub struct Format {
    pub shape: Shape,
    /// A step of the order of writes that is left out.
    pub omit: Option<&'static str>,
    /// A snapshot that is shown instead of the disk where the image is only read.
    snapshot: Option<String>,
    open: RefCell<Vec<(Arc<BlockNode>, Blockdevs)>>,
}

impl Format {
    pub fn new(shape: Shape) -> Format {
        Format { shape, omit: None, snapshot: None, open: RefCell::default() }
    }

    /// A snapshot of an image, where that is only read.
    #[allow(dead_code, reason = "not all programs of tests have snapshots")]
    pub fn of_snapshot(shape: Shape, id: &str) -> Format {
        Format { snapshot: Some(id.to_owned()), ..Format::new(shape) }
    }

    fn options(&self, read_only: bool) -> Value {
        let mut options: Value = serde_json::from_str(self.shape.node).unwrap();
        options["driver"] = json!("qcow2");
        options["file"] = json!("image.qcow2");
        options["node-name"] = json!("disk");
        if read_only {
            options["read-only"] = json!(true);
        }
        if let (Some(snapshot), true) = (&self.snapshot, read_only) {
            options["x-snapshot"] = json!(snapshot);
        }
        if let (Some(rule), false) = (self.omit, read_only) {
            options["x-omit"] = json!(rule);
        }
        if self.shape.has_data_file {
            options["data-file"] = json!("data.raw");
        }
        if self.shape.backing.is_some() {
            options["backing"] = json!("back.raw");
        }
        options
    }

    /// Checks an image, or repairs it.
    pub fn check_with(
        &self,
        ctx: &AioContext,
        files: &[RecordedFile],
        repair: Repair,
    ) -> Result<Check, String> {
        let node = BlockNode::new("image", files[0].clone());
        let options = BackendOptions::new("check").read_only(repair == Repair::None);
        let backend = options.open(ctx, node).map_err(|error| error.to_string())?;
        let check = ctx.run(|co| match repair {
            Repair::None => co_check(co, &backend),
            _ => co_check_with(co, &backend, &CheckOptions::new(repair)),
        });
        check.map_err(|error| format!("check: {error}"))
    }
}

impl Subject for Format {
    fn open(
        &self,
        ctx: &AioContext,
        files: &[RecordedFile],
        read_only: bool,
    ) -> Result<Arc<BlockNode>, String> {
        let mut drivers = coblk_block::drivers();
        drivers.add::<Qcow2>();
        let blockdevs = Blockdevs::new(drivers);
        for (name, file) in self.shape.names().into_iter().zip(files) {
            blockdevs.adopt(BlockNode::new(name, file.clone())).map_err(|it| it.to_string())?;
        }
        let options = NodeOptions::from_value(self.options(read_only)).unwrap();
        let node = blockdevs.open(ctx, options).map_err(|error| error.to_string())?;
        self.open.borrow_mut().push((Arc::clone(&node), blockdevs));
        Ok(node)
    }

    fn close(&self, ctx: &AioContext, node: Arc<BlockNode>) -> Result<(), String> {
        let mut open = self.open.borrow_mut();
        let at = open.iter().position(|it| Arc::ptr_eq(&it.0, &node)).expect("an open node");
        let (also, blockdevs) = open.swap_remove(at);
        drop((node, also));
        blockdevs.close(ctx, "disk").map_err(|error| format!("close: {error}"))?;
        for name in self.shape.names() {
            blockdevs.close(ctx, name).map_err(|error| format!("close: {error}"))?;
        }
        Ok(())
    }

    fn check(&self, ctx: &AioContext, files: &[RecordedFile]) -> Result<u64, String> {
        let check = self.check_with(ctx, files, Repair::None)?;
        let is_dirty = files[0].content()[79] & 1 != 0 && files[0].content()[7] > 2;
        let faults = check.report.corruptions + check.report.check_errors;
        if faults > 0 && !is_dirty {
            return Err(format!("{faults} corruptions: {:#?}", check.findings));
        }
        Ok(if is_dirty { 0 } else { check.report.leaks })
    }

    /// `qemu-img` finds no corruption and reads the same; each of two repairs leaves a clean image with
    /// the same content.
    fn check_further(&self, ctx: &AioContext, images: &[Vec<u8>]) -> Result<(), String> {
        let files = in_memory(images.to_vec());
        let content = read_all(self, ctx, &files)?;
        let dir = coblk_tests::image_dir!();
        let write = |images: &[Vec<u8>]| {
            for (name, image) in self.shape.names().iter().zip(images) {
                fs::write(dir.path().join(name), image).unwrap();
            }
        };
        write(images);
        let is_dirty = images[0][79] & 1 != 0 && images[0][7] > 2;
        let check = ["check", "-q", "-f", "qcow2", "image.qcow2"];
        if let Err(error) = run_in(dir.path(), "qemu-img", &check)
            && !error.contains("exit status: 3")
            && !is_dirty
        {
            return Err(error);
        }
        self.compare(dir.path(), &content)?;
        run_in(
            dir.path(),
            "qemu-img",
            &["check", "-q", "-r", "all", "-f", "qcow2", "image.qcow2"],
        )?;
        self.compare(dir.path(), &content)?;
        let theirs = fs::read(dir.path().join("image.qcow2")).unwrap();
        self.expect_clean(ctx, &in_memory(vec![theirs]), "their repair")?;
        let ours = self.check_with(ctx, &files, Repair::All)?;
        let now: Vec<Vec<u8>> = files.iter().map(RecordedFile::content).collect();
        self.expect_clean(ctx, &files, "our repair")
            .map_err(|error| format!("{error}; {:#?}", ours.findings))?;
        self.check_with(ctx, &files, Repair::All)?;
        if files[0].content() != now[0] {
            return Err("a second repair changes something".to_owned());
        }
        write(&now);
        run_in(dir.path(), "qemu-img", &check)?;
        self.compare(dir.path(), &content)
    }
}

impl Format {
    /// No corruption, no leak.
    pub fn expect_clean(
        &self,
        ctx: &AioContext,
        files: &[RecordedFile],
        what: &str,
    ) -> Result<(), String> {
        let Check { report, findings, .. } = self.check_with(ctx, files, Repair::None)?;
        match report.corruptions + report.check_errors + report.leaks {
            0 => Ok(()),
            _ => Err(format!("after {what}: {report:?} {findings:#?}")),
        }
    }

    /// QEMU reads this content.
    fn compare(&self, dir: &Path, content: &[u8]) -> Result<(), String> {
        let convert = ["convert", "-f", "qcow2", "-O", "raw", "image.qcow2", "as.raw"];
        run_in(dir, "qemu-img", &convert)?;
        let theirs = fs::read(dir.join("as.raw")).unwrap();
        match theirs.iter().zip(content).position(|(a, b)| a != b) {
            None if theirs.len() == content.len() => Ok(()),
            at => Err(format!("qemu-img reads another byte at {at:?}")),
        }
    }
}
