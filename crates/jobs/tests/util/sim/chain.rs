//! Streams and commits of a chain of three images: base, mid, top.

use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_block::BlockNode;
use coblk_jobs::{Commit, Job, JobOptions, OnError, Stream};
use fastrand::Rng;

use super::faulty::Disks;
use super::layer::{self, Layer};
use super::{End, Kind, World};

const LENGTH: u64 = 96 << 10;
/// No disk: each is one that guests use. So the end of a job may wait for it, as they do.
const NONE: usize = usize::MAX;

/// The images. Their disks have the numbers 0, 1 and 2.
struct Images {
    base: Arc<BlockNode>,
    mid: Arc<BlockNode>,
    top: Arc<BlockNode>,
}

impl Images {
    /// Nodes of images come first, so that commands meet them.
    fn build(disks: &mut Disks, rng: &mut Rng) -> Images {
        let mut below = None;
        let mut nodes = Vec::new();
        for (name, byte) in [("base", 1), ("mid", 2), ("top", 3)] {
            let (disk, file) = disks.add(&format!("{name}.file"));
            disk.fill(byte);
            let has = layer::random(rng, LENGTH);
            let node = Layer::node(name, &file, below.as_ref(), has);
            nodes.push(Arc::clone(&node));
            below = Some(node);
        }
        disks.nodes.splice(0..0, nodes.iter().rev().cloned());
        let [base, mid, top] = nodes.try_into().unwrap_or_else(|_| unreachable!("three"));
        Images { base, mid, top }
    }

    /// Guests are on a chain of these names, and the headers say so. A job that fails puts headers back, and tries that
    /// more often than a fault lasts.
    fn check<K: Kind>(world: &World<K>, names: &[&str]) {
        for guest in world.guests() {
            let node = guest.backend.node().unwrap();
            let (headers, below) = layer::names(&node);
            assert_eq!(headers, below, "headers, and nodes, say");
            let mut chain = vec![node.name().to_owned()];
            chain.extend(below.into_iter().filter(|it| it != "none"));
            assert_eq!(chain, names);
        }
    }
}

const WHOLE: [&str; 3] = ["top", "mid", "base"];

fn policy(rng: &mut Rng) -> OnError {
    [OnError::Ignore, OnError::Stop, OnError::Ignore, OnError::Report][rng.usize(..4)]
}

/// A stream to the top, of all, or of what is above the base.
pub struct OfStream {
    images: Images,
    has_base: bool,
}

impl Kind for OfStream {
    const NAME: &'static str = "stream";
    const LENGTH: u64 = LENGTH;
    const DISCARDS: bool = false;

    fn build(disks: &mut Disks, rng: &mut Rng) -> (OfStream, Arc<BlockNode>) {
        let images = Images::build(disks, rng);
        let top = Arc::clone(&images.top);
        (OfStream { images, has_base: rng.bool() }, top)
    }

    fn start(
        &self,
        co: &Co<'_>,
        world: &World<Self>,
        options: JobOptions,
        rng: &mut Rng,
    ) -> Result<Rc<Job>, String> {
        let mut stream = Stream::new(Arc::clone(&self.images.top)).on_error(policy(rng));
        if self.has_base {
            stream = stream.above(&self.images.base).unwrap().backing_file("base");
        }
        let started = stream.co_start(co, &world.jobs, options, &world.blockdevs);
        started.map_err(|error| error.to_string())
    }

    fn target(&self) -> usize {
        NONE
    }

    fn holds_guests(&self) -> bool {
        true
    }

    fn disk_of(&self, _: &str) -> Option<usize> {
        None
    }

    fn check(&self, world: &World<Self>, end: End) {
        let names: &[&str] = match (end, self.has_base) {
            (End::Completed | End::Softly, true) => &["top", "base"],
            (End::Completed | End::Softly, false) => &["top"],
            _ => &WHOLE,
        };
        Images::check(world, names);
    }
}

/// A commit to the base: of what guests write to, or of the middle.
pub struct CommitOf<const IS_ACTIVE: bool> {
    images: Images,
}

pub type OfCommit = CommitOf<false>;
pub type OfActiveCommit = CommitOf<true>;

impl<const IS_ACTIVE: bool> Kind for CommitOf<IS_ACTIVE> {
    const NAME: &'static str = "commit";
    const LENGTH: u64 = LENGTH;
    const DISCARDS: bool = false;

    fn build(disks: &mut Disks, rng: &mut Rng) -> (Self, Arc<BlockNode>) {
        let images = Images::build(disks, rng);
        let top = Arc::clone(&images.top);
        (CommitOf { images }, top)
    }

    fn start(
        &self,
        co: &Co<'_>,
        world: &World<Self>,
        options: JobOptions,
        rng: &mut Rng,
    ) -> Result<Rc<Job>, String> {
        let top = if IS_ACTIVE { &self.images.top } else { &self.images.mid };
        let commit = Commit::new(Arc::clone(top), Arc::clone(&self.images.base));
        let mut commit = commit.map_err(|error| error.to_string())?.on_error(policy(rng));
        if !IS_ACTIVE {
            commit = commit.backing_file("base");
        }
        let started = commit.co_start(co, &world.jobs, options, &world.blockdevs);
        started.map_err(|error| error.to_string())
    }

    fn target(&self) -> usize {
        NONE
    }

    /// They read what the base has.
    fn holds_guests(&self) -> bool {
        true
    }

    fn disk_of(&self, _: &str) -> Option<usize> {
        None
    }

    fn check(&self, world: &World<Self>, end: End) {
        let names: &[&str] = match (end, IS_ACTIVE) {
            (End::Completed, true) => &["base"],
            (End::Completed | End::Softly, false) => &["top", "base"],
            _ => &WHOLE,
        };
        Images::check(world, names);
    }
}
