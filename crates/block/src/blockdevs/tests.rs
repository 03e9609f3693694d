use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::AioContext;

use super::Blockdevs;
use crate::graph::life::tests::{Keeper, Log, keep};
use crate::graph::node::BlockNode;
use crate::options::NodeOptions;
use crate::registry::Entry;

struct Bench {
    ctx: AioContext,
    log: Log,
    blockdevs: Blockdevs,
}

fn bench() -> Bench {
    let (ctx, blockdevs) = (AioContext::for_test().unwrap(), Blockdevs::new(crate::drivers()));
    Bench { ctx, log: Log::default(), blockdevs }
}

impl Bench {
    fn open(&self, options: &str) -> Arc<BlockNode> {
        self.blockdevs.open(&self.ctx, NodeOptions::from_keyval(options).unwrap()).unwrap()
    }

    /// Takes in a node as if it had been opened, by itself or as a child.
    fn adopt(&self, node: &Arc<BlockNode>, as_child: bool) {
        let options = Arc::new(NodeOptions::from_keyval("driver=null-co,size=1048576").unwrap());
        let entry = match as_child {
            true => Entry::Child(Arc::downgrade(node), options, "high".to_owned()),
            false => Entry::Owned(Arc::clone(node), Some(options)),
        };
        node.life.set_belongs_to_users(as_child);
        self.blockdevs.names().nodes.insert(node.name().to_owned(), entry);
    }
}

#[test]
fn a_deleted_node_is_closed_with_those_that_were_opened_for_it() {
    let bench = bench();
    let disk = bench.open("driver=null-co,node-name=disk,size=1048576");
    let [low, high] = {
        let low = Keeper::node("low", &bench.log, disk);
        let high = Keeper::node("high", &bench.log, Arc::clone(&low));
        [low, high]
    };
    bench.adopt(&low, true);
    bench.adopt(&high, false);
    keep(&bench.ctx, &high, 9);
    drop((low, high));
    bench.blockdevs.close(&bench.ctx, "high").unwrap();
    bench.log.expect(&[
        "high writes 9",
        "high flushes",
        "low writes 9",
        "low flushes",
        "high writes 0",
        "low writes 0",
    ]);
    assert!(bench.blockdevs.node("low").is_none());
    // One that was opened by itself stays.
    bench.blockdevs.close(&bench.ctx, "disk").unwrap();
}

#[test]
fn a_node_that_cannot_be_closed_is_not_deleted() {
    let bench = bench();
    let (node, errno) =
        Keeper::failing("node", &bench.log, bench.open("driver=null-co,node-name=d"));
    bench.adopt(&node, false);
    // Nothing was written, so nothing is flushed, and the error is of the close.
    errno.store(libc::EIO, Ordering::SeqCst);
    let error = bench.blockdevs.close(&bench.ctx, "node").unwrap_err().to_string();
    assert!(error.starts_with("node 'node' cannot be closed: "), "{error}");
    assert!(Arc::ptr_eq(&bench.blockdevs.node("node").unwrap(), &node));
    keep(&bench.ctx, &node, 1);
    bench.log.expect(&["node fails"]);
    bench.blockdevs.close(&bench.ctx, "node").unwrap();
    assert!(bench.blockdevs.node("node").is_none());
}

#[test]
fn a_child_that_a_reopen_leaves_behind_is_closed() {
    let bench = bench();
    bench.open("driver=null-co,node-name=other,size=1048576");
    let raw = bench.open(
        "driver=raw,node-name=raw,file.driver=raw,file.node-name=own,file.file.driver=null-co,\
         file.file.node-name=lowest,file.file.size=1048576",
    );
    let own = bench.blockdevs.node("own").unwrap();
    let lowest = bench.blockdevs.node("lowest").unwrap();
    let options = NodeOptions::from_keyval("driver=raw,node-name=raw,file=other").unwrap();
    bench.blockdevs.reopen(&bench.ctx, vec![options]).unwrap();
    assert!(own.life.is_closed() && lowest.life.is_closed() && !raw.life.is_closed());
    assert!(bench.blockdevs.node("own").is_none() && bench.blockdevs.node("lowest").is_none());
}

#[test]
fn children_of_what_cannot_be_opened_are_closed() {
    let bench = bench();
    let options = "driver=raw,node-name=raw,offset=2097152,file.driver=null-co,file.size=1048576,\
                   file.node-name=disk";
    let options = NodeOptions::from_keyval(options).unwrap();
    assert!(bench.blockdevs.open(&bench.ctx, options).is_err());
    assert!(bench.blockdevs.node("disk").is_none());
    bench.open("driver=null-co,node-name=disk,size=1048576");
}
