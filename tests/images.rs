//! Images that cross: written by a guest through the whole path and read by QEMU's tools, and the
//! other way round, with every way of doing the I/O.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coblk::drivers::File;
use coblk::virtio_blk::BlkStatus;
use coblk_tests::guest::{Guest, discard, every_way, zeroes};
use coblk_tests::image_dir;
use coblk_tests::images::{
    assert_clean_ext4, assert_same_content, ext4_cat, mkfs_ext4, qemu_img_create, qemu_io,
    sparse_image,
};
use coblk_tests::random::Random;

const MIB: u64 = 1 << 20;

/// What both sides write: offset, bytes, pattern. Ends at 6 MiB, the length of the image.
const PATTERNS: [(u64, u64, u8); 6] = [
    (0, 4096, 0x11),
    (8192, 512 * 1024, 0x22),
    // Over the one before, in part.
    (256 * 1024, 8192, 0x33),
    // Longer than one request of the guest.
    (MIB, 3 * MIB, 0x44),
    (5 * MIB + 4096, 4096, 0x55),
    (6 * MIB - 4096, 4096, 0x66),
];

/// What an image holds after [`PATTERNS`].
fn expected() -> Vec<u8> {
    let mut content = vec![0; 6 * MIB as usize];
    for (offset, bytes, pattern) in PATTERNS {
        content[offset as usize..(offset + bytes) as usize].fill(pattern);
    }
    content
}

/// Has qemu-io write [`PATTERNS`].
fn write_by_qemu(image: &Path) {
    let commands =
        PATTERNS.map(|(offset, bytes, pattern)| format!("write -P {pattern:#x} {offset} {bytes}"));
    qemu_io(image, &commands.each_ref().map(String::as_str));
}

#[test]
fn qemu_reads_what_a_guest_writes() {
    let dir = image_dir!();
    let reference = qemu_img_create(dir.path(), "reference.img", 6 * MIB);
    write_by_qemu(&reference);
    for (way, options) in every_way() {
        eprintln!("{way}");
        let image = qemu_img_create(dir.path(), "guest.img", 6 * MIB);
        let mut guest = Guest::new(&image, options);
        assert_eq!(guest.disk_bytes(), 6 * MIB);
        for (offset, bytes, pattern) in PATTERNS {
            guest.write(offset, &vec![pattern; bytes as usize]);
        }
        guest.flush();
        // The guest still runs: what was flushed is in the file.
        assert_same_content(&image, &reference);
        qemu_io(&image, &["read -P 0x44 1M 3M", "read -P 0x33 256k 8k", "read -P 0 4M 1M"]);
        assert!(guest.read(0, 6 * MIB as usize) == expected(), "{way}: what the guest reads back");
    }
}

#[test]
fn a_guest_reads_what_qemu_writes() {
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "qemu.img", 6 * MIB);
    write_by_qemu(&image);
    for (way, options) in every_way() {
        for options in [options, options.read_only(true)] {
            let mut guest = Guest::new(&image, options);
            assert!(guest.read(0, 6 * MIB as usize) == expected(), "{way}");
            let sector = guest.read(256 * 1024 + 512, 512);
            assert!(sector.iter().all(|byte| *byte == 0x33), "{way}: one sector");
        }
    }
}

#[test]
fn both_write_in_turns() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        eprintln!("{way}");
        let image = qemu_img_create(dir.path(), "shared.img", MIB);
        for round in 0..4u8 {
            let offset = u64::from(round) * 65536;
            qemu_io(&image, &[&format!("write -P {} {offset} 64k", round + 1)]);
            let mut guest = Guest::new(&image, options);
            let seen = guest.read(offset, 65536);
            assert!(seen.iter().all(|byte| *byte == round + 1), "{way}, round {round}");
            guest.write(offset + 4096, &[round + 0x81; 8192]);
            guest.flush();
            drop(guest);
            let ours = format!("read -P {} {} 8k", round + 0x81, offset + 4096);
            let theirs = format!("read -P {} {} 52k", round + 1, offset + 12288);
            qemu_io(&image, &[&ours, &theirs]);
        }
    }
}

#[test]
fn zeroes_and_discards_of_a_guest_reach_the_image() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        eprintln!("{way}");
        let image = qemu_img_create(dir.path(), "zeroes.img", 4 * MIB);
        qemu_io(&image, &["write -P 0xff 0 4M"]);
        let full = fs::metadata(&image).expect("an image").blocks();
        let mut guest = Guest::new(&image, options);
        assert_eq!(guest.call(zeroes(4096, 512 * 1024, false)), BlkStatus::Ok);
        assert_eq!(guest.call(zeroes(MIB, MIB, true)), BlkStatus::Ok);
        assert_eq!(guest.call(discard(2 * MIB, MIB)), BlkStatus::Ok);
        guest.flush();
        qemu_io(
            &image,
            &[
                "read -P 0xff 0 4k",
                "read -P 0 4k 512k",
                "read -P 0xff 516k 508k",
                "read -P 0 1M 1M",
                "read -P 0xff 3M 1M",
            ],
        );
        let left = fs::metadata(&image).expect("an image").blocks();
        assert!(left <= full / 2 + 16, "{way}: {left} of {full} blocks are still allocated");
        assert_eq!(fs::metadata(&image).expect("an image").len(), 4 * MIB, "{way}");
    }
}

/// Lengths that are no whole sectors. With O_DIRECT only those that end within the last sector of a
/// page, for a disk may ask for whole pages.
fn odd_lengths(way: &str) -> &'static [u64] {
    if way.contains("O_DIRECT") { &[8092, 3585] } else { &[8092, 3585, 1, 511, 513, 1000, 4097] }
}

#[test]
fn an_image_of_odd_length_ends_in_zeroes() {
    let dir = image_dir!();
    for (way, options) in every_way() {
        for &bytes in odd_lengths(way) {
            eprintln!("{way}, {bytes} bytes");
            let image = sparse_image(dir.path(), "odd.img", bytes);
            fs::write(&image, vec![0x77; bytes as usize]).expect("write the image");
            let whole = bytes.next_multiple_of(512);
            let mut content = vec![0x77; bytes as usize];
            content.resize(whole as usize, 0);

            let mut guest = Guest::new(&image, options);
            assert_eq!(guest.disk_bytes(), whole, "{way}");
            assert!(guest.read(0, whole as usize) == content, "{way}, {bytes} bytes");
            assert_eq!(fs::metadata(&image).expect("an image").len(), bytes, "grown by a read");

            // QEMU sees the same disk.
            let (data, zeroes) = (bytes / 512 * 512, whole - bytes);
            if data > 0 {
                qemu_io(&image, &[&format!("read -P 0x77 0 {data}")]);
            }
            qemu_io(&image, &[&format!("read -P 0 -s {} -l {zeroes} {data} 512", bytes - data)]);

            // A write at the end makes the file longer, and QEMU reads it.
            let unit = if way.contains("O_DIRECT") { 4096.min(whole) } else { 512 };
            guest.write(whole - unit, &vec![0x99; unit as usize]);
            guest.flush();
            assert_eq!(fs::metadata(&image).expect("an image").len(), whole);
            qemu_io(&image, &[&format!("read -P 0x99 {} {unit}", whole - unit)]);
            content[(whole - unit) as usize..].fill(0x99);
            assert!(guest.read(0, whole as usize) == content, "{way}, {bytes} bytes");
        }
    }
}

#[test]
fn an_image_without_bytes_is_a_disk_without_sectors() {
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "empty.img", 0);
    for (way, options) in every_way() {
        let mut guest = Guest::new(&image, options);
        assert_eq!(guest.disk_bytes(), 0, "{way}");
        assert_eq!(guest.try_read(0, 512), Err(BlkStatus::IoErr), "{way}");
        assert_eq!(guest.try_write(0, &[1; 512]), BlkStatus::IoErr, "{way}");
        guest.flush();
        assert_eq!(fs::metadata(&image).expect("an image").len(), 0, "{way}");
    }
}

/// Copies a disk as a guest would, leaving out what is zero.
fn copy(from: &mut Guest, to: &mut Guest) {
    const STEP: usize = 128 * 1024;
    for offset in (0..from.disk_bytes()).step_by(STEP) {
        let len = STEP.min((from.disk_bytes() - offset) as usize);
        let data = from.read(offset, len);
        if data.iter().any(|byte| *byte != 0) {
            to.write(offset, &data);
        }
    }
    to.flush();
}

#[test]
fn a_file_system_survives_the_whole_path() {
    let dir = image_dir!();
    let content = dir.path().join("content");
    let mut big = vec![0; 3_000_000];
    Random::new(7).fill(&mut big);
    fs::create_dir_all(content.join("folder")).expect("a directory");
    fs::write(content.join("folder/big"), &big).expect("a file");
    fs::write(content.join("small"), "hello").expect("a file");
    let source = mkfs_ext4(dir.path(), "source.img", 16 * MIB, &content);
    assert_clean_ext4(&source);
    for (way, options) in every_way() {
        eprintln!("{way}");
        let target = qemu_img_create(dir.path(), "target.img", 16 * MIB);
        let mut reader = Guest::new(&source, options.read_only(true));
        let mut writer = Guest::new(&target, options);
        copy(&mut reader, &mut writer);
        assert_same_content(&source, &target);
        assert_clean_ext4(&target);
        assert!(ext4_cat(&target, "/folder/big") == big, "{way}: a file in the file system");
        assert_eq!(ext4_cat(&target, "/small"), b"hello", "{way}");
    }
}

#[test]
fn two_backends_see_one_image() {
    // As two queues of one device on two contexts would.
    let dir = image_dir!();
    let image = qemu_img_create(dir.path(), "shared.img", MIB);
    let file = File::options().open(&image).expect("an image");
    let node = coblk::BlockNode::new("disk", file);
    let threads: Vec<_> = (0..4u8)
        .map(|number| {
            let node = std::sync::Arc::clone(&node);
            std::thread::spawn(move || {
                let ctx = coblk::AioContext::for_test().expect("a context");
                let backend = coblk::BlockBackend::new(&ctx, "drive", node);
                let mut guest = Guest::on(ctx, backend);
                for step in 0..16 {
                    let offset = (step * 4 + u64::from(number)) * 16384;
                    guest.write(offset, &[number + 1; 16384]);
                    assert_eq!(guest.read(offset, 16384), [number + 1; 16384]);
                }
                guest.flush();
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a guest that ends well");
    }
    let commands: Vec<String> =
        (0..64).map(|step| format!("read -P {} {} 16k", step % 4 + 1, step * 16384)).collect();
    qemu_io(&image, &commands.iter().map(String::as_str).collect::<Vec<_>>());
}
