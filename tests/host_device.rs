//! `host_device`: images on block devices. Needs root, for loop devices.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use coblk::block::Permissions;
use coblk::block::options::NodeOptions;
use coblk::drivers::{File, FileOptions};
use coblk::{
    AioContext, BackendOptions, BlockBackend, BlockDriver, BlockNode, Blockdevs, IoVector,
    IoVectorMut,
};
use coblk::{WriteFlags, ZeroFlags};
use coblk_tests::guest::every_way;
use coblk_tests::holder::locked_bytes;
use coblk_tests::images::sparse_image;
use coblk_tests::loop_device::LoopDevice;
use coblk_tests::{errno, image_dir, tools};

const MIB: u64 = 1 << 20;
const PLAIN: WriteFlags = WriteFlags::empty();

fn backend(ctx: &AioContext, device: &Path, options: FileOptions) -> BlockBackend {
    let file = options.open(device).expect("a block device");
    BlockBackend::new(ctx, "drive", BlockNode::new("device", file))
}

/// The ways of `every_way`, on a device.
fn every_way_on_devices() -> impl Iterator<Item = (&'static str, FileOptions)> {
    every_way().into_iter().map(|(way, options)| (way, options.on_device()))
}

fn read(ctx: &AioContext, backend: &BlockBackend, offset: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0xEE; bytes];
    backend.preadv(ctx, offset, &mut IoVectorMut::from(&mut data[..])).unwrap();
    data
}

#[test]
fn requests_of_any_offset_and_length_reach_the_device() {
    let dir = image_dir!();
    for block_bytes in [512, 4096] {
        for (way, options) in every_way_on_devices() {
            eprintln!("{way}, blocks of {block_bytes}");
            let image = sparse_image(dir.path(), "device.img", 2 * MIB);
            let device = LoopDevice::new(&image, block_bytes);
            let ctx = AioContext::for_test().unwrap();
            let backend = backend(&ctx, device.path(), options);
            assert_eq!(backend.length().unwrap(), 2 * MIB);
            let mut expected = vec![0; 2 * MIB as usize];
            for (offset, bytes, byte) in [(0, MIB, 1), (700, 5000, 2), (MIB - 1, 3, 3)] {
                let data = vec![byte; bytes as usize];
                backend.pwritev(&ctx, offset, &IoVector::from(&data[..]), PLAIN).unwrap();
                expected[offset as usize..(offset + bytes) as usize].fill(byte);
            }
            for (offset, bytes, flags) in [
                (4096, 8192, ZeroFlags::empty()),
                (65536, 65536, ZeroFlags::MAY_UNMAP),
                (300_001, 9999, ZeroFlags::MAY_UNMAP),
            ] {
                backend.pwrite_zeroes(&ctx, offset, bytes, flags).unwrap();
                expected[offset as usize..(offset + bytes) as usize].fill(0);
            }
            backend.flush(&ctx).unwrap();
            assert!(read(&ctx, &backend, 0, expected.len()) == expected, "read back");
            assert!(read(&ctx, &backend, 701, 4097) == expected[701..4798], "read within");
            backend.truncate(&ctx, MIB).expect("less than there is means nothing");
            assert_eq!(backend.length().unwrap(), 2 * MIB);
            assert_eq!(errno(backend.truncate(&ctx, 4 * MIB)), libc::EINVAL);
            drop((backend, device));
            assert!(fs::read(&image).unwrap() == expected, "what is stored");
        }
    }
}

#[test]
fn a_discard_gives_the_blocks_back() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", 2 * MIB);
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .and_then(|file| file.write_all_at(&vec![7; 2 * MIB as usize], 0).and(file.sync_all()))
        .unwrap();
    let full = fs::metadata(&image).unwrap().blocks();
    let device = LoopDevice::new(&image, 512);
    let ctx = AioContext::for_test().unwrap();
    let backend = backend(&ctx, device.path(), File::device_options());
    // The edges are no whole blocks, and stay.
    backend.pdiscard(&ctx, MIB - 100, MIB / 2 + 200).unwrap();
    let freed = full - fs::metadata(&image).unwrap().blocks();
    assert_eq!(freed, MIB / 2 / 512);
    assert!(read(&ctx, &backend, 0, MIB as usize).iter().all(|byte| *byte == 7));
    assert!(read(&ctx, &backend, MIB + MIB / 2, 100).iter().all(|byte| *byte == 7));
}

#[test]
fn o_direct_goes_by_the_blocks_of_the_device() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", MIB);
    for block_bytes in [512, 1024, 4096] {
        let device = LoopDevice::new(&image, block_bytes);
        let direct = File::device_options().direct(true).open(device.path()).unwrap();
        assert_eq!(direct.limits().request_alignment, block_bytes);
        let buffered = File::device_options().open(device.path()).unwrap();
        assert_eq!(buffered.limits().request_alignment, 1);
        assert_eq!(buffered.limits().pwrite_zeroes_alignment, block_bytes);
    }
}

#[test]
fn each_driver_names_the_other_for_what_is_not_its_own() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", MIB);
    let device = LoopDevice::new(&image, 512);
    let said = File::device_options().open(&image).unwrap_err().to_string();
    let expected = "it is a regular file, not a block device: it needs driver 'file'";
    assert_eq!(said, format!("cannot open image '{}': {expected}", image.display()));
    let said = File::options().open(device.path()).unwrap_err().to_string();
    let expected = "it is a block device, not a regular file: it needs driver 'host_device'";
    assert_eq!(said, format!("cannot open image '{}': {expected}", device.path().display()));
    let said = File::device_options().open(dir.path()).unwrap_err().to_string();
    assert!(said.ends_with("it is a directory, not a block device"), "{said}");
    let good = File::device_options().open(device.path()).unwrap();
    assert_eq!(good.format_name(), "host_device");
    // Who is given a path does not have to know.
    for (path, driver) in [(&*image, "file"), (device.path(), "host_device")] {
        assert_eq!(File::options_for(path).open(path).unwrap().format_name(), driver);
    }
}

#[test]
fn a_device_is_locked_as_an_image_is() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", MIB);
    let device = LoopDevice::new(&image, 512);
    let file = File::device_options().open(device.path()).unwrap();
    let reading = Permissions::CONSISTENT_READ;
    file.set_permissions(reading | Permissions::WRITE, reading).unwrap();
    assert_eq!(locked_bytes(device.path()), [100, 101, 201, 202, 203]);
    let args = ["-f", "raw", "-c", "read 0 512", tools::text(device.path())];
    let output = tools::output("qemu-io", args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Failed to get \"write\" lock"), "{said}");
}

#[test]
fn a_resize_takes_over_the_length_of_a_device_that_has_grown() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", 2 * MIB);
    let device = LoopDevice::new(&image, 512);
    let ctx = AioContext::for_test().unwrap();
    let blockdevs = Blockdevs::new(coblk::drivers());
    let line = format!("host_device,node-name=disk,filename={}", device.path().display());
    let node = blockdevs.open(&ctx, NodeOptions::from_keyval(&line).unwrap()).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let told = Rc::new(Cell::new(0));
    let seen = Rc::clone(&told);
    backend.set_length_listener(move |_, length| seen.set(length));
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(4 * MIB).unwrap();
    device.refresh();
    assert_eq!(node.length(), 2 * MIB, "until it is asked");
    let refused = blockdevs.resize(&ctx, "disk", 8 * MIB).unwrap_err().to_string();
    assert!(refused.contains("Cannot grow device files"), "{refused}");
    blockdevs.resize(&ctx, "disk", 4 * MIB).unwrap();
    while ctx.try_poll() {}
    assert_eq!(told.get(), 4 * MIB);
    blockdevs.resize(&ctx, "disk", MIB).expect("less than there is means nothing");
    assert_eq!(node.length(), 4 * MIB);
    let source = IoVector::from(&[7; 512][..]);
    backend.pwritev(&ctx, 4 * MIB - 512, &source, PLAIN).expect("what is new");
}

/// A device that has become shorter refuses a discard beyond its end, and goes on with others.
#[test]
fn a_discard_that_is_refused_does_not_end_those_that_follow() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", 2 * MIB);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&vec![7; 2 * MIB as usize], 0).and(file.sync_all()).unwrap();
    let device = LoopDevice::new(&image, 512);
    let ctx = AioContext::for_test().unwrap();
    let backend = backend(&ctx, device.path(), File::device_options());
    file.set_len(MIB).unwrap();
    device.refresh();
    let full = fs::metadata(&image).unwrap().blocks();
    assert!(backend.pdiscard(&ctx, MIB + MIB / 2, 65536).is_err(), "it is not there any more");
    backend.pdiscard(&ctx, 0, MIB / 2).unwrap();
    tools::run("sync", [&image]);
    let left = fs::metadata(&image).unwrap().blocks();
    assert!(left + MIB / 2 / 512 <= full, "{left} of {full} blocks are left");
}

/// The kernel writes zeroes where a device has no way of its own, unless they may be unmapped.
#[test]
fn zeroes_that_might_be_written_are_not_fast() {
    let dir = image_dir!();
    let image = sparse_image(dir.path(), "device.img", 2 * MIB);
    let device = LoopDevice::new(&image, 512);
    let ctx = AioContext::for_test().unwrap();
    let backend = backend(&ctx, device.path(), File::device_options());
    let zero = |flags| backend.pwrite_zeroes(&ctx, 0, MIB, flags);
    assert_eq!(errno(zero(ZeroFlags::NO_FALLBACK)), libc::ENOTSUP);
    zero(ZeroFlags::empty()).unwrap();
    zero(ZeroFlags::NO_FALLBACK | ZeroFlags::MAY_UNMAP).expect("a loop device has it");
}

/// A file system with blocks of 4096 bytes, mounted until the value is dropped.
struct Mounted {
    at: std::path::PathBuf,
    _device: LoopDevice,
}

impl Mounted {
    fn new(dir: &Path) -> Mounted {
        let device = LoopDevice::new(&sparse_image(dir, "fs.img", 64 * MIB), 4096);
        tools::run("mkfs.ext4", [Path::new("-q"), device.path()]);
        let at = dir.join("mounted");
        fs::create_dir(&at).unwrap();
        tools::run("mount", [device.path(), &at]);
        Mounted { at, _device: device }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let output = tools::output("umount", [&self.at]);
        if !output.status.success() {
            eprintln!("umount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// With O_DIRECT its last block could only be written as a whole.
#[test]
fn an_image_that_is_not_whole_blocks_of_o_direct_is_not_written() {
    let dir = image_dir!();
    let mounted = Mounted::new(dir.path());
    let image = sparse_image(&mounted.at, "disk.img", MIB + 512);
    let (ctx, blockdevs) = (AioContext::for_test().unwrap(), Blockdevs::new(coblk::drivers()));
    let options = |direct: &str, read_only: &str| {
        let line = format!(
            "file,node-name=disk,filename={},cache.direct={direct},read-only={read_only}",
            image.display()
        );
        NodeOptions::from_keyval(&line).unwrap()
    };
    let node = blockdevs.open(&ctx, options("on", "off")).unwrap();
    let writer = BackendOptions::new("writer").share_resize(true);
    let refused = writer.open(&ctx, Arc::clone(&node)).err().expect("refused").to_string();
    assert!(refused.contains("not a multiple of 4096"), "{refused}");
    drop(BackendOptions::new("reader").read_only(true).open(&ctx, Arc::clone(&node)).unwrap());
    // Through the page cache it can be; but not become one that cannot.
    blockdevs.reopen(&ctx, vec![options("off", "off")]).unwrap();
    let backend = writer.open(&ctx, Arc::clone(&node)).unwrap();
    let refused = blockdevs.reopen(&ctx, vec![options("on", "off")]).unwrap_err().to_string();
    assert!(refused.contains("not a multiple of 4096"), "{refused}");
    let source = IoVector::from(&[7; 512][..]);
    backend.pwritev(&ctx, MIB, &source, PLAIN).unwrap();
    blockdevs.resize(&ctx, "disk", 2 * MIB).unwrap();
    blockdevs.reopen(&ctx, vec![options("on", "off")]).unwrap();
    backend.pwritev(&ctx, 2 * MIB - 512, &source, PLAIN).unwrap();
    let refused = blockdevs.resize(&ctx, "disk", MIB + 512).unwrap_err().to_string();
    assert!(refused.contains("not a multiple of 4096"), "{refused}");
    assert_eq!(fs::metadata(&image).unwrap().len(), 2 * MIB);
    drop((backend, node, blockdevs));
}
