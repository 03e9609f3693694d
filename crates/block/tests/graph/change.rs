//! Replacing, inserting and removing nodes: what leads where, and what is refused.

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::drivers::Raw;
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::{BlockBackend, BlockNode, DebugEvent};

use crate::tagged::{Both, Tagged, read};

fn filter(name: &str, below: &Arc<BlockNode>) -> (Arc<BlockNode>, Rules) {
    let rules = Rules::new(1);
    (BlockNode::new(name, BlkDebug::new(Arc::clone(below), rules.clone())), rules)
}

fn reads(rules: &Rules) -> u64 {
    rules.kind_counts(coblk_block::RequestKind::Read).requests
}

#[test]
fn a_node_is_replaced_for_edges_and_backends() {
    let ctx = AioContext::for_test().unwrap();
    let [old, new] = [Tagged::new(1), Tagged::with_length(2, 8192)];
    let [old_node, new_node] = [old.node("old"), new.node("new")];
    let (above, _) = filter("above", &old_node);
    let direct = BlockBackend::new(&ctx, "direct", old_node.clone());
    let filtered = BlockBackend::new(&ctx, "filtered", above);
    old_node.replace(&ctx, &new_node).unwrap();
    for backend in [&direct, &filtered] {
        assert_eq!((read(&ctx, backend).unwrap(), backend.length().unwrap()), (2, 8192));
    }
    assert_eq!(Arc::strong_count(&old_node), 1, "nobody uses the old one");
    assert_eq!(old.hooks(), "()");
    // Its drains do not reach them any more, those of the new one do.
    let section = old_node.drain(&ctx);
    assert_eq!(read(&ctx, &filtered).unwrap(), 2);
    drop(section);
    new_node.replace(&ctx, &old_node).unwrap();
    assert_eq!(read(&ctx, &filtered).unwrap(), 1);
    assert_eq!((old_node.graph_faults(), new_node.graph_faults()), (vec![], vec![]));
}

#[test]
fn a_filter_is_inserted_and_removed() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1);
    let below = disk.node("disk");
    let (old, old_rules) = filter("old", &below);
    let backends = [&below, &old].map(|node| BlockBackend::new(&ctx, "drive", node.clone()));
    let (inserted, rules) = filter("inserted", &below);
    below.insert_above(&ctx, &inserted).unwrap();
    for backend in &backends {
        assert_eq!(read(&ctx, backend).unwrap(), 1);
    }
    assert_eq!((reads(&rules), reads(&old_rules)), (2, 1));
    assert!(Arc::ptr_eq(&backends[0].node().unwrap(), &inserted));

    inserted.remove(&ctx).unwrap();
    for backend in &backends {
        assert_eq!(read(&ctx, backend).unwrap(), 1);
    }
    assert_eq!((reads(&rules), reads(&old_rules)), (2, 2));
    assert_eq!(Arc::strong_count(&inserted), 1);
    // It still stands there, and can be inserted again.
    below.insert_above(&ctx, &inserted).unwrap();
    assert_eq!(read(&ctx, &backends[1]).unwrap(), 1);
    assert_eq!(reads(&rules), 3);
    assert_eq!(inserted.graph_faults(), [""; 0]);
}

#[test]
fn a_replace_leaves_the_way_down_to_the_old_node_alone() {
    let ctx = AioContext::for_test().unwrap();
    let [disk, other] = [Tagged::new(1).node("disk"), Tagged::new(2).node("other")];
    let (middle, _) = filter("middle", &disk);
    let both = Both::node("both", &other, &middle);
    let (beside, rules) = filter("beside", &disk);
    let backends = [&disk, &beside].map(|node| BlockBackend::new(&ctx, "drive", node.clone()));
    disk.replace(&ctx, &both).unwrap();
    // What was on the disk is above the new node, but for the edge that leads from there to the disk.
    for backend in &backends {
        assert_eq!(read(&ctx, backend).unwrap(), 2);
    }
    assert_eq!(reads(&rules), 1);
    assert!(Arc::ptr_eq(&backends[0].node().unwrap(), &both));
    assert!(Arc::ptr_eq(&beside.children()[0].1, &both));
    assert!(Arc::ptr_eq(&middle.children()[0].1, &disk));
    assert_eq!(disk.graph_faults(), [""; 0]);
    // A node that replaces itself stays where it is.
    both.replace(&ctx, &both).unwrap();
    assert_eq!(read(&ctx, &backends[1]).unwrap(), 2);
}

#[test]
fn what_cannot_be_inserted_or_removed_is_refused_by_name() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(1).node("disk");
    let (middle, _) = filter("middle", &disk);
    let (top, _) = filter("top", &middle);
    let backend = BlockBackend::new(&ctx, "drive", top.clone());
    let refused = |result: Result<(), coblk_block::GraphError>| result.unwrap_err().to_string();
    let other = Tagged::new(2).node("other");
    assert_eq!(
        refused(disk.insert_above(&ctx, &other)),
        "node 'other' cannot be inserted above node 'disk': it does not lead to it"
    );
    assert!(disk.insert_above(&ctx, &disk).is_err());
    assert_eq!(
        refused(disk.remove(&ctx)),
        "node 'disk' cannot be removed: it has 0 children, not one"
    );
    assert!(Both::node("both", &disk, &other).remove(&ctx).is_err());
    // Nothing has changed, and all is awake.
    assert!(Arc::ptr_eq(&backend.node().unwrap(), &top));
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
}

#[test]
fn a_change_inside_a_drained_section_of_others_leaves_them_their_peace() {
    let ctx = AioContext::for_test().unwrap();
    let [old, new] = [Tagged::new(1), Tagged::new(2)];
    let [old_node, new_node] = [old.node("old"), new.node("new")];
    let (above, _) = filter("above", &old_node);
    let section = above.drain(&ctx);
    old_node.replace(&ctx, &new_node).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", above);
    let done = std::rc::Rc::new(std::cell::Cell::new(false));
    let in_callback = std::rc::Rc::clone(&done);
    backend.aio_preadv(&ctx, 0, vec![0; 1], move |_, result, buffer| {
        result.unwrap();
        assert_eq!(buffer, [2]);
        in_callback.set(true);
    });
    for _ in 0..20 {
        ctx.try_poll();
    }
    assert!(!done.get());
    drop(section);
    ctx.run_until(|| done.get());
}

/// An edge knows whether its child is told of steps, also when that is another.
#[test]
fn steps_are_told_to_what_an_edge_leads_to_now() {
    let ctx = AioContext::for_test().unwrap();
    let below = Tagged::new(1).node("disk");
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("top", Raw::new(below.clone())));
    let (debug, rules) = filter("debug", &below);
    rules.add(Rule::fail(libc::EIO).when(DebugEvent::ReadAio));
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
    below.insert_above(&ctx, &debug).unwrap();
    read(&ctx, &backend).unwrap_err();
    debug.remove(&ctx).unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
}
