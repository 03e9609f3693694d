//! A device, or its context, that is dropped with requests in flight.

mod util;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::{AioContext, EventNotifier};
use coblk_virtio_blk::BlkStatus;
use coblk_virtio_blk::guest::Machine;
use util::{TestDisk, backend, settle};

fn deferred_disk() -> TestDisk {
    TestDisk { deferred: true, ..TestDisk::new(8192) }
}

#[test]
fn a_device_that_goes_away_lets_its_requests_finish() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    machine.queues[0].write(0, buffer, 1).unwrap();
    machine.queues[0].kick();
    ctx.poll();
    assert_eq!(disk.running.load(Ordering::Relaxed), 1);
    drop(machine.device);
    settle(&ctx);
    assert_eq!(disk.running.load(Ordering::Relaxed), 0);
    assert_eq!(machine.queues[0].reap().map(|it| it.status), Some(BlkStatus::Ok));
}

#[test]
fn a_device_that_goes_away_takes_nothing_more() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let (kick, interrupt) = (EventNotifier::new().unwrap(), EventNotifier::new().unwrap());
    machine.device.watch_notifier(&ctx, 0, &kick).unwrap();
    machine.device.set_interrupt(0, interrupt.try_clone().unwrap()).unwrap();
    let queue = &mut machine.queues[0];
    queue.write(0, buffer, 1).unwrap();
    queue.kick();
    ctx.poll();
    assert_eq!(disk.running.load(Ordering::Relaxed), 1);
    drop(machine.device);
    // One in flight keeps the queue alive, which is asked in every way there is.
    queue.write(8, buffer, 2).unwrap();
    queue.kick();
    kick.set().unwrap();
    settle(&ctx);
    assert_eq!(disk.running.load(Ordering::Relaxed), 0);
    assert_eq!(queue.reap().map(|it| (it.token, it.status)), Some((1, BlkStatus::Ok)));
    assert_eq!(queue.reap(), None);
    assert_eq!(disk.take_seen().len(), 1);
    assert!(interrupt.test_and_clear().unwrap(), "the driver is told of the last one");
    kick.set().unwrap();
    assert!(!ctx.try_poll(), "its descriptor is watched no more");
    assert_eq!(Arc::strong_count(machine.ram.memory()), 2, "the guest's own");
}

#[test]
fn an_idle_device_that_goes_away_watches_no_descriptor() {
    let ctx = AioContext::for_test().unwrap();
    let (_disk, backend) = backend(&ctx, TestDisk::new(8192));
    let machine = Machine::new(&ctx, backend).unwrap();
    let kick = EventNotifier::new().unwrap();
    machine.device.watch_notifier(&ctx, 0, &kick).unwrap();
    settle(&ctx);
    drop(machine.device);
    settle(&ctx);
    kick.set().unwrap();
    assert!(!ctx.try_poll());
}

#[test]
fn requests_of_a_context_that_ends_are_answered_with_an_error() {
    let ctx = AioContext::for_test().unwrap();
    let (_disk, backend) = backend(&ctx, deferred_disk());
    let mut machine = Machine::new(&ctx, backend).unwrap();
    let buffer = machine.ram.alloc(512, 512).unwrap();
    let queue = &mut machine.queues[0];
    for token in 0..4 {
        queue.read(100 * token, buffer, token).unwrap();
    }
    queue.kick();
    ctx.poll();
    drop(ctx);
    let statuses: Vec<_> = std::iter::from_fn(|| queue.reap()).map(|it| it.status).collect();
    assert_eq!(statuses, [BlkStatus::IoErr; 4]);
}
