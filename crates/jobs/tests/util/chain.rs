//! A chain of images in memory, whose storage is recorded.

use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioContext, Co};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockBackend, BlockNode, Blockdevs, Parent};
use coblk_jobs::{Job, JobStatus, Jobs};
use coblk_qcow2::Qcow2;
use coblk_tests::random::Random;
use coblk_tests::recorded::{Behaviour, RecordedFile, Recorder};
use serde_json::{Value, json};

use super::{Told, jobs, until};

/// Clusters of the images, in bytes.
pub const CLUSTER: u64 = 4096;
/// Length of a disk.
pub const LENGTH: u64 = 64 * CLUSTER;

pub fn drivers() -> coblk_block::Drivers {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Qcow2>();
    drivers.add_creates::<Qcow2>();
    drivers
}

pub struct Chain {
    pub ctx: AioContext,
    pub jobs: Rc<Jobs>,
    pub told: Told,
    pub blockdevs: Arc<Blockdevs>,
    pub recorder: Recorder,
    /// By the names of their nodes, the lowest first.
    pub files: Vec<(&'static str, RecordedFile)>,
    /// What is read at the top.
    pub disk: Vec<u8>,
    /// Clusters of the next image, in bytes.
    pub cluster: u64,
}

fn object(options: Value) -> serde_json::Map<String, Value> {
    options.as_object().unwrap().clone()
}

impl Chain {
    /// Images above each other, the lowest first, each with data at random places.
    pub fn new(names: &[&'static str], seed: u64) -> Chain {
        let lengths: Vec<_> = names.iter().map(|name| (*name, LENGTH)).collect();
        Chain::of_lengths(&lengths, seed)
    }

    pub fn of_lengths(images: &[(&'static str, u64)], seed: u64) -> Chain {
        let ctx = super::simulated(seed);
        let (jobs, told) = jobs();
        let blockdevs = Arc::new(Blockdevs::new(drivers()));
        let recorder = Recorder::new(Behaviour { seed, ..Behaviour::default() });
        let (files, disk) = Default::default();
        let cluster = CLUSTER;
        let mut chain = Chain { ctx, jobs, told, blockdevs, recorder, files, disk, cluster };
        let mut random = Random::new(seed);
        for (name, length) in images {
            let below = chain.files.last().map(|(name, _)| *name);
            chain.add(name, below, *length);
            chain.fill(name, &mut random);
        }
        chain
    }

    /// Makes an image, and opens it.
    pub fn add(&mut self, name: &'static str, backing: Option<&str>, length: u64) {
        let file = self.recorder.add_file(Vec::new());
        let storage = format!("{name}.file");
        self.blockdevs.adopt(BlockNode::new(storage.clone(), file.clone())).unwrap();
        let mut options = json!({
            "driver": "qcow2", "file": storage, "size": length, "cluster-size": self.cluster,
        });
        if let Some(backing) = backing {
            options["backing-file"] = json!(backing);
            options["backing-fmt"] = json!("qcow2");
        }
        let creation = self.blockdevs.drivers().creation(object(options)).unwrap();
        self.ctx.run(|co| self.blockdevs.co_create(co, creation)).unwrap();
        self.files.push((name, file));
        self.open(name, backing);
    }

    pub fn open(&self, name: &str, backing: Option<&str>) {
        let options = json!({
            "driver": "qcow2", "node-name": name, "file": format!("{name}.file"),
            "backing": backing, "discard": "unmap", "cache-clean-interval": 0,
        });
        let options = NodeOptions::from_value(options).unwrap();
        drop(self.blockdevs.open(&self.ctx, options).unwrap());
    }

    pub fn node(&self, name: &str) -> Arc<BlockNode> {
        self.blockdevs.node(name).unwrap_or_else(|| panic!("no node '{name}'"))
    }

    /// Writes to a node, which is the top so far, at random places.
    fn fill(&mut self, name: &str, random: &mut Random) {
        let node = self.node(name);
        let guest = BackendOptions::new("fill").open(&self.ctx, Arc::clone(&node)).unwrap();
        self.disk.resize(node.length() as usize, 0);
        for _ in 0..12 {
            let at = random.below(node.length()) as usize;
            let end = (at + 1 + random.below(3 * CLUSTER) as usize).min(self.disk.len());
            let (offset, bytes) = (at as u64, (end - at) as u64);
            if random.below(4) == 0 {
                self.disk[at..end].fill(0);
                let zero = |co: &Co<'_>| {
                    let flags = coblk_block::ZeroFlags::MAY_UNMAP;
                    guest.co_pwrite_zeroes(co, offset, bytes, flags)
                };
                self.ctx.run(zero).unwrap();
            } else {
                random.fill(&mut self.disk[at..end]);
                self.ctx.run(|co| guest.co_write(co, offset, &self.disk[at..end])).unwrap();
            }
        }
        self.ctx.run(|co| guest.co_flush(co)).unwrap();
    }

    /// A guest's backend.
    pub fn guest(&self, name: &str) -> BlockBackend {
        BackendOptions::new("guest").open(&self.ctx, self.node(name)).unwrap()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let options = BackendOptions::new("reader").read_only(true);
        let backend = options.open(&self.ctx, self.node(name)).unwrap();
        let mut bytes = vec![0xee; backend.length().unwrap() as usize];
        self.ctx.run(|co| backend.co_read(co, 0, &mut bytes)).unwrap();
        bytes
    }

    #[track_caller]
    pub fn check(&self, name: &str) {
        assert!(self.read(name) == self.disk, "node '{name}' reads as something else");
    }

    /// The name and the format that the header of an image has for its backing file.
    pub fn header(&self, name: &str) -> Option<(String, String)> {
        let info = self.node(name).driver().image().unwrap().info().unwrap();
        info.backing.map(|it| (it.name, it.format.unwrap_or_default()))
    }

    /// The names of the nodes of a chain.
    pub fn names(&self, top: &str) -> Vec<String> {
        self.node(top).chain().iter().map(|node| node.name().to_owned()).collect()
    }

    pub fn until(&self, job: &Job, status: JobStatus) {
        until(&self.ctx, || job.status() == status);
    }

    /// The users of a node that are not its parents.
    pub fn users(&self, name: &str) -> usize {
        let is_other = |it: &&Parent| !matches!(it, Parent::Node { .. });
        self.node(name).parents().iter().filter(is_other).count()
    }

    /// No job has left anything.
    #[track_caller]
    pub fn is_free(&self) {
        let nodes = self.blockdevs.nodes();
        let mut names: Vec<_> = nodes.iter().map(|node| node.name()).collect();
        names.retain(|name| !name.ends_with(".file"));
        names.sort_unstable();
        let mut expected: Vec<_> = self.files.iter().map(|(name, _)| *name).collect();
        expected.sort_unstable();
        assert_eq!(names, expected);
        names.iter().for_each(|name| assert_eq!(self.users(name), 0, "users of '{name}'"));
    }
}

/// The length of a disk, and its bytes, as a chain has them whose images are these files, with these names: each is
/// opened above the one that its header names.
pub fn read_files(names: &[&'static str], files: &[Vec<u8>], top: &str) -> Result<Vec<u8>, String> {
    let ctx = super::simulated(1);
    let blockdevs = Blockdevs::new(drivers());
    let mut below: Option<String> = None;
    // From the top down the headers say what is needed, and nodes are opened from the bottom up.
    let mut order = vec![top.to_owned()];
    while let Some(name) = order.last().cloned() {
        let place = names.iter().position(|it| *it == name);
        let image = &files[place.ok_or_else(|| format!("a header names '{name}'"))?];
        let header = coblk_qcow2::layout::Header::parse(image).map_err(|it| it.to_string())?;
        match header.backing {
            Some(name) => order.push(String::from_utf8(name).map_err(|it| it.to_string())?),
            None => break,
        }
        if order.len() > names.len() {
            return Err("the headers form a loop".to_owned());
        }
    }
    for name in order.iter().rev() {
        let place = names.iter().position(|it| it == name).unwrap();
        let file = coblk_tests::survey::in_memory(vec![files[place].clone()]).remove(0);
        blockdevs.adopt(BlockNode::new(format!("{name}.file"), file)).unwrap();
        let options = json!({
            "driver": "qcow2", "node-name": name, "file": format!("{name}.file"), "backing": below,
            "read-only": true,
        });
        let options = NodeOptions::from_value(options).unwrap();
        let node = blockdevs.open(&ctx, options).map_err(|it| format!("{name}: {it}"))?;
        drop(node);
        below = Some(name.clone());
    }
    let node = blockdevs.node(top).unwrap();
    let options = BackendOptions::new("reader").read_only(true);
    let backend = options.open(&ctx, node).unwrap();
    let mut bytes = vec![0xee; backend.length().unwrap() as usize];
    ctx.run(|co| backend.co_read(co, 0, &mut bytes)).map_err(|it| it.to_string())?;
    drop(backend);
    for name in &order {
        blockdevs.close(&ctx, name).map_err(|it| it.to_string())?;
        blockdevs.close(&ctx, &format!("{name}.file")).map_err(|it| it.to_string())?;
    }
    Ok(bytes)
}
