//! Crashes at each write of a repair, on images with random damage.

mod disk;
mod facts;

use coblk_aio::{AioContext, Co};
use coblk_block::Repair;
use coblk_tests::tools;

use self::disk::Disk;
use self::facts::Facts;
use crate::check::{Check, CheckOptions, co_check_store};
use crate::layout::RefcountWidth;
use crate::source::{ImageError, Source};
use crate::tables;

/// Small images of many shapes.
fn images() -> Vec<Vec<u8>> {
    let shapes = [
        "cluster_size=512",
        "cluster_size=512,refcount_bits=1",
        "cluster_size=1k,refcount_bits=64,lazy_refcounts=on",
        "cluster_size=4k",
        "cluster_size=2k,compat=0.10",
        "cluster_size=16k,extended_l2=on",
    ];
    shapes.iter().map(|shape| image(shape)).collect()
}

fn image(shape: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let path = tools::text(&path);
    tools::run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", shape, path, "128k"]);
    let io = |commands: &[&str]| {
        let commands = commands.iter().flat_map(|it| ["-c", it]);
        let said = tools::run("qemu-io", ["-f", "qcow2"].into_iter().chain(commands).chain([path]));
        assert!(!said.contains("failed"), "{said}");
    };
    io(&["write -P 7 0 40k", "write -c -P 5 64k 16k", "write -z 96k 16k"]);
    // A second reference needs a second bit.
    if !shape.contains("refcount_bits=1") {
        tools::run("qemu-img", ["snapshot", "-c", "one", path]);
        io(&["write -P 9 4k 8k", "write -P 8 50k 3k"]);
        tools::run("qemu-img", ["snapshot", "-c", "two", path]);
        io(&["write -P 10 0 2k", "discard 20k 8k"]);
    }
    std::fs::read(path).unwrap()
}

/// Sets words of tables and refcounts, so that they are wrong in many ways.
fn co_damage(co: &Co<'_>, bytes: &mut [u8], random: &mut fastrand::Rng) {
    let disk = Disk::new(bytes.to_vec());
    let (header, _) = tables::co_header(co, &disk).unwrap();
    let cluster = 1_u64 << header.cluster_bits;
    let clusters = disk.end() / cluster;
    let offset = 0x00ff_ffff_ffff_fe00;
    let words = |at: u64, words: u64| tables::co_words(co, &disk, at, words).unwrap();
    let l1 = words(header.l1_offset, header.l1_entries.into());
    let blocks = words(header.refcount_table_offset, 1);
    for _ in 0..random.u32(1..5) {
        let l2 = l1[random.usize(..l1.len().min(4))] & offset;
        let step = if header.geometry().unwrap().is_extended() { 16 } else { 8 };
        let any = |random: &mut fastrand::Rng| l2 + random.u64(..cluster.min(2048) / step) * step;
        // One that is not empty, if luck has it.
        let entry = any(random);
        let entry = if words(entry, 1)[0] == 0 { any(random) } else { entry };
        match random.u32(..11) {
            // A refcount, or several.
            0..=2 => {
                let at = (blocks[0] + random.u64(..cluster.min(2 * clusters))) as usize;
                let any = random.u8(..);
                bytes[at] = *random.choice(&[0, 1, 2, 3, any]).unwrap();
            }
            // The flag COPIED.
            3 => bytes[entry as usize] ^= 0x80,
            // As a write leaves it whose snapshot has been deleted: shared, and counted twice.
            9 => {
                bytes[entry as usize] &= 0x7f;
                let number = (words(entry, 1)[0] & offset) / cluster;
                let width = RefcountWidth::new(header.refcount_order).unwrap();
                let _ = width.set(&mut bytes[blocks[0] as usize..], number as usize, 2);
            }
            4 => bytes[(header.l1_offset + random.u64(..l1.len() as u64) * 8) as usize] ^= 0x80,
            // Another place, aligned or not, or none.
            5 => {
                let place = random.u64(1..clusters + 2) * cluster;
                let word =
                    *random.choice(&[0, place, place + 512, place | 1, place + 513]).unwrap();
                let flag = if random.bool() { 1 << 63 } else { 0 };
                set(bytes, entry, word | flag);
            }
            // As another entry.
            6 => {
                let word = words(any(random), 1)[0];
                set(bytes, entry, word);
            }
            // What has a place has it in the middle of a cluster, and is zeroes.
            7 => {
                let word = words(entry, 1)[0];
                set(bytes, entry, word | 0x201);
            }
            // Data where a table is.
            8 => {
                let table = *random.choice(&[header.l1_offset, l2, blocks[0]]).unwrap();
                set(bytes, entry, table | 1 << 63);
            }
            _ if random.u32(..3) == 0 => {
                let word = *random.choice(&[0, 512, cluster, 1 << 40]).unwrap();
                set(bytes, header.refcount_table_offset, word);
            }
            _ => {}
        }
    }
}

fn set(bytes: &mut [u8], at: u64, word: u64) {
    if let Some(place) = bytes.get_mut(at as usize..at as usize + 8) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

fn co_repair(co: &Co<'_>, disk: &Disk, repair: Repair) -> Result<Check, ImageError> {
    co_check_store(co, disk, &CheckOptions::new(repair))
}

/// Repairs a damaged image, with a crash at each step, and again after that.
fn co_crash(co: &Co<'_>, damaged: &[u8], repair: Repair, random: &mut fastrand::Rng, what: &str) {
    let before = Facts::co_of(co, damaged);
    let disk = Disk::new(damaged.to_vec());
    let Ok(outcome) = co_repair(co, &disk, repair) else {
        assert!(!disk.is_changed(), "{what}: it failed, and has written");
        return;
    };
    let after = Facts::co_of(co, &disk.bytes());
    after.assert_not_worse(&before, what);
    let left = (outcome.report.corruptions, outcome.report.leaks, outcome.report.check_errors);
    for steps in 0..=disk.steps() {
        for part in [0, 1, 2, 3] {
            let what = format!("{what}, after step {steps} of {}, part {part}", disk.steps());
            let crashed = disk.after_crash(steps, || part == 0 || random.bool());
            Facts::co_of(co, &crashed).assert_not_worse(&before, &what);
            let again = Disk::new(crashed);
            let second = co_repair(co, &again, repair).unwrap_or_else(|it| panic!("{what}: {it}"));
            let report = second.report;
            let found = (report.corruptions, report.leaks, report.check_errors);
            assert_eq!(found, left, "{what}: {:#?}\n{:#?}", second.findings, outcome.findings);
        }
    }
    let again = Disk::new(disk.bytes());
    co_repair(co, &again, repair).unwrap();
    assert!(!again.is_changed(), "{what}: a second repair writes");
}

#[test]
fn q140_q218_a_repair_can_be_interrupted_at_each_write() {
    let images = images();
    let ctx = AioContext::for_test().unwrap();
    for seed in coblk_tests::random::seeds(100) {
        let mut random = fastrand::Rng::with_seed(seed);
        let number = random.usize(..images.len());
        let mut damaged = images[number].clone();
        ctx.run(|co| {
            co_damage(co, &mut damaged, &mut random);
            for repair in [Repair::Leaks, Repair::All] {
                let what = format!("seed {seed}, image {number}, {repair:?}");
                co_crash(co, &damaged, repair, &mut random, &what);
            }
        });
    }
}
