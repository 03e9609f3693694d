//! Which reads are made in place, from the page cache, and which go to the engine. On a system without
//! io_uring these tests fail.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coblk::aio::WaitMode;
use coblk::drivers::{Engine, File, FileOptions};
use coblk::virtio_blk::guest::{Machine, QueueOptions};
use coblk::virtio_blk::{BlkStatus, SECTOR_BYTES, VirtioBlkConfig};
use coblk::{AioContext, AlignedBuffer, BlockBackend, BlockNode, IoVectorMut};
use coblk_tests::events::Recording;
use coblk_tests::image_dir;

const BLOCK: usize = 4096;
const BLOCKS: usize = 100;

/// Written just now, so the page cache has it.
fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    fs::write(&path, (0..BLOCKS).flat_map(|block| [block as u8; BLOCK]).collect::<Vec<u8>>())
        .expect("an image");
    path
}

struct Scene {
    recording: Recording,
    ctx: AioContext,
    backend: Rc<BlockBackend>,
}

impl Scene {
    fn new(wait_mode: WaitMode, options: FileOptions, image: &Path) -> Scene {
        let recording = Recording::begin();
        let ctx = AioContext::test_builder().wait_mode(wait_mode).build().expect("a context");
        assert_eq!(ctx.has_ring(), wait_mode != WaitMode::Epoll);
        let node = BlockNode::new("disk", options.open(image).expect("an image"));
        let backend = Rc::new(BlockBackend::new(&ctx, "drive", node));
        Scene { recording, ctx, backend }
    }

    /// So many reads in one turn of the loop: how many were made in place, by the ring, by workers.
    #[track_caller]
    fn turn(&self, reads: usize) -> [usize; 3] {
        let left = Rc::new(Cell::new(reads));
        let (backend, ended) = (Rc::clone(&self.backend), Rc::clone(&left));
        self.ctx.schedule(move |ctx| {
            for block in 0..reads {
                let buffer = AlignedBuffer::new(BLOCK, BLOCK).expect("memory");
                let ended = Rc::clone(&ended);
                let offset = (block * BLOCK) as u64;
                backend.aio_preadv(ctx, offset, buffer, move |_, result, buffer| {
                    result.expect("a read");
                    assert_eq!(buffer[..], [block as u8; BLOCK]);
                    ended.set(ended.get() - 1);
                });
            }
        });
        self.ctx.run_until(|| left.get() == 0);
        self.seen()
    }

    fn seen(&self) -> [usize; 3] {
        let events = self.recording.take();
        ["file_read_in_place", "luring_co_submit", "thread_pool_submit_co"]
            .map(|name| events.iter().filter(|event| event.name == name).count())
    }

    #[track_caller]
    fn read(&self, offset: usize, bytes: usize) -> [usize; 3] {
        let mut data = vec![0; bytes];
        let target = &mut IoVectorMut::from(&mut data[..]);
        self.backend.preadv(&self.ctx, offset as u64, target).expect("a read");
        self.seen()
    }
}

fn ring() -> FileOptions {
    File::options().engine(Engine::IoUring)
}

#[test]
fn small_turns_read_in_place_and_large_ones_through_the_ring() {
    let dir = image_dir!();
    let image = image(dir.path());
    for (options, max) in [(ring(), 32), (ring().in_place_reads_a_turn(3), 3)] {
        let scene = Scene::new(WaitMode::Auto, options, &image);
        for _ in 0..2 {
            assert_eq!(scene.turn(1), [1, 0, 0]);
            assert_eq!(scene.turn(max), [max, 0, 0]);
            // One that becomes too large is finished by the ring, which has the next ones to itself.
            assert_eq!(scene.turn(max + 5), [max, 5, 0]);
            assert_eq!(scene.turn(max + 1), [0, max + 1, 0]);
            // It is known to be small when it has ended.
            assert_eq!(scene.turn(2), [0, 2, 0]);
            assert_eq!(scene.turn(2), [2, 0, 0]);
        }
    }
}

/// Two queues of one device are kicked in the same turn: their reads are counted together.
#[test]
fn a_device_reads_four_times_as_many_in_place() {
    let dir = image_dir!();
    let recording = Recording::begin();
    let ctx = AioContext::for_test().expect("a context");
    let node = BlockNode::new("disk", ring().open(image(dir.path())).expect("an image"));
    let backend = BlockBackend::new(&ctx, "drive", node);
    let config = VirtioBlkConfig::default().merge_requests(false).num_queues(2);
    let queue = QueueOptions { size: 1024, ..QueueOptions::default() };
    let mut machine =
        Machine::builder().config(config).queue(queue).build(&ctx, backend).expect("a machine");
    let buffers = machine.ram.alloc_many(2 * BLOCKS, BLOCK as u32, BLOCK as u64).expect("memory");
    let mut turn = |reads: [usize; 2]| {
        for (index, reads) in reads.into_iter().enumerate() {
            for block in 0..reads {
                let sector = (block * BLOCK) as u64 / SECTOR_BYTES;
                let buffer = buffers[index * BLOCKS + block];
                machine.queues[index].read(sector, buffer, block as u64).expect("room");
            }
        }
        machine.queues.iter_mut().for_each(|queue| _ = queue.kick());
        while machine.queues.iter().any(|queue| queue.in_flight() > 0) {
            ctx.poll();
            for queue in &mut machine.queues {
                while let Some(completion) = queue.reap() {
                    assert_eq!(completion.status, BlkStatus::Ok);
                }
            }
        }
        let events = recording.take();
        ["file_read_in_place", "luring_co_submit"]
            .map(|name| events.iter().filter(|event| event.name == name).count())
    };
    for _ in 0..2 {
        assert_eq!(turn([64, 64]), [128, 0]);
        assert_eq!(turn([64, 70]), [128, 6]);
        assert_eq!(turn([64, 65]), [0, 129]);
        assert_eq!(turn([1, 1]), [0, 2]);
        assert_eq!(turn([1, 1]), [2, 0]);
    }
}

#[test]
fn without_a_ring_all_are_tried_in_place() {
    let dir = image_dir!();
    let image = image(dir.path());
    for (wait_mode, engine) in [
        (WaitMode::Auto, Engine::Threads),
        (WaitMode::Epoll, Engine::Threads),
        (WaitMode::Epoll, Engine::IoUring),
    ] {
        let scene = Scene::new(wait_mode, File::options().engine(engine), &image);
        assert_eq!(scene.turn(BLOCKS), [BLOCKS, 0, 0]);
        assert_eq!(scene.turn(BLOCKS), [BLOCKS, 0, 0]);
    }
}

#[test]
fn none_is_tried_if_that_is_turned_off() {
    let dir = image_dir!();
    let image = image(dir.path());
    for options in [ring().in_place_reads(false), ring().in_place_reads_a_turn(0)] {
        assert_eq!(Scene::new(WaitMode::Auto, options, &image).turn(2), [0, 2, 0]);
    }
    let options = File::options().in_place_reads_a_turn(0);
    assert_eq!(Scene::new(WaitMode::Auto, options, &image).turn(2), [0, 0, 2]);
}

#[test]
fn long_reads_and_those_after_a_miss_go_to_the_ring() {
    let dir = image_dir!();
    let path = image(dir.path());
    // The last read finds less than it asks for, which is a miss.
    let length = (BLOCKS - 1) * BLOCK + 1000;
    fs::OpenOptions::new().write(true).open(&path).expect("it").set_len(length as u64).expect("it");
    let scene = Scene::new(WaitMode::Auto, ring(), &path);
    assert_eq!(scene.read(0, 64 << 10), [1, 0, 0]);
    assert_eq!(scene.read(0, (64 << 10) + 512), [0, 1, 0]);
    let last = (BLOCKS - 1) * BLOCK;
    for passed in [1, 3, 7] {
        let [in_place, by_ring, _] = scene.read(last, 1024);
        assert!(in_place == 0 && by_ring > 0);
        for _ in 0..passed {
            assert_eq!(scene.read(0, 512), [0, 1, 0]);
        }
    }
    // A hit ends that.
    assert_eq!(scene.read(0, 512), [1, 0, 0]);
    assert_eq!(scene.read(0, 512), [1, 0, 0]);
}

/// Reads that never wait would keep the loop from all else.
#[test]
fn a_coroutine_that_only_reads_lets_others_run() {
    let dir = image_dir!();
    let image = image(dir.path());
    let scene = Scene::new(WaitMode::Auto, ring(), &image);
    let others = Rc::new(Cell::new(0));
    let (backend, count) = (Rc::clone(&scene.backend), Rc::clone(&others));
    let seen = scene.ctx.run(|co| {
        co.context().schedule(move |_| count.set(count.get() + 1));
        let mut seen = Vec::new();
        for block in 0..BLOCKS {
            let mut data = [0; BLOCK];
            let target = &mut IoVectorMut::from(&mut data[..]);
            backend.co_preadv(co, (block * BLOCK) as u64, target).expect("a read");
            seen.push(others.get());
        }
        seen
    });
    assert_eq!((seen[31], seen[32]), (0, 1));
    let [in_place, by_ring, _] = scene.seen();
    assert!(in_place >= 90 && in_place + by_ring == BLOCKS, "{in_place} in place");
}
