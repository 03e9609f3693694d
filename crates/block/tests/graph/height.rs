//! A chain of nodes has a bound, however it is built.

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::drivers::{Null, Raw};
use coblk_block::options::NodeOptions;
use coblk_block::{BlockNode, BlockdevError, Blockdevs, GraphError};

use crate::tagged::Both;

/// Nodes that may be below one.
const MAX: usize = 256;

/// `raw` nodes, the lowest first, on a disk.
fn chain(name: &str, nodes: usize) -> Vec<Arc<BlockNode>> {
    let mut chain = vec![BlockNode::new(format!("{name}0"), Null::new(1 << 20))];
    for level in 1..=nodes {
        let below = Arc::clone(&chain[level - 1]);
        chain.push(BlockNode::new(format!("{name}{level}"), Raw::new(below)));
    }
    chain
}

fn height(node: &Arc<BlockNode>) -> usize {
    let child = node.children().into_iter().next();
    child.map_or(0, |(_, child)| height(&child) + 1)
}

#[track_caller]
fn too_high<T>(result: Result<T, GraphError>, node: &str) {
    match result.err().expect("refused") {
        GraphError::TooHigh { node: named, max } => assert_eq!((&*named, max), (node, MAX)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_node_stands_on_a_bounded_number_of_others() {
    let chain = chain("n", MAX);
    assert_eq!(height(&chain[MAX]), MAX);
    too_high(BlockNode::try_new("top", Raw::new(Arc::clone(&chain[MAX]))), "top");
    assert!(BlockNode::try_new("beside", Raw::new(Arc::clone(&chain[MAX - 1]))).is_ok());
}

#[test]
fn an_edge_does_not_turn_to_what_would_make_a_node_too_high() {
    let ctx = AioContext::for_test().unwrap();
    let (low, high) = (chain("low", 100), chain("high", 157));
    // Its parents would be one higher than they may; the first is named.
    too_high(low[0].replace(&ctx, &high[157]), "low100");
    assert_eq!((height(&low[100]), height(&high[157])), (100, 157), "nothing has changed");
    low[0].replace(&ctx, &high[156]).unwrap();
    assert_eq!(height(&low[100]), MAX);
    // What was refused is forgotten, and what was done is known.
    too_high(BlockNode::try_new("top", Raw::new(Arc::clone(&low[100]))), "top");
    let one_more = BlockNode::new("more", Raw::new(Arc::clone(&high[3])));
    too_high(high[3].insert_above(&ctx, &one_more), "low100");
    high[7].remove(&ctx).unwrap();
    assert_eq!(height(&low[100]), MAX - 1);
    high[3].insert_above(&ctx, &one_more).unwrap();
    assert_eq!(height(&low[100]), MAX);
    assert_eq!(low[100].graph_faults(), [""; 0]);
}

/// The longer way down counts, and heights are found in one go where ways part and meet again.
#[test]
fn the_longest_way_counts() {
    let ctx = AioContext::for_test().unwrap();
    let mut level = [chain("a", 0).remove(0), chain("b", 0).remove(0)];
    let bottom = Arc::clone(&level[0]);
    for number in 0..100 {
        let both = |side: &str| Both::node(&format!("{side}{number}"), &level[0], &level[1]);
        level = [both("left"), both("right")];
    }
    let long = chain("long", 157);
    let refused = bottom.replace(&ctx, &long[157]);
    assert!(matches!(refused, Err(GraphError::TooHigh { .. })), "{refused:?}");
    bottom.replace(&ctx, &long[156]).unwrap();
    too_high(BlockNode::try_new("top", Raw::new(Arc::clone(&level[1]))), "top");
}

/// Asks for a chain of ten thousand nodes by steps that say how many are below the highest, and finds
/// the step that was refused, because of `node`. What is too high ends the test at once.
fn refused_at<E: std::fmt::Display>(
    node: &str,
    mut step: impl FnMut(usize) -> Result<usize, E>,
) -> usize {
    let refused = (1..=10_000).find_map(|number| match step(number) {
        Ok(height) => {
            assert!(height <= MAX, "{height} nodes, one upon the other");
            None
        }
        Err(error) => Some((number, error.to_string())),
    });
    let (number, error) = refused.expect("a bound");
    let expected = format!("node '{node}' would have more than {MAX} levels of children");
    assert!(error.contains(&expected), "{error}");
    number
}

#[test]
fn insertions_stop_at_the_bound() {
    let ctx = AioContext::for_test().unwrap();
    let disk = BlockNode::new("disk", Null::new(1 << 20));
    let top = BlockNode::new("top", Raw::new(Arc::clone(&disk)));
    let refused = refused_at("top", |number| {
        let above = BlockNode::new(format!("n{number}"), Raw::new(Arc::clone(&disk)));
        disk.insert_above(&ctx, &above).map(|()| height(&top))
    });
    assert_eq!((refused, height(&top)), (MAX, MAX));
}

#[test]
fn replacements_stop_at_the_bound() {
    let ctx = AioContext::for_test().unwrap();
    let mut top = chain("n", 1).pop().unwrap();
    let refused = refused_at("n26-6", |number| {
        let next = chain(&format!("n{number}-"), 10);
        next[0].replace(&ctx, &top)?;
        top = Arc::clone(&next[10]);
        Ok::<usize, GraphError>(height(&top))
    });
    assert_eq!((refused, height(&top)), (26, 251));
}

#[test]
fn reopens_stop_at_the_bound() {
    let (ctx, blockdevs) =
        (AioContext::for_test().unwrap(), Blockdevs::new(coblk_block::drivers()));
    let options = |line: &str| NodeOptions::from_keyval(line).unwrap();
    let open = |line: &str| blockdevs.open(&ctx, options(line)).unwrap();
    open("null-co,node-name=n0");
    let refused = refused_at("n257", |number| {
        // Five that stand on the disk, and then on those that are there.
        let (low, top) = (5 * number - 4, 5 * number);
        open(&format!("raw,node-name=n{low},file=n0"));
        (low..top).for_each(|n| _ = open(&format!("raw,node-name=n{},file=n{n}", n + 1)));
        let line = format!("raw,node-name=n{low},file=n{}", low - 1);
        blockdevs.reopen(&ctx, vec![options(&line)])?;
        Ok::<usize, BlockdevError>(height(&blockdevs.node(&format!("n{top}")).unwrap()))
    });
    assert_eq!((refused, height(&blockdevs.node("n255").unwrap())), (52, 255));
}
