//! What is wrong with an image, before it is opened or while it is used: a clear message, an error
//! for the request, and a loop that goes on.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use coblk::drivers::{File, FileOptions};
use coblk::virtio_blk::BlkStatus;
use coblk::virtio_blk::guest::GuestRequest;
use coblk::{AioContext, BlockBackend, BlockNode, IoVector, WriteFlags, ZeroFlags};
use coblk_tests::events::Recording;
use coblk_tests::guest::{Guest, discard, every_way, zeroes};
use coblk_tests::images::{qemu_img_create, qemu_io, sparse_image};
use coblk_tests::sandbox::{on_read_only_file_system, on_small_file_system};
use coblk_tests::{errno, image_dir, tools};

const MIB: u64 = 1 << 20;

/// What opening an image fails with.
#[track_caller]
fn message(image: &Path, options: FileOptions) -> String {
    match options.open(image) {
        Ok(file) => panic!("opened {file:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_image_that_does_not_exist() {
    let dir = image_dir!();
    let image = dir.path().join("none.img");
    for (options, mode) in [
        (File::options(), "for writing"),
        (File::options().read_only(true), "for reading"),
        (File::options().direct(true), "for writing with O_DIRECT"),
        (File::options().read_only(true).direct(true), "for reading with O_DIRECT"),
    ] {
        let expected = format!(
            "cannot open image '{}' {mode}: No such file or directory (os error 2)",
            image.display()
        );
        assert_eq!(message(&image, options), expected);
    }
    assert!(!image.exists(), "created by the attempt to open it");
}

#[test]
fn an_image_that_is_no_image() {
    let dir = image_dir!();
    let fifo = dir.path().join("fifo");
    tools::run("mkfifo", [&fifo]);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let cases = [
        (dir.path(), "a directory"),
        (&fifo, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a character device"),
    ];
    for (path, what) in cases {
        let expected =
            format!("cannot open image '{}': it is {what}, not a regular file", path.display());
        // A FIFO without a writer must not make the open wait, either.
        for options in [File::options(), File::options().read_only(true)] {
            assert_eq!(message(path, options), expected);
        }
    }
}

#[test]
fn an_image_below_something_that_is_no_directory() {
    let dir = image_dir!();
    let file = sparse_image(dir.path(), "file", 512);
    let image = file.join("disk.img");
    let expected = format!(
        "cannot open image '{}' for writing: Not a directory (os error 20)",
        image.display()
    );
    assert_eq!(message(&image, File::options()), expected);
}

#[test]
fn an_image_that_is_not_writable() {
    let prepare = "truncate -s 1M disk.img && printf hello >other";
    on_read_only_file_system("an_image_that_is_not_writable", prepare, |dir| {
        let image = dir.join("disk.img");
        let expected = format!(
            "cannot open image '{}' for writing: Read-only file system (os error 30)",
            image.display()
        );
        assert_eq!(message(&image, File::options()), expected);

        // For reading it opens; then nothing can be written, and nothing breaks.
        let mut guest = Guest::new(&image, File::options().read_only(true));
        assert_eq!(guest.try_write(0, &[1; 512]), BlkStatus::IoErr);
        assert_eq!(guest.read(0, 4096), [0; 4096]);
    });
}

#[test]
fn writes_to_a_read_only_image() {
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", MIB);
    qemu_io(&image, &["write -P 7 0 1M"]);
    for (way, options) in every_way() {
        let ctx = AioContext::for_test().expect("a context");
        let file = options.read_only(true).open(&image).expect("an image");
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("disk", file));
        let data = [1; 4096];
        let source = IoVector::from(&data[..]);
        let written = backend.pwritev(&ctx, 0, &source, WriteFlags::empty());
        assert_eq!(errno(written), libc::EPERM, "{way}");
        let zeroed = backend.pwrite_zeroes(&ctx, 0, 4096, ZeroFlags::empty());
        assert_eq!(errno(zeroed), libc::EPERM, "{way}");
        assert_eq!(errno(backend.pdiscard(&ctx, 0, 4096)), libc::EPERM, "{way}");

        let mut guest = Guest::on(ctx, backend);
        assert_eq!(guest.try_write(0, &[1; 512]), BlkStatus::IoErr, "{way}");
        assert_ne!(guest.call(zeroes(0, 4096, true)), BlkStatus::Ok, "{way}");
        assert_ne!(guest.call(discard(0, 4096)), BlkStatus::Ok, "{way}");
        assert_eq!(guest.read(0, 512), [7; 512], "{way}");
    }
    qemu_io(&image, &["read -P 7 0 1M"]);
}

#[test]
fn requests_beyond_the_end() {
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "disk.img", MIB);
    for (way, options) in every_way() {
        let mut guest = Guest::new(&image, options);
        for offset in [MIB, MIB - 512, 2 * MIB, u64::MAX - 511, 1 << 63] {
            let len = if offset < MIB { 4096 } else { 512 };
            assert_eq!(guest.try_read(offset, len), Err(BlkStatus::IoErr), "{way} at {offset}");
            let status = guest.try_write(offset, &vec![1; len]);
            assert_eq!(status, BlkStatus::IoErr, "{way} at {offset}");
            assert_ne!(guest.call(zeroes(offset, 4096, false)), BlkStatus::Ok, "{way}");
            assert_ne!(guest.call(discard(offset, 4096)), BlkStatus::Ok, "{way}");
        }
        // A sector number whose offset in bytes does not fit 64 bits.
        let sector = u64::MAX / 512 + 1;
        let buffer = guest.machine.ram.alloc(512, 512).expect("guest memory");
        let request = GuestRequest::Read { sector, buffers: &[buffer] };
        assert_eq!(guest.call(request), BlkStatus::IoErr, "{way}");
        assert_eq!(fs::metadata(&image).expect("an image").len(), MIB, "{way}: grown");
        guest.write(MIB - 512, &[2; 512]);
    }
}

#[test]
fn a_drive_without_a_medium() {
    let ctx = AioContext::for_test().expect("a context");
    let backend = BlockBackend::empty(&ctx, "drive");
    let error = coblk::virtio_blk::VirtioBlk::new(backend, Default::default()).err();
    let message = error.expect("no device without a medium").to_string();
    assert_eq!(message, "cannot ask the backend for its length: No medium found (os error 123)");
}

#[test]
fn an_image_that_shrinks() {
    let recording = Recording::begin();
    let dir = image_dir!();
    for (way, options) in every_way() {
        let image = qemu_img_create(dir.path(), "disk.img", MIB);
        qemu_io(&image, &["write -P 7 0 1M"]);
        let mut guest = Guest::new(&image, options);
        assert_eq!(guest.read(MIB - 4096, 4096), [7; 4096], "{way}");
        fs::File::options()
            .write(true)
            .open(&image)
            .and_then(|file| file.set_len(MIB / 2))
            .expect("truncate the image");
        recording.take();

        // Lost data is an error, not zeroes: behind the end, and across it.
        assert_eq!(guest.try_read(MIB - 4096, 4096), Err(BlkStatus::IoErr), "{way}");
        assert_eq!(guest.try_read(MIB / 2 - 4096, 8192), Err(BlkStatus::IoErr), "{way}");
        let events = recording.take();
        let told = events.iter().filter(|event| event.level == tracing::Level::ERROR);
        let told: Vec<_> =
            told.filter(|it| it.field("image") == image.display().to_string()).collect();
        assert_eq!(told.len(), 2, "{way}: {told:?}");
        let message = told[0].field("message");
        assert_eq!(message, "the image has become shorter: read failed", "{way}");
        assert_eq!(told[0].field("expected_bytes"), MIB.to_string(), "{way}");

        // What is left works, and so does the rest of the device.
        assert_eq!(guest.read(MIB / 2 - 4096, 4096), [7; 4096], "{way}");
        guest.write(0, &[8; 4096]);
        guest.flush();
        assert_eq!(guest.machine.device.in_flight(), 0, "{way}");
        let backend = guest.machine.device.backend().clone();
        drop(backend.drain(&guest.ctx));
    }
}

#[test]
fn a_full_file_system() {
    on_small_file_system("a_full_file_system", 2 * MIB, |dir| {
        let ballast = dir.join("ballast");
        fs::write(&ballast, vec![1; MIB as usize]).expect("room for the ballast");
        // A file system in memory may not do O_DIRECT.
        let ways = every_way().into_iter().filter(|(way, _)| !way.contains("O_DIRECT"));
        for (way, options) in ways {
            let image = sparse_image(dir, "disk.img", 8 * MIB);
            let mut guest = Guest::new(&image, options);
            // More than there is room for: the kernel takes a part, and then no more.
            let status = guest.try_write(0, &vec![2; 2 * MIB as usize]);
            assert_eq!(status, BlkStatus::IoErr, "{way}");
            assert_eq!(guest.try_write(4 * MIB, &[3; 65536]), BlkStatus::IoErr, "{way}");
            // Nothing hangs, and what is there can be read.
            assert_eq!(guest.read(0, 4096), [2; 4096], "{way}");
            guest.flush();
            assert_eq!(guest.machine.device.in_flight(), 0, "{way}");

            // The reason is ENOSPC.
            let backend = guest.machine.device.backend().clone();
            let data = vec![4; 65536];
            let source = IoVector::from(&data[..]);
            let full = backend.pwritev(&guest.ctx, 6 * MIB, &source, WriteFlags::empty());
            assert_eq!(errno(full), libc::ENOSPC, "{way}");

            // Once there is room again it goes on.
            fs::remove_file(&ballast).expect("remove the ballast");
            guest.write(4 * MIB, &[3; 65536]);
            assert_eq!(guest.read(4 * MIB, 65536), [3; 65536], "{way}");
            guest.flush();
            drop((guest, backend));
            fs::remove_file(&image).expect("remove the image");
            fs::write(&ballast, vec![1; MIB as usize]).expect("room for the ballast");
        }
    });
}

#[test]
fn zeroes_and_discards_make_room_on_a_full_file_system() {
    let test = "zeroes_and_discards_make_room_on_a_full_file_system";
    on_small_file_system(test, MIB, |dir| {
        let image = sparse_image(dir, "disk.img", 4 * MIB);
        let mut guest = Guest::new(&image, File::options());
        let status = guest.try_write(0, &vec![2; 2 * MIB as usize]);
        assert_eq!(status, BlkStatus::IoErr);
        assert_eq!(guest.call(discard(0, MIB / 4)), BlkStatus::Ok);
        assert_eq!(guest.call(zeroes(MIB / 4, MIB / 4, true)), BlkStatus::Ok);
        guest.write(3 * MIB, &vec![5; MIB as usize / 4]);
        assert_eq!(guest.read(MIB / 4, 4096), [0; 4096]);
        // Zeroes that are not deallocated need room.
        assert_eq!(guest.call(zeroes(2 * MIB, MIB, false)), BlkStatus::IoErr);
        assert_eq!(guest.read(3 * MIB, 4096), [5; 4096]);
    });
}
