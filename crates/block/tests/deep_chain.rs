//! Requests go down the highest chain that there may be in half of a coroutine's stack.

mod util;

use std::sync::Arc;

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::{Null, RawOptions};
use coblk_block::options::NodeOptions;
use coblk_block::{BackendOptions, BlockLimits, BlockNode, WriteFlags, ZeroFlags};
use coblk_coroutine::{StackConfig, configure_stacks};
use util::bench::Bench;
use util::disk::{Disk, OnDisk};
use util::mapped::{Cluster, Mapped, Pass};

/// Half of what there is without configuration; frames are twice as large where nothing is
/// optimised.
fn half_a_stack() {
    let whole = StackConfig::default().size_bytes;
    let size_bytes = if cfg!(debug_assertions) { whole } else { whole / 2 };
    configure_stacks(StackConfig::new(size_bytes)).unwrap();
}

/// Every request there is, from unaligned memory, at odd offsets; and every question.
fn ask_everything(co: &Co<'_>, node: &Arc<BlockNode>) {
    let options = BackendOptions::new("drive").share_rw(true);
    let backend = options.open(co.context(), Arc::clone(node)).unwrap();
    let data = [7u8; 3000];
    let mut source = IoVector::from(&data[..1]);
    source.push(&data[1..]);
    for flags in [WriteFlags::empty(), WriteFlags::FUA] {
        backend.co_pwritev(co, 777, &source, flags).unwrap();
    }
    let mut back = [0u8; 3000];
    backend.co_preadv(co, 777, &mut IoVectorMut::from(&mut back[..])).unwrap();
    assert_eq!(back, data);
    backend.co_flush(co).unwrap();
    backend.co_pwrite_zeroes(co, 5000, 20_000, ZeroFlags::FUA | ZeroFlags::MAY_UNMAP).unwrap();
    backend.co_pdiscard(co, 5000, 20_000).unwrap();
    assert!(backend.co_block_status(co, 5, 30_000).unwrap().bytes > 0);
    // A part of the filters cannot; what they answer does not matter.
    let _ = backend.co_truncate(co, 2 << 20);
    let _ = node.co_refresh_length(co);
    let _ = node.co_allocated_bytes(co);
    assert!(node.length() > 0 && !node.is_read_only() && !backend.leaves_reads_unwritten());
    drop(backend.co_drain(co));
    drop(backend);
    drop(options.open(co.context(), Arc::clone(node)).unwrap());
}

fn chain_of(bench: &Bench, driver: &str, option: &str) {
    let name = driver.split(',').next().unwrap();
    let bottom = format!("file,node-name={name}0,filename=$");
    bench.open(&bottom).unwrap();
    for level in 1..=256 {
        let below = level - 1;
        bench.open(&format!("{driver},node-name={name}{level},{option}={name}{below}")).unwrap();
    }
    let top = bench.blockdevs.node(&format!("{name}256")).unwrap();
    bench.ctx.run(|co| ask_everything(co, &top));
    // Its ends may come on a coroutine's stack as well: the highest takes all others with it.
    let names: Vec<String> = (0..=256).map(|level| format!("{name}{level}")).collect();
    drop(top);
    bench.ctx.run(|co| {
        for name in names.iter().rev() {
            bench.blockdevs.co_close(co, name).unwrap();
        }
    });
}

/// A loop reads a chain of formats; where filters lie between them each is a call.
fn mapped_chains(ctx: &AioContext) {
    for filters_every in [usize::MAX, 5, 1] {
        let mut top = BlockNode::new("base", OnDisk(Disk::new(1 << 16, BlockLimits::default())));
        let mut height = 0;
        for level in 1.. {
            // The first cluster is the base's; of the others each layer has one, so there are pieces.
            let mut table = vec![Cluster::Backing; 64];
            table[1 + level % 63] = Cluster::File(0);
            let file = BlockNode::new("file", Null::new(1 << 16).read_zeroes(true));
            let layer = Mapped::new(1024, table, &file, Some(&top));
            top = BlockNode::new("layer", layer);
            height += 1;
            if level % filters_every == 0 {
                top = Pass::node("filter", &top);
                height += 1;
            }
            if height >= 255 {
                break;
            }
        }
        let node = Arc::clone(&top);
        ctx.run(|co| {
            let backend = BackendOptions::new("drive").open(co.context(), node).unwrap();
            let mut target = vec![1; 1 << 16];
            backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut target)).unwrap();
            assert!(target.iter().all(|byte| *byte == 0));
            assert!(backend.co_block_status(co, 0, 1 << 16).is_ok());
        });
    }
}

#[test]
fn the_highest_chain_needs_half_a_stack() {
    half_a_stack();
    let bench = Bench::new();
    bench.open("null-co,node-name=log,size=1073741824").unwrap();
    let limits = coblk_block::filters::throttle::ThrottleLimits::default();
    let group = coblk_block::filters::throttle::ThrottleGroup::new("group", limits).unwrap();
    bench.blockdevs.add_object("group", Arc::new(group)).unwrap();
    chain_of(&bench, "raw", "file");
    chain_of(&bench, "throttle,throttle-group=group", "file");
    chain_of(&bench, "blkdebug", "image");
    // Every level pads, and makes requests of its own.
    chain_of(&bench, "blkdebug,align=4096,max-transfer=4096,opt-write-zero=8192", "image");
    mapped_chains(&bench.ctx);
    // One described by the other, opened and dropped in one go.
    let mut options = NodeOptions::from_keyval("null-co,size=1048576,read-zeroes=on").unwrap();
    for _ in 0..256 {
        options = NodeOptions::new(RawOptions::new(options));
    }
    bench.ctx.run(|co| {
        let top = bench.blockdevs.co_open(co, options.clone()).unwrap();
        let name = top.name().to_owned();
        drop(top);
        bench.blockdevs.co_close(co, &name).unwrap();
    });
}
