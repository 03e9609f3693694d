//! In steady state a request allocates nothing, from the guest's submit to its reap.

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, RequestKind, drivers::Null};
use coblk_virtio_blk::BlkStatus;
use coblk_virtio_blk::guest::{GuestBuffer, GuestRequest, Machine, QueueOptions};

/// What the guest asks for.
#[derive(Clone, Copy)]
enum Mix {
    /// Requests of all kinds, far apart.
    Scattered,
    /// Neighbours, which become one request of 63 ranges.
    Merged,
    /// Reads and writes of 9 ranges each.
    Long,
}

impl Mix {
    /// How many fit into the queue at once, with a flush.
    fn requests(self) -> u64 {
        if matches!(self, Mix::Long) { 20 } else { 63 }
    }

    fn request(self, round: u64, token: u64, buffers: &[GuestBuffer]) -> GuestRequest<'_> {
        let at = token as usize;
        let (sector, is_write, range) = match self {
            Mix::Scattered if token % 4 == 1 => {
                let sector = (round * 64 + token) * 1000 % (1 << 20);
                return GuestRequest::Discard { sector, sectors: 8 };
            }
            Mix::Scattered => {
                ((round * 64 + token) * 1000 % (1 << 20), token.is_multiple_of(4), at..at + 1)
            }
            Mix::Merged => (token * 8, round.is_multiple_of(2), at..at + 1),
            Mix::Long => (token * 1000, token.is_multiple_of(2), at..at + 9),
        };
        let buffers = &buffers[range];
        if is_write {
            GuestRequest::Write { sector, buffers }
        } else {
            GuestRequest::Read { sector, buffers }
        }
    }
}

fn run(ctx: &AioContext, machine: &mut Machine, buffers: &[GuestBuffer], mix: Mix, rounds: u64) {
    let flush = mix.requests();
    for round in 0..rounds {
        let queue = &mut machine.queues[0];
        for token in 0..flush {
            queue.submit(mix.request(round, token, buffers), token).unwrap();
        }
        queue.submit(GuestRequest::Flush, flush).unwrap();
        queue.kick();
        let mut done = 0;
        while done <= flush {
            ctx.poll();
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
    for (deferred, packed) in [(false, false), (true, false), (false, true), (true, true)] {
        let ctx = AioContext::for_test().unwrap();
        let node = BlockNode::new("null", Null::new(1 << 30).deferred(deferred));
        let backend = BlockBackend::new(&ctx, "drive", node);
        let statistics = backend.statistics();
        let queue = QueueOptions { packed, ..Default::default() };
        let mut machine = Machine::builder().queue(queue).build(&ctx, backend).unwrap();
        let buffers = machine.ram.alloc_many(64, 4096, 4096).unwrap();
        for mix in [Mix::Scattered, Mix::Merged, Mix::Long] {
            run(&ctx, &mut machine, &buffers, mix, 50);
            let measured = || run(&ctx, &mut machine, &buffers, mix, 200);
            let counted = allocation_counter::measure(measured);
            assert_eq!(counted.count_total, 0);
            let merged = RequestKind::ALL.map(|kind| statistics.of(kind).merged);
            assert_eq!(merged == [0; 5], matches!(mix, Mix::Scattered));
        }
    }
}
