//! Images are registered with the rings that read from them, and given back when they are closed.
//! On a system without io_uring these tests fail: they are about nothing else.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use coblk::aio::{IoThread, WaitMode};
use coblk::drivers::{Engine, File, FileOptions};
use coblk::options::NodeOptions;
use coblk::{AioContext, BackendOptions, BlockBackend, BlockNode, Blockdevs, IoVectorMut};
use coblk_tests::holder::locked_bytes;
use coblk_tests::rings::rings_with;
use coblk_tests::sandbox::{on_small_file_system, with_faults, with_few_descriptors};
use coblk_tests::{image_dir, tools};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16;
const NOBODY: [u64; 0] = [];

/// An image whose blocks all say which image and which block they are.
fn image(dir: &Path, number: u64) -> PathBuf {
    let path = dir.join(format!("disk{number}.img"));
    let blocks = (0..BLOCKS).flat_map(|block| content(number, block));
    fs::write(&path, blocks.collect::<Vec<u8>>()).expect("an image");
    // As the kernel tells it.
    path.canonicalize().expect("its path")
}

fn content(number: u64, block: u64) -> Vec<u8> {
    (number << 8 | block).to_le_bytes().repeat(BLOCK / 8)
}

fn options() -> FileOptions {
    File::options().engine(Engine::IoUring).in_place_reads(false)
}

fn node(image: &Path) -> Arc<BlockNode> {
    BlockNode::new("disk", options().open(image).expect("an image"))
}

fn drive(ctx: &AioContext, image: &Path) -> BlockBackend {
    BlockBackend::new(ctx, "drive", node(image))
}

fn context() -> AioContext {
    let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().expect("a context");
    assert!(ctx.has_ring(), "no io_uring on this system");
    ctx
}

#[track_caller]
fn assert_reads(ctx: &AioContext, drive: &BlockBackend, number: u64) {
    let mut back = [0; BLOCK];
    let target = &mut IoVectorMut::from(&mut back[..]);
    drive.preadv(ctx, BLOCK as u64, target).expect("a read");
    assert_eq!(back, content(number, 1)[..]);
}

#[test]
fn an_image_is_registered_from_its_first_read_until_it_is_closed() {
    let dir = image_dir!();
    let image = image(dir.path(), 1);
    let ctx = context();
    // Closed and opened again, it comes to the same slot or another one.
    for direct in [false, true, false] {
        let file = options().direct(direct).open(&image).expect("an image");
        let node = BlockNode::new("disk", file);
        let drive = BackendOptions::new("drive").open(&ctx, node).expect("a drive");
        assert_eq!(rings_with(&image), 0);
        assert_reads(&ctx, &drive, 1);
        assert_eq!(rings_with(&image), 1);
        assert_ne!(locked_bytes(&image), NOBODY);
        drop(drive);
        assert_eq!(rings_with(&image), 0);
        assert_eq!(locked_bytes(&image), NOBODY);
    }
    let drive = drive(&ctx, &image);
    assert_reads(&ctx, &drive, 1);
    drop(ctx);
    assert_eq!(rings_with(&image), 0, "the ring is gone");
}

#[test]
fn each_context_registers_it_and_gives_it_back() {
    let dir = image_dir!();
    let image = image(dir.path(), 2);
    let node = node(&image);
    let threads = ["one", "two"].map(|name| {
        let with_ring = AioContext::test_builder().wait_mode(WaitMode::Auto);
        IoThread::with_builder(name, with_ring).expect("a thread")
    });
    for thread in &threads {
        let node = Arc::clone(&node);
        let read = thread.handle().spawn("read", |co| {
            let drive = BlockBackend::new(co.context(), "drive", node);
            let mut back = [0; BLOCK];
            drive.co_preadv(co, 0, &mut IoVectorMut::from(&mut back[..])).expect("a read");
            assert_eq!(back, content(2, 0)[..]);
        });
        read.wait().expect("a coroutine that ends");
    }
    assert_eq!(rings_with(&image), 2);
    drop(node);
    // What is closed on this thread is given back on theirs, in the next turn of the loop.
    for thread in &threads {
        thread.handle().spawn("pass by", |_| ()).wait().expect("a loop that turns");
    }
    assert_eq!(rings_with(&image), 0);
}

/// Rings must not go on with an image as it was open before: with O_DIRECT no request would fit that
/// does not begin at a block.
#[test]
fn an_image_that_is_open_in_another_way_is_registered_anew() {
    // Longer than what is read in place.
    const BYTES: usize = 100_003;
    let dir = image_dir!();
    let image = dir.path().canonicalize().expect("its path").join("disk.img");
    let data: Vec<u8> = (0..200_000_u32).map(|at| (at / 7) as u8).collect();
    fs::write(&image, &data[..199_680]).expect("an image");
    let (ctx, blockdevs) = (context(), Blockdevs::new(coblk::drivers()));
    let options = |more: &str| {
        let line = format!("file,node-name=d0,filename={},{more}", image.display());
        NodeOptions::from_keyval(&line).expect("options")
    };
    let (ring, direct) = ("aio=io_uring", "aio=io_uring,cache.direct=on");
    let node = blockdevs.open(&ctx, options("aio=threads")).expect("a node");
    let drive = BackendOptions::new("drive").open(&ctx, node).expect("a drive");
    let assert_reads = |offset: usize, registered| {
        let mut back = vec![0; BYTES];
        drive.preadv(&ctx, offset as u64, &mut IoVectorMut::from(&mut back[..])).expect("a read");
        assert!(back == data[offset..][..BYTES]);
        assert_eq!(rings_with(&image), registered);
    };
    assert_reads(1, 0);
    for more in [ring, direct, ring, direct, "aio=threads,cache.direct=on", direct, ring] {
        blockdevs.reopen(&ctx, vec![options(more)]).expect("a reopened node");
        // Once registered it stays so, whichever engine reads.
        assert_reads(3, 1);
    }
    drop((drive, blockdevs));
    assert_eq!(rings_with(&image), 0);
}

#[test]
fn images_come_and_go_while_requests_run() {
    let dir = image_dir!();
    let stays = image(dir.path(), 0);
    let ctx = context();
    let (drive, ended) = (Rc::new(self::drive(&ctx, &stays)), Rc::new(Cell::new(false)));
    let (running, reads) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for lane in 0..BLOCKS {
        let (drive, ended) = (Rc::clone(&drive), Rc::clone(&ended));
        let (running, reads) = (Rc::clone(&running), Rc::clone(&reads));
        running.set(running.get() + 1);
        ctx.spawn("reads", move |co| {
            let mut back = [0; BLOCK];
            while !ended.get() {
                let target = &mut IoVectorMut::from(&mut back[..]);
                drive.co_preadv(co, lane * BLOCK as u64, target).expect("a read");
                assert_eq!(back, content(0, lane)[..]);
                reads.set(reads.get() + 1);
            }
            running.set(running.get() - 1);
        });
    }
    let images: Vec<PathBuf> = (1..9).map(|number| image(dir.path(), number)).collect();
    for round in 0..40 {
        let drives: Vec<_> = images.iter().map(|image| self::drive(&ctx, image)).collect();
        for (number, drive) in (1..).zip(&drives) {
            assert_reads(&ctx, drive, number);
        }
        // In a different order than they were opened.
        let drives = RefCell::new(drives);
        while !drives.borrow().is_empty() {
            let index = (round * 5) % drives.borrow().len();
            drop(drives.borrow_mut().swap_remove(index));
            ctx.try_poll();
        }
    }
    assert!(images.iter().all(|image| rings_with(image) == 0));
    assert_eq!(rings_with(&stays), 1);
    ended.set(true);
    ctx.run_until(|| running.get() == 0);
    assert!(reads.get() > 40 * BLOCKS, "requests did not run meanwhile");
}

#[test]
fn images_without_a_slot_are_read_all_the_same() {
    let test = "images_without_a_slot_are_read_all_the_same";
    // A table of the size that we like best is refused: it is more than there may be descriptors.
    with_few_descriptors(test, env!("CARGO_TARGET_TMPDIR").as_ref(), 400, |dir| {
        let dir = &dir.canonicalize().expect("a path");
        let ctx = context();
        let images: Vec<PathBuf> = (0..90).map(|number| image(dir, number)).collect();
        let mut drives: Vec<_> = images.iter().map(|image| drive(&ctx, image)).collect();
        for _ in 0..2 {
            (0..).zip(&drives).for_each(|(number, drive)| assert_reads(&ctx, drive, number));
        }
        let registered =
            |from: usize| images[from..].iter().map(|it| rings_with(it)).sum::<usize>();
        assert_eq!(registered(0), 64);
        drives.truncate(10);
        assert_eq!((registered(0), registered(10)), (10, 0));
        // There is room again.
        drives.extend(images[10..].iter().map(|image| drive(&ctx, image)));
        (0..).zip(&drives).for_each(|(number, drive)| assert_reads(&ctx, drive, number));
        assert_eq!(registered(0), 64);
    });
}

#[test]
fn a_kernel_that_registers_nothing_is_read_from_all_the_same() {
    let test = "a_kernel_that_registers_nothing_is_read_from_all_the_same";
    let parent = env!("CARGO_TARGET_TMPDIR").as_ref();
    // As a filter for system calls may have it.
    let faults = ["io_uring_register:error=EPERM"];
    with_faults(test, parent, &faults, |dir| {
        let image = image(dir, 5);
        let ctx = context();
        let drive = drive(&ctx, &image);
        for _ in 0..3 {
            assert_reads(&ctx, &drive, 5);
        }
        assert_eq!(rings_with(&image), 0);
    });
}

#[test]
fn a_file_system_can_be_unmounted_when_its_images_are_closed() {
    let test = "a_file_system_can_be_unmounted_when_its_images_are_closed";
    on_small_file_system(test, 1 << 20, |dir| {
        let image = image(dir, 3);
        let ctx = context();
        let drive = drive(&ctx, &image);
        assert_reads(&ctx, &drive, 3);
        assert_eq!(rings_with(&image), 1);
        let unmount = || tools::output("umount", [dir]).status.success();
        assert!(!unmount(), "unmounted under an open image");
        drop(drive);
        assert!(unmount(), "the image is still open");
    });
}
