//! The life of one request, as the design draws it: six steps, each on the thread it belongs to.
//!
//! The events that the library emits are compared with that picture, in order, so the picture
//! cannot rot. A worker that has to wait for its cue makes the order certain; no clock is involved.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::thread::ThreadId;

use coblk::drivers::File;
use coblk::virtio_blk::guest::Machine;
use coblk::virtio_blk::{BlkStatus, Interrupt};
use coblk::{AioContext, BlockBackend, BlockNode, ThreadPool, WriteFlags};
use coblk_tests::events::{Event, Recording};
use coblk_tests::image_dir;
use coblk_tests::images::{qemu_img_create, qemu_io};

/// Events of the loop's own housekeeping, which come and go with what else is ready.
const HOUSEKEEPING: [&str; 6] = [
    "aio_sleep",
    "aio_arm_idle_timer",
    "aio_notify",
    "aio_poll",
    "thread_pool_worker_start",
    "thread_pool_worker_end",
];

/// A context with a worker that starts with the first job, and waits then until it is told.
struct Scene<'a> {
    recording: &'a Recording,
    ctx: AioContext,
    backend: BlockBackend,
}

impl Scene<'_> {
    fn new<'a>(recording: &'a Recording, image: &Path) -> Scene<'a> {
        let pool = ThreadPool::new(0, 1).expect("limits that make sense");
        let ctx = AioContext::test_builder().thread_pool(pool).build().expect("a context");
        // Without reads in place, which need no worker.
        let file = File::options().in_place_reads(false).open(image).expect("an image");
        let node = BlockNode::new("disk0", file);
        let backend = BlockBackend::new(&ctx, "drive0", node);
        recording.take();
        recording.hold("thread_pool_worker_start");
        Scene { recording, ctx, backend }
    }

    /// Submits with `submit`, goes on with other work, lets the worker go, and polls to the end.
    fn play(&self, submit: impl FnOnce(&Self, Box<dyn FnOnce()>)) {
        let finished = Rc::new(Cell::new(false));
        let at_the_end = Rc::clone(&finished);
        submit(
            self,
            Box::new(move || {
                tracing::info!(name: "callback", target: "test", "the request has completed");
                at_the_end.set(true);
            }),
        );
        tracing::info!(name: "submitted", target: "test", "control is back");
        // The loop is free while the request is under way.
        self.ctx
            .schedule(|_| tracing::info!(name: "other_work", target: "test", "a bottom half ran"));
        self.ctx.try_poll();
        assert!(!finished.get(), "completed, though its worker was never let go");
        tracing::info!(name: "cue", target: "test", "the worker may go on");
        self.recording.release();
        self.ctx.run_until(|| finished.get());
    }
}

/// One line an event: where, and what.
fn picture(home: ThreadId, events: &[Event]) -> Vec<String> {
    events
        .iter()
        .filter(|event| !HOUSEKEEPING.contains(&event.name))
        .map(|event| {
            let place = if event.thread == home { "home" } else { "worker" };
            format!("{place}: {}", event.name)
        })
        .collect()
}

#[test]
fn a_read_takes_six_steps() {
    let recording = Recording::begin();
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", 1 << 20);
    qemu_io(&image, &["write -P 0xa5 64k 4k"]);

    let scene = Scene::new(&recording, &image);
    scene.play(|scene, finished| {
        scene.backend.aio_preadv(&scene.ctx, 65536, vec![0u8; 4096], |_, result, buffer| {
            result.expect("a read within the image");
            assert!(buffer.iter().all(|byte| *byte == 0xa5), "not what qemu-io wrote");
            finished();
        });
    });
    let events = recording.take();

    assert_story(
        &events,
        &[
            // 1  a request, a coroutine for it, and down through the layers
            "home: blk_aio_preadv",
            "home: aio_coroutine_enter",
            "home: blk_co_preadv",
            "home: bdrv_co_preadv",
            "home: file_co_preadv",
            // 2  the driver hands a job to a worker
            "home: thread_pool_submit_co",
            // 3  the coroutine suspends, and control is back in the main loop
            "home: coroutine_yield",
            "home: submitted",
            "home: other_work",
            "home: cue",
            // 4  the worker finishes the job
            "worker: thread_pool_complete",
            // 5  the bottom half, on the home thread, resumes the coroutine
            "home: thread_pool_completion_bh",
            "home: aio_coroutine_enter",
            // 6  through the same frames: the request completes, the coroutine ends
            "home: blk_aio_complete",
            "home: callback",
            "home: coroutine_terminate",
        ],
    );
    assert_same_coroutine(&events, "blk_aio_preadv");
    assert_layers(
        &events,
        &[
            ("blk_co_preadv", "coblk_block::backend::coroutine"),
            ("bdrv_co_preadv", "coblk_block::io::read"),
            ("file_co_preadv", "coblk_block::protocol::file"),
            ("thread_pool_submit_co", "coblk_aio::co::blocking"),
        ],
    );
}

#[test]
fn a_write_takes_the_same_steps() {
    let recording = Recording::begin();
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", 1 << 20);

    let scene = Scene::new(&recording, &image);
    scene.play(|scene, finished| {
        let data = vec![0x5a; 8192];
        let flags = WriteFlags::empty();
        scene.backend.aio_pwritev(&scene.ctx, 4096, data, flags, |_, result, _| {
            result.expect("a write within the image");
            finished();
        });
    });
    let events = recording.take();

    assert_story(
        &events,
        &[
            "home: blk_aio_pwritev",
            "home: aio_coroutine_enter",
            "home: blk_co_pwritev",
            "home: bdrv_co_pwritev",
            "home: file_co_pwritev",
            "home: thread_pool_submit_co",
            "home: coroutine_yield",
            "home: submitted",
            "home: other_work",
            "home: cue",
            "worker: thread_pool_complete",
            "home: thread_pool_completion_bh",
            "home: aio_coroutine_enter",
            "home: blk_aio_complete",
            "home: callback",
            "home: coroutine_terminate",
        ],
    );
    assert_same_coroutine(&events, "blk_aio_pwritev");
    qemu_io(&image, &["read -P 0 0 4k", "read -P 0x5a 4k 8k", "read -P 0 12k 4k"]);
}

#[test]
fn a_guests_read_takes_them_between_two_rings() {
    let recording = Recording::begin();
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", 1 << 20);
    qemu_io(&image, &["write -P 0xa5 64k 4k"]);

    let scene = Scene::new(&recording, &image);
    let mut machine = Machine::new(&scene.ctx, scene.backend.clone()).expect("a machine");
    let buffer = machine.ram.alloc(4096, 512).expect("guest memory");
    recording.take();
    scene.play(|_, finished| {
        let finished = Cell::new(Some(finished));
        let interrupt = Interrupt::callback(move |_| finished.take().expect("one interrupt")());
        machine.device.set_interrupt(0, interrupt).expect("a queue that runs");
        machine.queues[0].read(128, buffer, 7).expect("room on the ring");
        machine.queues[0].kick();
    });
    let events = recording.take();

    assert_story(
        &events,
        &[
            "home: submitted",
            // 1  the kick reaches the main loop; a request, a coroutine for it, the layers
            "home: virtio_queue_notify",
            "home: virtqueue_pop",
            "home: virtio_blk_handle_read",
            "home: virtio_blk_submit_multireq",
            "home: aio_coroutine_enter",
            "home: blk_co_preadv",
            "home: bdrv_co_preadv",
            "home: file_co_preadv",
            // 2, 3
            "home: thread_pool_submit_co",
            "home: coroutine_yield",
            "home: other_work",
            "home: cue",
            // 4
            "worker: thread_pool_complete",
            // 5
            "home: thread_pool_completion_bh",
            "home: aio_coroutine_enter",
            // 6  into the used ring; the coroutine ends; the guest is told, once for many
            "home: virtio_blk_rw_complete",
            "home: virtio_blk_req_complete",
            "home: coroutine_terminate",
            "home: virtio_notify",
            "home: callback",
        ],
    );
    assert_layers(&events, &[("virtio_queue_notify", "coblk_virtio_blk::device")]);
    let completion = machine.queues[0].reap().expect("a completion in the used ring");
    assert_eq!((completion.token, completion.status), (7, BlkStatus::Ok));
    let mut data = [0; 4096];
    machine.ram.read(buffer, &mut data);
    assert_eq!(data, [0xa5; 4096], "not what qemu-io wrote");
}

/// Compares with the picture.
#[track_caller]
fn assert_story(events: &[Event], expected: &[&str]) {
    let story = picture(std::thread::current().id(), events);
    assert_eq!(story, expected, "the life of the request");
}

/// The coroutine that was resumed at the end is the one that was made for the request.
#[track_caller]
fn assert_same_coroutine(events: &[Event], name: &str) {
    let of_coroutines = ["aio_coroutine_enter", "coroutine_yield", "blk_aio_complete"];
    for event in events.iter().filter(|event| of_coroutines.contains(&event.name)) {
        assert_eq!(event.field("coroutine"), name, "{event:?}");
    }
}

/// Each layer is the file where the design says a newcomer finds it.
#[track_caller]
fn assert_layers(events: &[Event], expected: &[(&str, &str)]) {
    for (name, module) in expected {
        let event = events.iter().find(|event| event.name == *name);
        assert_eq!(event.expect(name).target, *module, "where {name} comes from");
    }
}
