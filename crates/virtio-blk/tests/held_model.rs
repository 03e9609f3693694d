//! Random lives of a queue whose backend stops and holds requests: it is stopped, paused and dropped at
//! any time, with a log and without. Each request is answered once, and the available ring is only read.

mod util;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, BlockNode, ErrorPolicies, ErrorPolicy};
use coblk_virtio_blk::guest::{GuestBuffer, GuestQueue, GuestRam, Machine, QueueOptions};
use coblk_virtio_blk::{
    BlkStatus, Earlier, InflightLog, Interrupt, PACKED_START, PackedLog, PausedQueue, RequestLog,
    VirtioBlk, VirtioBlkConfig, VirtqueueLayout, feature,
};
use proptest::prelude::*;
use util::{TestDisk, backend, settle};
use vm_memory::{Bytes, GuestAddress, MmapRegion};

const SIZE: u16 = 16;
const SECTORS: u64 = 8192;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Makes this many requests available, with a kick.
    Submit(u8),
    /// One turn of the loop.
    Poll,
    Settle,
    /// A request that comes soon is going to fail, which stops the backend.
    Break(u8),
    Resume,
    Stop,
    Pause,
    Drop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6u8).prop_map(Step::Submit),
        4 => Just(Step::Poll),
        2 => Just(Step::Settle),
        3 => (0..4u8).prop_map(Step::Break),
        1 => Just(Step::Resume),
        2 => Just(Step::Stop),
        1 => Just(Step::Pause),
        1 => Just(Step::Drop),
    ]
}

struct Model {
    ctx: AioContext,
    disk: Arc<TestDisk>,
    node: Arc<BlockNode>,
    config: VirtioBlkConfig,
    /// `None` for a moment.
    device: Option<VirtioBlk>,
    ram: GuestRam,
    queue: GuestQueue,
    log: Option<Arc<MmapRegion>>,
    /// Requests that were not answered.
    pending: HashMap<u64, GuestBuffer>,
    next_token: u64,
    failed: u64,
    packed: bool,
}

fn negotiate(device: &VirtioBlk, packed: bool) {
    let without = if packed { 0 } else { feature::RING_PACKED };
    device.negotiate(device.features() & !without).unwrap();
}

/// Each request has a place on the disk to itself, apart from all others, so that none are merged.
fn sector_of(token: u64) -> u64 {
    token * 2
}

impl Model {
    fn new(logged: bool, packed: bool) -> Model {
        let ctx = AioContext::new().unwrap();
        let deferred = TestDisk { deferred: true, ..TestDisk::new(SECTORS as usize) };
        let (disk, backend) = backend(&ctx, deferred);
        let node = backend.node().unwrap();
        let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
        let config = VirtioBlkConfig::default().error_policies(Some(policies));
        let options = QueueOptions { size: SIZE, packed, ..Default::default() };
        let builder = Machine::builder().config(config.clone()).queue(options);
        let Machine { device, ram, mut queues, .. } = builder.build(&ctx, backend).unwrap();
        device.reset(&ctx);
        negotiate(&device, packed);
        let mut model = Model {
            disk,
            node,
            config,
            device: Some(device),
            ram,
            queue: queues.remove(0),
            log: logged.then(|| Arc::new(MmapRegion::new(4096).unwrap())),
            pending: HashMap::new(),
            next_token: 0,
            failed: 0,
            packed,
            ctx,
        };
        model.start(if packed { PACKED_START } else { 0 }, None);
        model
    }

    fn device(&self) -> &VirtioBlk {
        self.device.as_ref().unwrap()
    }

    fn start(&mut self, next_index: u16, paused: Option<PausedQueue>) {
        let log = self.log.as_ref().map(|region| match self.packed {
            true => RequestLog::from(PackedLog::new(Arc::clone(region), 0, SIZE)),
            false => InflightLog::new(Arc::clone(region), 0, SIZE).into(),
        });
        let layout = VirtqueueLayout { next_index, ..self.queue.layout() };
        let (memory, earlier) = (self.ram.memory(), Earlier { log, paused, dirty: None });
        let device = self.device();
        device.continue_queue(&self.ctx, 0, memory, layout, Interrupt::None, earlier).unwrap();
        self.queue.set_kick(self.device().remote_kick(0).unwrap());
    }

    fn submit(&mut self) {
        let token = self.next_token;
        let buffer = self.ram.alloc(512, 512).unwrap();
        self.ram.write(buffer, &[token as u8 | 1; 512]);
        if self.queue.write(sector_of(token), buffer, token).is_ok() {
            self.pending.insert(token, buffer);
            self.next_token += 1;
        }
    }

    fn reap(&mut self) {
        while let Some(completion) = self.queue.reap() {
            let token = completion.token;
            assert!(self.pending.remove(&token).is_some(), "{token} is answered twice");
            match completion.status {
                BlkStatus::Ok => {
                    let at = (sector_of(token) * 512) as usize;
                    assert_eq!(
                        self.disk.data.lock().unwrap()[at],
                        token as u8 | 1,
                        "{token} is lost"
                    );
                }
                status => {
                    assert_eq!(status, BlkStatus::IoErr);
                    assert!(self.log.is_none(), "{token} was in the log");
                    self.failed += 1;
                }
            }
        }
    }

    /// The available ring, which is the driver's alone.
    fn available_entries(&self) -> Vec<u8> {
        if self.packed {
            return Vec::new();
        }
        let mut entries = vec![0; usize::from(SIZE) * 2];
        let at = GuestAddress(self.queue.layout().avail_ring + 4);
        self.ram.memory().read_slice(&mut entries, at).unwrap();
        entries
    }

    fn used_idx(&self) -> u16 {
        let at = GuestAddress(self.queue.layout().used_ring + 2);
        u16::from_le(self.ram.memory().load(at, Ordering::Acquire).unwrap())
    }

    fn resume(&mut self) {
        self.disk.bad_offset.store(u64::MAX, Ordering::Relaxed);
        self.device().backend().resume();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit(count) => {
                (0..count).for_each(|_| self.submit());
                self.queue.kick();
            }
            Step::Poll => drop(self.ctx.try_poll()),
            Step::Settle => settle(&self.ctx),
            Step::Break(ahead) => {
                let offset = sector_of(self.next_token + u64::from(ahead)) * 512;
                self.disk.bad_offset.store(offset, Ordering::Relaxed);
            }
            Step::Resume => self.resume(),
            Step::Stop => {
                let next = self.ctx.run(|co| self.device().co_stop_queue(co, 0)).unwrap();
                assert!(self.log.is_some() || next.next_used == next.next_index);
                self.start(next.next_index, None);
            }
            Step::Pause => {
                let paused = self.ctx.run(|co| self.device().co_pause_queue(co, 0)).unwrap();
                // Where it says is where it goes on.
                self.start(0, Some(paused));
            }
            // Nothing but a log tells where a packed ring goes on.
            Step::Drop if self.packed && self.log.is_none() => {}
            Step::Drop => {
                self.device = None;
                settle(&self.ctx);
                let backend = BlockBackend::new(&self.ctx, "next", Arc::clone(&self.node));
                self.device = Some(VirtioBlk::new(backend, self.config.clone()).unwrap());
                negotiate(self.device(), self.packed);
                // As a driver that knows nothing else.
                self.start(if self.packed { 0 } else { self.used_idx() }, None);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..Default::default() })]

    #[test]
    fn each_request_is_answered_once(
        logged in any::<bool>(),
        packed in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::new(logged, packed);
        for step in steps {
            let submits = matches!(step, Step::Submit(_));
            let before = model.available_entries();
            model.take(step);
            prop_assert!(submits || model.available_entries() == before, "{:?}", step);
            model.reap();
        }
        model.resume();
        settle(&model.ctx);
        model.reap();
        prop_assert!(model.pending.is_empty(), "{:?} are lost", model.pending.keys());
        prop_assert_eq!(model.device().in_flight(), 0);
        model.device().reset(&model.ctx);
    }
}
