//! Frozen chains: what is refused, and what is not.

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::drivers::Raw;
use coblk_block::options::NodeOptions;
use coblk_block::{BlockBackend, BlockNode, Blockdevs, FrozenChain, GraphError};

use crate::movable::{Overlay, children};
use crate::tagged::{Tagged, read};

struct Chain {
    ctx: AioContext,
    /// From the bottom up: disk, middle, top, each but the first an overlay.
    nodes: [Arc<BlockNode>; 3],
    other: Arc<BlockNode>,
}

impl Chain {
    fn new() -> Chain {
        let ctx = AioContext::for_test().unwrap();
        let file = Tagged::new(0).node("file");
        let disk = Tagged::new(1).node("disk");
        let middle = Overlay::node("middle", &file, Some(&disk));
        let top = Overlay::node("top", &Tagged::new(0).node("file2"), Some(&middle));
        Chain { ctx, nodes: [disk, middle, top], other: Tagged::new(2).node("other") }
    }

    fn freeze(
        &self,
        top: &Arc<BlockNode>,
        base: Option<&Arc<BlockNode>>,
    ) -> Result<FrozenChain, GraphError> {
        self.ctx.run(|co| top.co_freeze_chain(co, base, "job 'commit0' needs it"))
    }

    fn set(&self, node: &Arc<BlockNode>, child: Option<&Arc<BlockNode>>) -> Result<(), GraphError> {
        self.ctx.run(|co| node.co_set_child(co, "backing", child))
    }
}

#[track_caller]
fn refused<T>(result: Result<T, GraphError>, words: &str) {
    assert_eq!(result.err().expect("an error").to_string(), words);
}

const MIDDLE: &str = "cannot change 'backing' link from 'middle' to 'disk': job 'commit0' needs it";
const TOP: &str = "cannot change 'backing' link from 'top' to 'middle': job 'commit0' needs it";

#[test]
fn every_change_of_a_frozen_edge_is_refused_and_names_it() {
    let chain = Chain::new();
    let (ctx, [disk, middle, top], other) = (&chain.ctx, &chain.nodes, &chain.other);
    let frozen = chain.freeze(top, Some(disk)).unwrap();
    refused(disk.replace(ctx, other), MIDDLE);
    let filter = BlockNode::new("filter", Raw::new(disk.clone()));
    refused(disk.insert_above(ctx, &filter), MIDDLE);
    refused(middle.replace(ctx, other), TOP);
    let middle_filter = BlockNode::new("filter", Raw::new(middle.clone()));
    refused(middle.insert_above(ctx, &middle_filter), TOP);
    refused(ctx.run(|co| middle.co_detach(co, "backing")), MIDDLE);
    refused(chain.set(middle, None), MIDDLE);
    refused(chain.set(middle, Some(other)), MIDDLE);
    // Where it leads already.
    chain.set(middle, Some(disk)).unwrap();
    assert_eq!(children(top), ["file=file2", "backing=middle"]);
    assert_eq!(children(middle), ["file=file", "backing=disk"]);
    // Other edges of the nodes are free.
    let backend = BlockBackend::new(ctx, "drive", top.clone());
    let above = BlockNode::new("above", Raw::new(top.clone()));
    top.insert_above(ctx, &above).unwrap();
    above.remove(ctx).unwrap();
    ctx.run(|co| middle.co_set_child(co, "file", Some(other))).unwrap();
    assert_eq!(read(ctx, &backend).unwrap(), 1);
    drop(frozen);
    disk.replace(ctx, other).unwrap();
    assert_eq!(read(ctx, &backend).unwrap(), 2);
    chain.set(middle, None).unwrap();
    assert_eq!((read(ctx, &backend).unwrap(), top.graph_faults()), (99, vec![]));
}

#[test]
fn a_chain_is_frozen_wholly_or_not_at_all() {
    let chain = Chain::new();
    let (ctx, [disk, middle, top], other) = (&chain.ctx, &chain.nodes, &chain.other);
    refused(chain.freeze(top, Some(other)), "node 'other' is not in the chain of node 'top'");
    refused(chain.freeze(middle, Some(top)), "node 'top' is not in the chain of node 'middle'");
    let lower = chain.freeze(middle, Some(disk)).unwrap();
    refused(chain.freeze(top, None), MIDDLE);
    // The upper edge was not frozen then.
    chain.set(top, None).unwrap();
    chain.set(top, Some(middle)).unwrap();
    let upper = chain.freeze(top, Some(middle)).unwrap();
    refused(chain.set(top, None), TOP);
    drop(lower);
    refused(chain.set(top, None), TOP);
    chain.set(middle, Some(other)).unwrap();
    // Nothing lies between a node and itself.
    let none = chain.freeze(disk, Some(disk)).unwrap();
    drop((upper, none));
    // The way goes through filters.
    let filter = BlockNode::new("filter", Raw::new(top.clone()));
    let whole = chain.freeze(&filter, None).unwrap();
    refused(
        ctx.run(|co| filter.co_set_child(co, "file", Some(other))),
        "cannot change 'file' link from 'filter' to 'top': job 'commit0' needs it",
    );
    refused(chain.set(top, None), TOP);
    drop(whole);
    ctx.run(|co| filter.co_set_child(co, "file", Some(other))).unwrap();
}

#[test]
fn the_holder_of_a_chain_changes_it_and_no_other_can_come_before() {
    let chain = Chain::new();
    let (ctx, [disk, middle, top], other) = (&chain.ctx, &chain.nodes, &chain.other);
    let mut frozen = chain.freeze(top, Some(disk)).unwrap();
    // Refused for other reasons: it stays frozen.
    let cycle = ctx.run(|co| frozen.co_set_child(co, top, "backing", Some(top)));
    assert!(matches!(cycle, Err(GraphError::Cycle { .. })), "{cycle:?}");
    refused(chain.set(top, None), TOP);
    ctx.run(|co| frozen.co_set_child(co, top, "backing", Some(disk))).unwrap();
    assert_eq!(children(top), ["file=file2", "backing=disk"]);
    refused(chain.set(middle, None), MIDDLE);
    chain.set(top, Some(other)).unwrap();
    // An edge that another has frozen is none of its own.
    let others = chain.freeze(top, Some(other)).unwrap();
    let words = "cannot change 'backing' link from 'top' to 'other': job 'commit0' needs it";
    refused(ctx.run(|co| frozen.co_set_child(co, top, "backing", None)), words);
    drop(frozen);
    refused(chain.set(top, None), words);
    drop(others);
    chain.set(top, None).unwrap();
}

#[test]
fn a_reopen_does_not_turn_a_frozen_edge() {
    let (ctx, blockdevs) =
        (AioContext::for_test().unwrap(), Blockdevs::new(coblk_block::drivers()));
    let options = |line: &str| NodeOptions::from_keyval(line).unwrap();
    let open = |line: &str| blockdevs.open(&ctx, options(line)).unwrap();
    open("null-co,node-name=disk,size=4096");
    open("null-co,node-name=other,size=4096");
    let raw = open("raw,node-name=raw,file=disk");
    let frozen = ctx.run(|co| raw.co_freeze_chain(co, None, "a job needs it")).unwrap();
    let reopen = |line: &str| blockdevs.reopen(&ctx, vec![options(line)]);
    let refusal = reopen("raw,node-name=raw,file=other,offset=512").unwrap_err().to_string();
    assert_eq!(refusal, "cannot change 'file' link from 'raw' to 'disk': a job needs it");
    assert_eq!((children(&raw), raw.length()), (vec!["file=disk".to_owned()], 4096));
    // Other options change.
    reopen("raw,node-name=raw,file=disk,offset=512").unwrap();
    assert_eq!(raw.length(), 3584);
    drop(frozen);
    reopen("raw,node-name=raw,file=other").unwrap();
    assert_eq!(children(&raw), ["file=other"]);
}
