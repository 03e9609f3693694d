//! In steady state a request allocates nothing, from the guest's submit to its reap.

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_virtio_blk::BlkStatus;
use coblk_virtio_blk::guest::{GuestBuffer, GuestRequest, Machine};

fn run(ctx: &AioContext, machine: &mut Machine, buffers: &[GuestBuffer], rounds: u64) {
    let flush = 63;
    for round in 0..rounds {
        let queue = &mut machine.queues[0];
        for (token, buffer) in (0..flush).zip(buffers) {
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
}

#[test]
fn a_request_allocates_nothing() {
    let one = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(one.count_total, 1, "the counter counts");
    for deferred in [false, true] {
        let ctx = AioContext::new().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 30).deferred(deferred));
        let mut machine = Machine::new(&ctx, BlockBackend::new(&ctx, "drive", node)).unwrap();
        let buffers = machine.ram.alloc_many(64, 4096, 4096).unwrap();
        run(&ctx, &mut machine, &buffers, 50);
        let counted = allocation_counter::measure(|| run(&ctx, &mut machine, &buffers, 200));
        assert_eq!(counted.count_total, 0);
    }
}
