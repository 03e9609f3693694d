//! A libFuzzer target: what a guest may have in its rings and descriptors. The input is its memory,
//! after two bytes: what it has negotiated, and how many heads it offers, or where a packed ring begins.
#![forbid(unsafe_code)]
#![no_main]

use std::sync::Arc;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_virtio_blk::{Interrupt, VirtioBlk, VirtioBlkConfig, VirtqueueLayout, feature};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const DESC: u64 = 0;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x800;
/// Input lies from the descriptors on, and is a guest's whole memory but for the rings.
const MEMORY_BYTES: u64 = 0x2000;

thread_local! {
    static CTX: AioContext = AioContext::for_test().expect("a context");
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [flags, count, contents @ ..] = input else { return };
    CTX.with(|ctx| run(ctx, *flags, u16::from(*count), contents));
});

fn run(ctx: &AioContext, flags: u8, count: u16, contents: &[u8]) {
    let node = BlockNode::new("null", Null::new(1 << 20).read_zeroes(flags & 1 != 0));
    let backend = BlockBackend::new(ctx, "guest", node);
    let device = VirtioBlk::new(backend, VirtioBlkConfig::default()).expect("a device");
    let without = if flags & 2 != 0 { feature::EVENT_IDX } else { 0 }
        | if flags & 4 != 0 { feature::INDIRECT_DESC } else { 0 };
    let packed = flags & 8 != 0;
    let without = without | if packed { 0 } else { feature::RING_PACKED };
    device.negotiate(device.features() & !without).expect("its own features");
    // Two regions, so that things can lie across their border.
    let half = (MEMORY_BYTES / 2) as usize;
    let regions = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("memory"));
    let contents = &contents[..contents.len().min(MEMORY_BYTES as usize)];
    memory.write_slice(contents, GuestAddress(0)).expect("it fits");
    if !packed {
        // The used ring begins empty; what is offered is what the second byte says.
        memory.write_obj(0u32, GuestAddress(USED)).expect("it is there");
        memory.write_obj(count, GuestAddress(AVAIL + 2)).expect("it is there");
    }
    let layout = VirtqueueLayout {
        size: SIZE,
        desc_table: DESC,
        avail_ring: AVAIL,
        used_ring: USED,
        // Of a packed queue, any place in the ring, in either round.
        next_index: if packed { count % SIZE | (count & 0x80) << 8 } else { 0 },
    };
    let started = device.start_queue(ctx, 0, &memory, layout, Interrupt::None);
    assert_eq!(started.is_ok(), packed || count <= SIZE, "{started:?}");
    while ctx.try_poll() {}
    // Each was answered, or the queue is broken.
    assert_eq!(device.in_flight(), 0);
    device.reset(ctx);
}
