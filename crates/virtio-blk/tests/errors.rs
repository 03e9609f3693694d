//! What the device does with failures: error policies, counts, and a reset of a stopped device.

mod util;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::AioContext;
use coblk_block::{BlockBackend, ErrorAction, ErrorPolicies, ErrorPolicy, IoStatus, RequestKind};
use coblk_virtio_blk::guest::{Completion, GuestQueue, GuestRequest, Machine};
use coblk_virtio_blk::{BlkStatus, Interrupt, VirtioBlk, VirtioBlkConfig, VirtqueueLayout};
use util::{Seen, TestDisk, backend, settle};

struct Scene {
    ctx: AioContext,
    disk: Arc<TestDisk>,
    machine: Machine,
}

fn scene(policy: ErrorPolicy) -> Scene {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, TestDisk { deferred: true, ..TestDisk::new(8192) });
    let policies = ErrorPolicies { read: policy, write: policy };
    let config = VirtioBlkConfig::default().error_policies(Some(policies));
    let machine = Machine::builder().config(config).build(&ctx, backend).unwrap();
    Scene { ctx, disk, machine }
}

impl Scene {
    /// Writes to 8 neighbouring sectors, of which the fourth is bad, and to one far away.
    fn write_nine(&mut self) {
        self.write_nine_around(3 * 512);
    }

    fn write_nine_around(&mut self, bad_offset: u64) {
        self.disk.bad_offset.store(bad_offset, Ordering::Relaxed);
        for (token, sector) in (0..8).chain([1000]).enumerate() {
            let buffer = self.machine.ram.alloc(512, 512).unwrap();
            self.machine.ram.write(buffer, &[token as u8 + 1; 512]);
            let request = GuestRequest::Write { sector, buffers: &[buffer] };
            self.machine.queues[0].submit(request, token as u64).unwrap();
        }
        self.machine.queues[0].kick();
        settle(&self.ctx);
    }

    fn answers(&mut self) -> Vec<(u64, BlkStatus)> {
        let queue = &mut self.machine.queues[0];
        let completions = std::iter::from_fn(|| queue.reap());
        let mut answers: Vec<_> =
            completions.map(|Completion { token, status, .. }| (token, status)).collect();
        answers.sort_unstable_by_key(|(token, _)| *token);
        answers
    }

    fn status(&self) -> IoStatus {
        self.machine.device.backend().io_status()
    }
}

fn all_nine() -> Vec<(u64, BlkStatus)> {
    (0..9).map(|token| (token, BlkStatus::Ok)).collect()
}

#[test]
fn a_stopped_device_answers_when_it_is_resumed() {
    let mut scene = scene(ErrorPolicy::Stop);
    scene.write_nine();
    assert_eq!(scene.status(), IoStatus::Failed);
    // Those before it, and what was on its way already.
    assert_eq!(scene.answers(), [0, 1, 2, 8].map(|token| (token, BlkStatus::Ok)));
    assert_eq!(scene.machine.device.in_flight(), 5);
    // Nothing new is begun meanwhile.
    scene.disk.take_seen();
    scene.machine.queues[0].submit(GuestRequest::Flush, 99).unwrap();
    scene.machine.queues[0].kick();
    settle(&scene.ctx);
    assert!(scene.disk.take_seen().is_empty());
    // It fails again, and stops again.
    scene.machine.device.backend().resume();
    settle(&scene.ctx);
    assert_eq!((scene.status(), scene.machine.device.in_flight()), (IoStatus::Failed, 5));
    scene.disk.bad_offset.store(u64::MAX, Ordering::Relaxed);
    scene.machine.device.backend().resume();
    settle(&scene.ctx);
    let expected = [3, 4, 5, 6, 7, 99].map(|token| (token, BlkStatus::Ok));
    let answers = scene.answers();
    // The flush may have gone ahead of the writes, which were not answered.
    assert_eq!(answers.iter().filter(|(token, _)| *token == 99).count(), 1);
    assert_eq!(answers, expected);
    for sector in 0..8 {
        assert_eq!(scene.disk.data.lock().unwrap()[sector * 512], sector as u8 + 1);
    }
}

#[test]
fn a_reset_ends_what_a_stopped_device_holds() {
    let mut scene = scene(ErrorPolicy::Stop);
    scene.write_nine();
    assert_eq!(scene.machine.device.in_flight(), 5);
    scene.machine.device.reset(&scene.ctx);
    assert_eq!(scene.machine.device.in_flight(), 0);
    let backend = scene.machine.device.backend();
    assert_eq!((backend.held_requests(), scene.status()), (0, IoStatus::Failed));
}

#[test]
fn reported_and_ignored_errors_reach_only_their_own_requests() {
    let mut scene_reporting = scene(ErrorPolicy::Report);
    scene_reporting.write_nine();
    let mut expected = all_nine();
    expected[3].1 = BlkStatus::IoErr;
    assert_eq!(scene_reporting.answers(), expected);
    let mut scene_ignoring = scene(ErrorPolicy::Ignore);
    scene_ignoring.write_nine();
    assert_eq!(scene_ignoring.answers(), all_nine());
}

#[test]
fn each_request_of_a_run_that_fails_is_counted_and_told_of_by_itself() {
    for (bad, failed) in [(3 * 512, 1), (u64::MAX, 0)] {
        let mut scene = scene(ErrorPolicy::Report);
        let told = Rc::new(Cell::new(0));
        let tell = Rc::clone(&told);
        scene.machine.device.backend().set_error_listener(move |_, _, event| {
            assert_eq!((event.kind, event.action), (RequestKind::Write, ErrorAction::Report));
            tell.set(tell.get() + 1);
        });
        scene.write_nine_around(bad);
        let statistics = scene.machine.device.backend().statistics();
        let writes = statistics.of(RequestKind::Write);
        assert_eq!((writes.failed, told.get()), (failed, failed));
        assert_eq!(writes.operations + writes.merged + failed, 9);
        assert_eq!(writes.merged, if failed > 0 { 0 } else { 7 });
        assert_eq!(writes.bytes, (9 - failed) * 512);
        assert_eq!((statistics.queue_depth(), writes.invalid), (0, 0));
    }
}

#[test]
fn a_run_that_waits_at_a_stopped_backend_ends_untried_with_a_reset() {
    let mut scene = scene(ErrorPolicy::Stop);
    scene.write_nine();
    scene.answers();
    scene.disk.bad_offset.store(u64::MAX, Ordering::Relaxed);
    scene.disk.take_seen();
    for (token, sector) in (2000..2004).enumerate() {
        let buffer = scene.machine.ram.alloc(512, 512).unwrap();
        let request = GuestRequest::Write { sector, buffers: &[buffer] };
        scene.machine.queues[0].submit(request, token as u64).unwrap();
    }
    scene.machine.queues[0].kick();
    settle(&scene.ctx);
    assert_eq!(scene.machine.device.backend().held_requests(), 2);
    scene.machine.device.reset(&scene.ctx);
    let is_new = |seen: &Seen| matches!(seen, Seen::Write { offset, .. } if *offset >= 2000 * 512);
    assert!(!scene.disk.take_seen().iter().any(is_new));
    assert_eq!(scene.machine.device.in_flight(), 0);
}

#[test]
fn a_queue_that_stops_takes_back_what_is_held_and_the_others_keep_theirs() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, TestDisk { deferred: true, ..TestDisk::new(8192) });
    let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
    let error_policies = Some(policies);
    let config = VirtioBlkConfig::default().num_queues(2).error_policies(error_policies);
    let mut machine = Machine::builder().config(config).build(&ctx, backend).unwrap();
    disk.bad_offset.store(0, Ordering::Relaxed);
    for (queue, sector) in [(0, 0), (0, 8), (1, 16), (1, 17)] {
        let buffer = machine.ram.alloc(512, 512).unwrap();
        let request = GuestRequest::Write { sector, buffers: &[buffer] };
        machine.queues[queue].submit(request, sector).unwrap();
        machine.queues[queue].kick();
        settle(&ctx);
    }
    // The second was held before it was tried, as were those on the other queue.
    let backend = machine.device.backend();
    assert_eq!((machine.device.in_flight(), backend.held_requests()), (4, 4));
    let stopped_at = ctx.run(|co| machine.device.co_stop_queue(co, 0)).unwrap();
    assert_eq!(stopped_at.next_index, 0);
    settle(&ctx);
    assert_eq!((machine.device.in_flight(), backend.held_requests()), (2, 2));
    disk.bad_offset.store(u64::MAX, Ordering::Relaxed);
    backend.resume();
    settle(&ctx);
    let tokens = |queue: &mut GuestQueue| -> Vec<u64> {
        std::iter::from_fn(|| queue.reap())
            .inspect(|it| assert_eq!(it.status, BlkStatus::Ok))
            .map(|it| it.token)
            .collect()
    };
    assert_eq!(tokens(&mut machine.queues[1]), [16, 17]);
    assert!(tokens(&mut machine.queues[0]).is_empty());
    let (memory, layout) = (machine.ram.memory(), machine.queues[0].layout());
    machine.device.start_queue(&ctx, 0, memory, layout, Interrupt::None).unwrap();
    settle(&ctx);
    assert_eq!(tokens(&mut machine.queues[0]), [0, 8]);
    let writes = machine.device.backend().statistics();
    let writes = writes.of(RequestKind::Write);
    assert_eq!((writes.operations, writes.failed), (4, 0), "each is counted once");
}

/// The next device is to find the requests that were held.
#[test]
fn a_device_that_goes_away_gives_back_what_is_held() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, TestDisk { deferred: true, ..TestDisk::new(8192) });
    let policies = ErrorPolicies { read: ErrorPolicy::Stop, write: ErrorPolicy::Stop };
    let config = VirtioBlkConfig::default().error_policies(Some(policies));
    let node = Arc::clone(&backend.node().unwrap());
    let mut machine = Machine::builder().config(config.clone()).build(&ctx, backend).unwrap();
    disk.bad_offset.store(0, Ordering::Relaxed);
    // The first fails and is held, the second is answered, the third is held.
    for sectors in [vec![0, 8], vec![16]] {
        for sector in sectors {
            let buffer = machine.ram.alloc(512, 512).unwrap();
            let request = GuestRequest::Write { sector, buffers: &[buffer] };
            machine.queues[0].submit(request, sector).unwrap();
        }
        machine.queues[0].kick();
        settle(&ctx);
    }
    let mut answers = || machine.queues[0].reap().map(|it| (it.token, it.status));
    assert_eq!((answers(), answers()), (Some((8, BlkStatus::Ok)), None));
    assert_eq!(machine.device.in_flight(), 2);
    drop(machine.device);
    settle(&ctx);
    assert_eq!(
        (answers(), answers()),
        (Some((0, BlkStatus::IoErr)), None),
        "before an answered one"
    );
    disk.bad_offset.store(u64::MAX, Ordering::Relaxed);
    let device = VirtioBlk::new(BlockBackend::new(&ctx, "next", node), config).unwrap();
    let layout = VirtqueueLayout { next_index: 2, ..machine.queues[0].layout() };
    device.start_queue(&ctx, 0, machine.ram.memory(), layout, Interrupt::None).unwrap();
    settle(&ctx);
    let mut answers = || machine.queues[0].reap().map(|it| (it.token, it.status));
    assert_eq!((answers(), answers()), (Some((16, BlkStatus::Ok)), None));
    device.reset(&ctx);
}

#[test]
fn invalid_requests_are_counted() {
    let mut scene = scene(ErrorPolicy::Report);
    let statistics = scene.machine.device.backend().statistics();
    let invalid = |kind| statistics.of(kind).invalid;
    assert_eq!(RequestKind::ALL.map(invalid), [0; 5]);
    let buffer = [scene.machine.ram.alloc(512, 512).unwrap()];
    let requests = [
        GuestRequest::Read { sector: 8192, buffers: &buffer },
        GuestRequest::Write { sector: u64::MAX, buffers: &buffer },
        GuestRequest::Discard { sector: 8192, sectors: 1 },
        GuestRequest::WriteZeroes { sector: 8191, sectors: 2, unmap: false },
    ];
    for request in requests {
        assert_eq!(scene.machine.call(&scene.ctx, request), BlkStatus::IoErr);
    }
    assert_eq!(RequestKind::ALL.map(invalid), [1, 1, 0, 1, 1]);
}
