//! In steady state a request allocates nothing, from the guest's submit to its reap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_virtio_blk::BlkStatus;
use coblk_virtio_blk::guest::{GuestRequest, Machine};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn run(ctx: &AioContext, machine: &mut Machine, rounds: u64) {
    let buffers = machine.ram.alloc_many(64, 4096, 4096).unwrap();
    let flush = 63;
    let before = ALLOCATIONS.with(Cell::get);
    for round in 0..rounds {
        let queue = &mut machine.queues[0];
        for (token, buffer) in (0..flush).zip(&buffers) {
            // Far apart: a merged request of more than four ranges has a list on the heap.
            let sector = (round * 64 + token) * 1000 % (1 << 20);
            let request = match token % 4 {
                0 => GuestRequest::Write { sector, buffers: &[*buffer] },
                1 => GuestRequest::Discard { sector, sectors: 8 },
                _ => GuestRequest::Read { sector, buffers: &[*buffer] },
            };
            queue.submit(request, token).unwrap();
        }
        queue.submit(GuestRequest::Flush, flush).unwrap();
        queue.kick();
        let mut done = 0;
        while done < 64 {
            ctx.poll(true);
            while let Some(completion) = queue.reap() {
                assert_eq!(completion.status, BlkStatus::Ok);
                done += 1;
            }
        }
    }
    if rounds > 100 {
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    }
}

#[test]
fn a_request_allocates_nothing() {
    for deferred in [false, true] {
        let ctx = AioContext::new().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 30).deferred(deferred));
        let mut machine = Machine::new(&ctx, BlockBackend::new(&ctx, "drive", node)).unwrap();
        run(&ctx, &mut machine, 50);
        run(&ctx, &mut machine, 200);
    }
}
