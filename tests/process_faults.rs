//! What a process may run out of, or be refused: workers, io_uring, descriptors. What can go on goes
//! on, and what cannot says why.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;

use coblk::aio::WaitMode;
use coblk::drivers::{Engine, File, FileOptions};
use coblk::{AioContext, BlockBackend, BlockNode, IoVector, IoVectorMut, ThreadPool, WriteFlags};
use coblk_tests::events::Recording;
use coblk_tests::images::sparse_image;
use coblk_tests::sandbox::{with_faults, with_few_descriptors};
use coblk_tests::{errno, image_dir};

const TARGET: &str = env!("CARGO_TARGET_TMPDIR");

fn drive(ctx: &AioContext, options: FileOptions, image: &Path) -> BlockBackend {
    let file = options.open(image).expect("an image");
    BlockBackend::new(ctx, "drive", BlockNode::new("disk", file))
}

/// Writes, makes it durable, and reads it back.
#[track_caller]
fn assert_works(ctx: &AioContext, drive: &BlockBackend, byte: u8) {
    let data = [byte; 4096];
    drive.pwritev(ctx, 4096, &IoVector::from(&data[..]), WriteFlags::FUA).expect("a write");
    let mut back = [0; 4096];
    drive.preadv(ctx, 4096, &mut IoVectorMut::from(&mut back[..])).expect("a read");
    assert_eq!(back, data);
    drive.flush(ctx).expect("a flush");
}

#[test]
fn a_worker_that_hangs_holds_up_nobody_else() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "disk.img", 1 << 20);
    let pool = ThreadPool::new(0, 2).expect("limits that make sense");
    let ctx = AioContext::test_builder().thread_pool(pool).build().expect("a context");
    let (end, wait_for_end) = mpsc::channel::<()>();
    let ended = Rc::new(Cell::new(false));
    let told = Rc::clone(&ended);
    ctx.spawn("hangs", move |co| {
        let result = co.context().thread_pool().submit_co(co, move || wait_for_end.recv());
        result.expect("the word to end");
        told.set(true);
    });
    let drive = drive(&ctx, File::options().in_place_reads(false), &image);
    for byte in 1..50 {
        assert_works(&ctx, &drive, byte);
    }
    drop(drive.drain(&ctx));
    assert!(!ended.get(), "it ended before it was told to");
    end.send(()).expect("a worker that waits");
    ctx.run_until(|| ended.get());
}

#[test]
fn without_io_uring_threads_take_over_and_a_warning_tells() {
    let test = "without_io_uring_threads_take_over_and_a_warning_tells";
    // As seccomp refuses it in containers.
    with_faults(test, TARGET.as_ref(), &["io_uring_setup:error=EPERM"], |dir| {
        let recording = Recording::begin();
        let image = sparse_image(dir, "disk.img", 1 << 20);
        let ctx = AioContext::test_builder().wait_mode(WaitMode::Auto).build().expect("a context");
        for direct in [false, true] {
            let options = File::options().engine(Engine::IoUring).direct(direct);
            assert_works(&ctx, &drive(&ctx, options, &image), 1 + u8::from(direct));
        }
        assert!(!ctx.has_ring());
        let events = recording.take();
        let told = events.iter().filter(|event| event.field("message") == "no io_uring");
        assert_eq!(told.count(), 1, "it is told once");
        let forced = AioContext::test_builder().wait_mode(WaitMode::Ring).build();
        assert_eq!(errno(forced), libc::EPERM, "who insists on a ring is told why there is none");
    });
}

#[test]
fn without_descriptors_open_drives_go_on() {
    let test = "without_descriptors_open_drives_go_on";
    with_few_descriptors(test, TARGET.as_ref(), 48, |dir| {
        let image = sparse_image(dir, "disk.img", 1 << 20);
        let ctx = AioContext::for_test().expect("a context");
        let drive = drive(&ctx, File::options(), &image);
        let other = sparse_image(dir, "other.img", 512);
        let mut open = Vec::new();
        let error = loop {
            match File::options().read_only(true).open(&other) {
                Ok(file) => open.push(file),
                Err(error) => break error.to_string(),
            }
            assert!(open.len() < 48, "the limit does not hold");
        };
        assert!(error.contains("other.img") && error.contains("Too many open files"), "{error}");
        assert_eq!(errno(AioContext::for_test()), libc::EMFILE);
        assert_works(&ctx, &drive, 7);
        open.truncate(open.len() / 2);
        let other = AioContext::for_test().expect("a context, now that there are descriptors");
        assert_works(&ctx, &drive, 8);
        drop(other);
    });
}
