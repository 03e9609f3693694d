//! Many images of attackers, each by a seed: opened, read, checked, repaired, and all that within bounds.
//!
//! `COBLK_SEEDS=10000 cargo test -p coblk-qcow2 --test hostile_images` makes ten thousand.

mod util;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use coblk_aio::IoVector;
use coblk_block::{BackendOptions, Repair, WriteFlags, ZeroFlags};
use coblk_qcow2::check::CheckOptions;
use coblk_tests::tools;
use fastrand::Rng;
use serde_json::json;
use util::repair::{repair, repair_with};
use util::{Opened, Stand, first_l2, patch, word};

const COPIED: u64 = 1 << 63;
/// For how long one image keeps a CPU busy at most.
const MAX_TIME: Duration = Duration::from_secs(10);
/// When a test that does not come back is ended.
const HANGS: Duration = Duration::from_secs(120);
const MAX_MEMORY_KIB: u64 = 2 << 20;

/// Good images, as `qemu-img create -o`.
const SHAPES: [&str; 10] = [
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64,lazy_refcounts=on",
    "cluster_size=4k,compat=0.10",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=1k,compression_type=zstd",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=64k",
    "cluster_size=4k,backing_file=/dev/null,backing_fmt=raw",
    "cluster_size=2k,refcount_bits=8",
    "cluster_size=2M",
];

/// The bytes of good images.
fn images() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| SHAPES.iter().map(|shape| image(shape)).collect())
}

fn image(shape: &str) -> Vec<u8> {
    let stand = Stand::new();
    let path = stand.create("image.qcow2", shape, "256k");
    let mut commands = vec!["write -P 7 0 100k", "write -z 200k 16k"];
    if !shape.contains("2M") {
        commands.insert(0, "write -c -P 9 128k 64k");
    }
    stand.qemu_io(&path, &commands.into_iter().map(str::to_owned).collect::<Vec<_>>());
    // A snapshot needs a second bit, a bitmap version 3.
    if !shape.contains("refcount_bits=1") {
        for name in ["one", "two"] {
            tools::run("qemu-img", ["snapshot", "-c", name, tools::text(&path)]);
            stand.qemu_io(&path, &["write -P 3 8k 8k".to_owned()]);
        }
    }
    if !shape.contains("compat=0.10") {
        tools::run("qemu-img", ["bitmap", "--add", "-g", "512", tools::text(&path), "bits"]);
    }
    let bytes = fs::read(&path).unwrap();
    stand.end();
    bytes
}

/// Changes bytes in the first 6 clusters, or in tables.
fn damage(bytes: &mut [u8], random: &mut Rng) {
    let cluster = 1_usize << bytes[23].clamp(9, 21);
    let first = (6 * cluster).min(bytes.len());
    for _ in 0..random.usize(1..8) {
        let most = *random.choice(&[112, 112, first, first, bytes.len()]).unwrap();
        let at = random.usize(..most);
        match random.u32(..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u32(..8),
            // A word that may be an offset, or a large number.
            _ => {
                let at = at & !7;
                let place = (random.usize(..8) * cluster) as u64;
                let any = random.u64(..);
                let words = [0, 1, place, place | COPIED, place | 1 << 62, 1 << 40, any, u64::MAX];
                let word = *random.choice(&words).unwrap();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&word.to_be_bytes()[..end - at]);
            }
        }
    }
}

/// Images that lead to themselves, or say that there is very much of something.
const BY_HAND: [fn(&Path, &mut Rng); 10] = [
    // L1 to itself; L2 to L1 and to itself.
    |image, _| patch(image, word(image, 40), &(word(image, 40) | COPIED).to_be_bytes()),
    |image, _| patch(image, first_l2(image), &(word(image, 40) | COPIED).to_be_bytes()),
    |image, _| patch(image, first_l2(image), &(first_l2(image) | COPIED).to_be_bytes()),
    // A block that counts itself as free.
    |image, _| patch(image, word(image, word(image, 48)) + 4, &[0; 2]),
    // Two entries to one table; a snapshot that has the active one.
    |image, _| {
        patch(image, 24, &(1_u64 << 30).to_be_bytes());
        patch(image, 36, &2_u32.to_be_bytes());
        patch(image, word(image, 40) + 8, &word(image, word(image, 40)).to_be_bytes());
    },
    |image, _| {
        patch(image, 60, &1_u32.to_be_bytes());
        patch(image, word(image, 64), &word(image, 40).to_be_bytes());
    },
    // Many snapshots, whose tables are as long as can be, in a hole of the file.
    |image, random| {
        grow(image, 8 << 30);
        patch(image, 60, &random.u32(1..70_000).to_be_bytes());
        patch(image, 64, &(1_u64 << 30).to_be_bytes());
        let mut table = Vec::new();
        for number in 0..65_536 {
            table.extend(((2_u64 << 30) + number % 128 * (32 << 20)).to_be_bytes());
            table.extend((4_u32 << 20).to_be_bytes());
            table.extend([0; 24]);
            table.extend(16_u32.to_be_bytes());
            table.extend([0; 16]);
        }
        patch(image, 1 << 30, &table);
    },
    // Long tables, all of the same entry.
    |image, _| {
        grow(image, 1 << 30);
        patch(image, 24, &(1_u64 << 44).to_be_bytes());
        patch(image, 36, &(1_u32 << 20).to_be_bytes());
        let entry = word(image, word(image, 40)).to_be_bytes();
        patch(image, 40, &(1_u64 << 29).to_be_bytes());
        patch(image, 1 << 29, &entry.repeat(1 << 20));
    },
    // A refcount table of 8 MiB, of blocks that are one, or in a hole, or nowhere.
    |image, random| {
        grow(image, 1 << 30);
        patch(image, 48, &(1_u64 << 29).to_be_bytes());
        patch(image, 56, &(8_u32 << 20 >> bits(image)).to_be_bytes());
        let block = *random.choice(&[word(image, 40), 1 << 28, 1 << 50]).unwrap();
        patch(image, 1 << 29, &block.to_be_bytes().repeat(1 << 20));
    },
    // As many bitmaps as can be, in the header.
    |image, _| {
        let bytes = fs::read(image).unwrap();
        let magic = 0x2385_2875_u32.to_be_bytes();
        let found = bytes[..4096.min(bytes.len())].windows(4).position(|it| it == magic);
        let Some(at) = found.map(|at| at as u64) else { return };
        patch(image, at + 8, &65_535_u32.to_be_bytes());
        patch(image, at + 16, &(64_u64 << 20).to_be_bytes());
        grow(image, 1 << 28);
    },
];

/// Binary logarithm of the cluster size.
fn bits(image: &Path) -> u32 {
    ((word(image, 16) & 0xffff_ffff) as u32).clamp(9, 21)
}

fn grow(image: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(image).unwrap().set_len(bytes).unwrap();
}

/// A hostile image.
fn make(path: &Path, random: &mut Rng) {
    let mut bytes = random.choice(images()).unwrap().clone();
    let is_by_hand = random.u32(..8) == 0;
    if !is_by_hand || random.bool() {
        damage(&mut bytes, random);
    }
    fs::write(path, &bytes).unwrap();
    if is_by_hand {
        // What is patched is found by words that may be damaged.
        let is_whole = |at: u64| word_within(&bytes, at).is_some_and(|it| it < bytes.len() as u64);
        if [40, 48, 64].into_iter().all(is_whole) {
            let l1 = word_within(&bytes, word_within(&bytes, 40).unwrap()).unwrap_or(0);
            let block = word_within(&bytes, word_within(&bytes, 48).unwrap()).unwrap_or(0);
            let is_within = |at: u64| at & 0x00ff_ffff_ffff_fe00 < bytes.len() as u64;
            if is_within(l1) && is_within(block) {
                random.choice(&BY_HAND).unwrap()(path, random);
            }
        }
    }
}

fn word_within(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().unwrap()))
}

/// Opens an image if that is possible, and reads here and there.
fn read(stand: &Stand, image: &Path, random: &mut Rng) {
    // Its names are the attacker's.
    let options = json!({"x-named-files": "refuse"});
    let Ok(node) = stand.try_open(image, options) else { return };
    let opened = Opened::new(stand, node);
    let length = opened.node.length();
    let _ = opened.read(0, length.min(512 << 10) as usize);
    for _ in 0..4 {
        let at = random.u64(..length.max(1));
        let bytes = (length - at).min(70_000);
        let _ = opened.read(at, bytes as usize);
        let _ = opened.backend().block_status(&stand.ctx, at, bytes);
    }
    let check = |co: &coblk_aio::Co<'_>| {
        let image = opened.node.co_image(co).unwrap();
        let _ = (image.info(), image.co_snapshots(co), image.co_check(co, Repair::None));
    };
    stand.ctx.run(check);
}

/// Opens an image for writes if that is possible, and changes it here and there. Returns whether it is
/// closed again.
fn write(stand: &Stand, image: &Path, random: &mut Rng) -> bool {
    let options = json!({"x-named-files": "refuse", "read-only": false});
    let Ok(node) = stand.try_open(image, options) else { return true };
    let backend = BackendOptions::new("writer").open(&stand.ctx, node.clone()).unwrap();
    let length = node.length().min(1 << 40);
    for round in 0..6 {
        let at = random.u64(..length.max(1));
        let bytes = (length - at).min(random.u64(1..70_000));
        let data = vec![7; bytes as usize];
        let _ = match round {
            0 => backend.pdiscard(&stand.ctx, at, bytes),
            1 => backend.pwrite_zeroes(&stand.ctx, at, bytes, ZeroFlags::empty()),
            2 => backend.flush(&stand.ctx),
            _ => {
                let near = at % (512 << 10);
                let bytes = bytes.min(length.saturating_sub(near)) as usize;
                let data = IoVector::from(&data[..bytes]);
                backend.pwritev(&stand.ctx, near, &data, WriteFlags::empty())
            }
        };
    }
    drop(backend);
    // What cannot be written keeps a node open.
    stand.blockdevs.close(&stand.ctx, node.name()).is_ok()
}

/// All that is done with one image. Returns whether the stand has no node.
fn run(stand: &Stand, image: &Path, random: &mut Rng, what: &str) -> bool {
    read(stand, image, random);
    let _ = repair_with(stand, image, &CheckOptions::new(Repair::None));
    let length = fs::metadata(image).unwrap().len();
    let way = *random.choice(&[Repair::Leaks, Repair::All, Repair::All]).unwrap();
    // Twice, so that it has nothing to do.
    if let Ok(first) = repair(stand, image, way) {
        let again = repair(stand, image, way).unwrap_or_else(|it| panic!("{what}: {it}"));
        let fixed = (again.report.corruptions_fixed, again.report.leaks_fixed);
        assert_eq!(fixed, (0, 0), "{what}: {:?}\n{:?}", first.findings, again.findings);
        assert_eq!(again.report.leaks, 0, "{what}: {:?}", again.findings);
    }
    let longer = fs::metadata(image).unwrap().len() - length;
    let cluster = 1 << bits(image);
    assert!(longer <= length / 16 + 64 * cluster, "{what}: {longer} bytes longer than {length}");
    read(stand, image, random);
    let is_closed = write(stand, image, random);
    if is_closed {
        read(stand, image, random);
    }
    is_closed
}

/// The most memory that this process had, in KiB.
fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// For how long this process has kept CPUs busy.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // What follows the name, which is in parentheses: state, ..., ticks of user and of system.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(|it| it.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Ends the process if it is told of no image for long.
fn watch() -> mpsc::Sender<String> {
    let (told, next) = mpsc::channel::<String>();
    std::thread::spawn(move || {
        let mut last = String::new();
        loop {
            match next.recv_timeout(HANGS) {
                Ok(what) => last = what,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{last}: it hangs");
                    std::process::abort();
                }
            }
        }
    });
    told
}

#[test]
fn q204_q207_q208_hostile_images_take_bounded_time_memory_and_space() {
    let watch = watch();
    images();
    let dir = Stand::in_memory();
    let mut stand = Stand::in_memory();
    let image: PathBuf = dir.path("hostile.qcow2");
    let mut slowest = (Duration::ZERO, 0);
    for seed in coblk_tests::random::seeds(150) {
        let what = format!("seed {seed}");
        watch.send(what.clone()).unwrap();
        let mut random = Rng::with_seed(seed);
        make(&image, &mut random);
        let start = cpu_time();
        if !run(&stand, &image, &mut random, &what) {
            stand = Stand::in_memory();
        }
        slowest = slowest.max((cpu_time() - start, seed));
        fs::remove_file(&image).unwrap();
        if seed % 500 == 499 {
            println!("{what} is done");
        }
        let memory = peak_memory_kib();
        assert!(memory < MAX_MEMORY_KIB, "{what}: {memory} KiB of memory");
    }
    let (time, seed) = slowest;
    println!("the slowest was seed {seed} with {time:?}; {} KiB of memory", peak_memory_kib());
    assert!(time < MAX_TIME, "seed {seed} took {time:?}");
    stand.end();
}
