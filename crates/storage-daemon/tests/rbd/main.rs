//! The driver `rbd`, on images of a Ceph cluster.
//!
//! Needs the cluster that `tests/ceph/up` brings up. Where it cannot be had, `tests/run` counts tests whose
//! names have `ceph_` in them as not run.

mod made;
mod node;
mod refused;
mod served;
#[path = "../util/mod.rs"]
mod util;
#[path = "../../../vhost-user-blk/tests/util/mod.rs"]
mod vhost;

use std::sync::Arc;

use coblk::options::NodeOptions;
use coblk::{AioContext, BlockBackend, BlockNode, Blockdevs};

const MIB: u64 = 1 << 20;

/// A context, and nodes in it.
struct Bench {
    ctx: AioContext,
    blockdevs: Blockdevs,
}

impl Bench {
    fn new() -> Bench {
        let ctx = AioContext::for_test().expect("a context");
        Bench { ctx, blockdevs: Blockdevs::new(coblk::drivers()) }
    }

    fn try_open(&self, options: &str) -> Result<Arc<BlockNode>, String> {
        let options = NodeOptions::from_keyval(options).map_err(|error| error.to_string())?;
        self.blockdevs.open(&self.ctx, options).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn open(&self, options: &str) -> Arc<BlockNode> {
        self.try_open(options).unwrap_or_else(|error| panic!("{options}: {error}"))
    }

    /// A node called `disk`, and a backend on it.
    #[track_caller]
    fn disk(&self, options: &str) -> BlockBackend {
        let node = self.open(&format!("{options},node-name=disk"));
        BlockBackend::new(&self.ctx, "drive", node)
    }

    #[track_caller]
    fn close(&self, backend: BlockBackend) {
        let name = backend.node().expect("a node").name().to_owned();
        drop(backend);
        self.blockdevs.close(&self.ctx, &name).expect("it closes");
    }
}

/// Bytes of a pattern that differs from place to place.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    coblk_tests::random::Random::new(seed).fill(&mut data);
    data
}
