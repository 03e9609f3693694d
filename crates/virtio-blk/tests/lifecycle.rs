//! Kicks and interrupts, queues on several threads, stopping, resetting and going away.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use coblk_aio::{AioContext, EventNotifier};
use coblk_block::{BlockBackend, BlockNode, drivers::Null};
use coblk_virtio_blk::guest::{GuestBuffer, GuestRequest, Machine, MachineBuilder, QueueOptions};
use coblk_virtio_blk::{BlkStatus, Interrupt, VirtioBlk, VirtioBlkConfig, VirtioBlkError, feature};
use util::{TestDisk, backend, settle};
use vm_memory::{Bytes, GuestAddress};

fn deferred_disk() -> TestDisk {
    TestDisk { deferred: true, ..TestDisk::new(8192) }
}

/// A machine on a null device, with one buffer, whose interrupts are counted.
fn counting(builder: MachineBuilder) -> (AioContext, Machine, GuestBuffer, Rc<Cell<u32>>) {
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("null", Null::new(1 << 30));
    let machine = builder.build(&ctx, BlockBackend::new(&ctx, "drive", node)).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let count = Rc::new(Cell::new(0));
    let counter = Rc::clone(&count);
    let interrupt = Interrupt::callback(move |_| counter.set(counter.get() + 1));
    machine.device.set_interrupt(0, interrupt).unwrap();
    (ctx, machine, buffer, count)
}

/// Runs the loop until the guests' threads have ended, also when they panic.
fn serve<R>(ctx: &AioContext, guests: Vec<JoinHandle<R>>) -> Vec<R> {
    while !guests.iter().all(JoinHandle::is_finished) {
        ctx.poll_timeout(Duration::from_millis(1));
    }
    guests.into_iter().map(|guest| guest.join().unwrap()).collect()
}

#[test]
fn a_batch_is_one_kick_and_one_interrupt() {
    for without in [0, feature::EVENT_IDX] {
        let builder = Machine::builder().without_features(without);
        let (ctx, mut machine, buffer, interrupts) = counting(builder);
        settle(&ctx);
        let queue = &mut machine.queues[0];
        assert_eq!(queue.reap(), None);
        for round in 1..=100 {
            for token in 0..32 {
                queue.read(64 * token, buffer, token).unwrap();
            }
            assert!(queue.kick(), "the device waits for a kick");
            settle(&ctx);
            let mut tokens: Vec<_> =
                std::iter::from_fn(|| queue.reap()).map(|it| it.token).collect();
            tokens.sort_unstable();
            assert_eq!(tokens, (0..32).collect::<Vec<_>>());
            assert_eq!(interrupts.get(), round);
        }
    }
}

/// As deep as a queue can be, each request of three descriptors, and all in flight at once.
#[test]
fn a_queue_of_1024_entries_is_served_when_it_is_full() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, deferred_disk());
    for indirect_segments in [0, 1] {
        let options = QueueOptions { size: 1024, indirect_segments, ..Default::default() };
        let mut machine = Machine::builder().queue(options).build(&ctx, backend.clone()).unwrap();
        let buffer = machine.ram.alloc(512, 512).unwrap();
        let queue = &mut machine.queues[0];
        for _ in 0..3 {
            let mut submitted = 0;
            // Two apart, so that none joins another.
            while queue.read(submitted % 4000 * 2, buffer, submitted).is_ok() {
                submitted += 1;
            }
            assert!(submitted >= 1024 / 3);
            queue.kick();
            ctx.poll();
            assert_eq!(disk.running.load(Ordering::Relaxed) as u64, submitted);
            settle(&ctx);
            assert_eq!(std::iter::from_fn(|| queue.reap()).count() as u64, submitted);
        }
        machine.device.reset(&ctx);
    }
}

/// A driver in another thread need not wait for the whole batch.
#[test]
fn a_batch_is_shown_and_told_while_it_is_served() {
    const BATCH: u64 = 32;
    for (without, early_interrupts) in [(0, 1), (feature::EVENT_IDX, 1)] {
        let ctx = AioContext::for_test().unwrap();
        let (disk, backend) = backend(&ctx, TestDisk::new(8192));
        let config = VirtioBlkConfig::default().merge_requests(false);
        let builder = Machine::builder().config(config).without_features(without);
        let mut machine = builder.build(&ctx, backend).unwrap();
        let interrupt = EventNotifier::new().unwrap();
        machine.device.set_interrupt(0, interrupt.try_clone().unwrap()).unwrap();
        let buffer = machine.ram.alloc(512, 512).unwrap();
        settle(&ctx);
        let queue = &mut machine.queues[0];
        assert_eq!(queue.reap(), None);
        // What the driver would see, were it to look when a request begins.
        let (used_ring, memory) = (queue.layout().used_ring, Arc::clone(machine.ram.memory()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let told = interrupt.try_clone().unwrap();
        *disk.on_request.lock().unwrap() = Some(Box::new(move || {
            let used_idx = memory.load(GuestAddress(used_ring + 2), Ordering::Acquire).unwrap();
            log.lock().unwrap().push((u16::from_le(used_idx), told.test_and_clear().unwrap()));
        }));
        for token in 0..BATCH {
            queue.read(64 * token, buffer, token).unwrap();
        }
        queue.kick();
        settle(&ctx);
        *disk.on_request.lock().unwrap() = None;
        let seen = seen.lock().unwrap();
        for (done, (shown, told)) in seen.iter().enumerate() {
            assert!(usize::from(*shown) <= done);
            if without == 0 {
                assert!(usize::from(*shown) + 4 > done, "{shown} of {done} are shown");
            }
            assert_eq!(*told, done == 1, "told before request {done}");
        }
        assert_eq!(seen.iter().filter(|(_, told)| *told).count(), early_interrupts);
        // With event indices a driver that has not looked yet wants no more.
        assert_eq!(interrupt.test_and_clear().unwrap(), without != 0);
        assert_eq!(std::iter::from_fn(|| queue.reap()).count() as u64, BATCH);
    }
}

#[test]
fn deferred_completions_share_an_interrupt() {
    let ctx = AioContext::for_test().unwrap();
    let (_disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let count = Rc::new(Cell::new(0));
    let counter = Rc::clone(&count);
    let interrupt = Interrupt::callback(move |_| counter.set(counter.get() + 1));
    machine.device.set_interrupt(0, interrupt).unwrap();
    let queue = &mut machine.queues[0];
    for token in 0..32 {
        queue.read(64 * token, buffer, token).unwrap();
    }
    queue.kick();
    settle(&ctx);
    assert_eq!(count.get(), 1);
    assert_eq!(std::iter::from_fn(|| queue.reap()).count(), 32);
}

#[test]
fn a_guest_that_polls_is_not_interrupted() {
    let options = QueueOptions { interrupts: false, ..Default::default() };
    let builder = Machine::builder().queue(options).without_features(feature::EVENT_IDX);
    let (ctx, mut machine, buffer, interrupts) = counting(builder);
    for token in 0..1000 {
        machine.queues[0].read(0, buffer, token).unwrap();
        machine.queues[0].kick();
        settle(&ctx);
        assert_eq!(machine.queues[0].reap().map(|it| it.token), Some(token));
    }
    assert_eq!(interrupts.get(), 0);
}

#[test]
fn with_event_idx_an_interrupt_comes_when_asked_for() {
    let (ctx, mut machine, buffer, interrupts) = counting(Machine::builder());
    let queue = &mut machine.queues[0];
    let go = |queue: &mut coblk_virtio_blk::guest::GuestQueue| {
        queue.read(0, buffer, 0).unwrap();
        queue.kick();
        settle(&ctx);
        interrupts.take()
    };
    assert_eq!(queue.reap(), None);
    assert_eq!(go(queue), 1);
    // Not reaped to the end: the guest has not asked again.
    assert_eq!((go(queue), go(queue)), (0, 0));
    assert_eq!(std::iter::from_fn(|| queue.reap()).count(), 3);
    assert_eq!(go(queue), 1);
}

#[test]
fn an_interrupt_callback_reaps_and_submits_more() {
    let (ctx, mut machine, buffer, _) = counting(Machine::builder());
    let queue = Rc::new(RefCell::new(machine.queues.remove(0)));
    let done = Rc::new(Cell::new(0u32));
    let callback = {
        let (queue, done) = (Rc::clone(&queue), Rc::clone(&done));
        move |_: &AioContext| {
            let mut queue = queue.borrow_mut();
            while let Some(completion) = queue.reap() {
                assert_eq!(completion.status, BlkStatus::Ok);
                done.set(done.get() + 1);
                queue.read(0, buffer, 0).unwrap();
            }
            queue.kick();
        }
    };
    machine.device.set_interrupt(0, Interrupt::callback(callback)).unwrap();
    for _ in 0..8 {
        queue.borrow_mut().read(0, buffer, 0).unwrap();
    }
    queue.borrow_mut().kick();
    ctx.run_until(|| done.get() >= 10_000);
    machine.device.reset(&ctx);
}

#[test]
fn an_interrupt_callback_may_poll_for_another_request() {
    let (ctx, mut machine, buffer, _) = counting(Machine::builder());
    let queue = Rc::new(RefCell::new(machine.queues.remove(0)));
    let nested = Rc::new(Cell::new(false));
    let callback = {
        let (queue, nested) = (Rc::clone(&queue), Rc::clone(&nested));
        move |ctx: &AioContext| {
            if !nested.replace(true) {
                let request = GuestRequest::Read { sector: 0, buffers: &[buffer] };
                assert_eq!(queue.borrow_mut().call(ctx, request).status, BlkStatus::Ok);
            }
        }
    };
    machine.device.set_interrupt(0, Interrupt::callback(callback)).unwrap();
    queue.borrow_mut().read(0, buffer, 1).unwrap();
    queue.borrow_mut().kick();
    settle(&ctx);
    assert!(nested.get());
    assert_eq!(queue.borrow_mut().reap().map(|it| it.token), Some(1));
}

#[test]
fn queues_are_driven_from_other_threads() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, deferred_disk());
    let config = VirtioBlkConfig::default().num_queues(3);
    let mut machine = Machine::builder().config(config).build(&ctx, backend).unwrap();
    assert_ne!(machine.device.features() & feature::MQ, 0);
    let threads: Vec<_> = (0u64..)
        .zip(machine.queues.drain(..))
        .map(|(index, mut queue)| {
            let ram = machine.ram.clone();
            std::thread::spawn(move || {
                let buffer = ram.alloc(4096, 4096).unwrap();
                for round in 0..300u64 {
                    let sector = index * 2000 + round % 100 * 8;
                    let data = [(index * 80 + round % 80) as u8; 4096];
                    ram.write(buffer, &data);
                    let buffers = &[buffer];
                    let write = queue.call_blocking(GuestRequest::Write { sector, buffers });
                    ram.write(buffer, &[0; 4096]);
                    let read = queue.call_blocking(GuestRequest::Read { sector, buffers });
                    assert_eq!((write.status, read.status), (BlkStatus::Ok, BlkStatus::Ok));
                    let mut back = [0; 4096];
                    ram.read(buffer, &mut back);
                    assert_eq!(back, data);
                }
            })
        })
        .collect();
    serve(&ctx, threads);
    assert_eq!(disk.take_seen().len(), 3 * 300 * 2);
}

#[test]
fn another_thread_keeps_many_in_flight() {
    const REQUESTS: u64 = 50_000;
    let (ctx, mut machine, buffer, _) = counting(Machine::builder());
    let mut queue = machine.queues.remove(0);
    let line = Arc::clone(queue.interrupt_line());
    machine.device.set_interrupt(0, Interrupt::callback(move |_| line.raise())).unwrap();
    let guest = std::thread::spawn(move || {
        let (mut submitted, mut done) = (0, 0);
        while done < REQUESTS {
            while submitted < REQUESTS && queue.read(submitted % 1000, buffer, submitted).is_ok() {
                submitted += 1;
            }
            queue.kick();
            let mut any = false;
            while let Some(completion) = queue.reap() {
                assert_eq!(completion.status, BlkStatus::Ok);
                done += 1;
                any = true;
            }
            assert!(any || queue.wait(Duration::from_secs(30)), "a lost interrupt, or a lost kick");
        }
        done
    });
    assert_eq!(serve(&ctx, vec![guest]), [REQUESTS]);
}

#[test]
fn kicks_and_interrupts_through_eventfds() {
    let (ctx, mut machine, buffer, _) = counting(Machine::builder());
    let kick = EventNotifier::new().unwrap();
    let interrupt = EventNotifier::new().unwrap();
    machine.device.watch_notifier(&ctx, 0, &kick).unwrap();
    machine.device.set_interrupt(0, interrupt.try_clone().unwrap()).unwrap();
    settle(&ctx);
    let queue = &mut machine.queues[0];
    assert_eq!(queue.reap(), None);
    for token in 0..100 {
        queue.read(0, buffer, token).unwrap();
        // Also through its own kick; either may be first.
        queue.kick();
        kick.set().unwrap();
        ctx.run_until(|| interrupt.test_and_clear().unwrap());
        assert_eq!(queue.reap().map(|it| it.token), Some(token));
        assert_eq!(queue.reap(), None);
    }
    machine.device.reset(&ctx);
    kick.set().unwrap();
    assert!(!ctx.try_poll(), "nobody listens any more");
}

#[test]
fn a_reset_waits_for_requests_in_flight() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let queue = &mut machine.queues[0];
    for token in 0..8 {
        queue.read(100 * token, buffer, token).unwrap();
    }
    queue.kick();
    ctx.poll();
    assert_eq!(machine.device.in_flight(), 8);
    queue.read(0, buffer, 8).unwrap();
    queue.kick();
    machine.device.reset(&ctx);
    assert_eq!((machine.device.in_flight(), disk.running.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(std::iter::from_fn(|| queue.reap()).count(), 8, "the ninth was not taken");
    assert!(matches!(machine.device.remote_kick(0), Err(VirtioBlkError::NotRunning(0))));
    assert_eq!(Arc::strong_count(machine.ram.memory()), 2, "the guest's own");
}

#[test]
fn a_stopped_queue_goes_on_where_it_stopped() {
    let ctx = AioContext::for_test().unwrap();
    let (_disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let queue = &mut machine.queues[0];
    let mut layout = queue.layout();
    for round in 0..400u64 {
        queue.read(round, buffer, round).unwrap();
        queue.kick();
        ctx.poll();
        let next_index = ctx.run(|co| machine.device.co_stop_queue(co, 0)).unwrap().next_index;
        assert_eq!(u64::from(next_index), round + 1);
        assert_eq!(queue.reap().map(|it| it.token), Some(round));
        layout.next_index = next_index;
        let (device, memory) = (&machine.device, machine.ram.memory());
        device.start_queue(&ctx, 0, memory, layout, Interrupt::None).unwrap();
        queue.set_kick(device.remote_kick(0).unwrap());
        settle(&ctx);
    }
}

#[test]
fn what_is_available_before_the_start_is_served() {
    let (ctx, mut machine, buffer, _) = counting(Machine::builder());
    machine.device.reset(&ctx);
    let queue = &mut machine.queues[0];
    queue.read(0, buffer, 7).unwrap();
    queue.kick();
    let (device, memory) = (&machine.device, machine.ram.memory());
    device.start_queue(&ctx, 0, memory, queue.layout(), Interrupt::None).unwrap();
    settle(&ctx);
    assert_eq!(queue.reap().map(|it| it.token), Some(7));
}

#[test]
fn a_change_of_capacity_is_told() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, TestDisk::new(100));
    let node = backend.node().unwrap();
    let machine = Machine::new(&ctx, backend).unwrap();
    let told = Rc::new(Cell::new(0));
    let counter = Rc::clone(&told);
    machine
        .device
        .set_config_interrupt(Interrupt::callback(move |_| counter.set(counter.get() + 1)));
    machine.device.update_capacity(&ctx).unwrap();
    assert_eq!((told.get(), machine.device.capacity_sectors()), (0, 100));
    disk.data.lock().unwrap().resize(200 * 512 + 511, 0);
    ctx.run(|co| node.co_refresh_length(co)).unwrap();
    settle(&ctx);
    machine.device.update_capacity(&ctx).unwrap();
    assert_eq!((told.get(), machine.device.capacity_sectors()), (1, 200));
    assert_eq!(machine.device.config_space()[..8], 200u64.to_le_bytes());
}

#[test]
fn mistakes_in_setting_up_are_named() {
    let (ctx, machine, _, _) = counting(Machine::builder());
    let device = &machine.device;
    let (memory, layout) = (machine.ram.memory(), machine.queues[0].layout());
    let start = |index, layout| {
        device.start_queue(&ctx, index, memory, layout, Interrupt::None).unwrap_err().to_string()
    };
    assert_eq!(start(0, layout), "queue 0 runs already");
    assert_eq!(start(1, layout), "there is no queue 1: the device has 1");
    device.reset(&ctx);
    let with = |change: &dyn Fn(&mut coblk_virtio_blk::VirtqueueLayout)| {
        let mut layout = layout;
        change(&mut layout);
        start(0, layout)
    };
    assert!(with(&|it| it.size = 100).contains("power of two"));
    assert!(with(&|it| it.size = 2048).contains("above the maximum"));
    assert!(with(&|it| it.size = 0).contains("power of two"));
    assert!(with(&|it| it.desc_table += 8).contains("descriptor table is not aligned"));
    assert!(with(&|it| it.avail_ring += 1).contains("available ring is not aligned"));
    assert!(with(&|it| it.used_ring += 2).contains("used ring is not aligned"));
    assert!(with(&|it| it.used_ring = 1 << 40).contains("outside guest memory"));
    assert!(with(&|it| it.next_index = 1000).contains("available index jumped"));
    assert!(device.negotiate(device.features() | 1 << 60).is_err());
    assert!(device.negotiate(feature::FLUSH).unwrap_err().to_string().contains("VERSION_1"));
    let empty = BlockBackend::empty(&ctx, "empty");
    assert!(matches!(
        VirtioBlk::new(empty, VirtioBlkConfig::default()),
        Err(VirtioBlkError::Backend(_))
    ));
}
