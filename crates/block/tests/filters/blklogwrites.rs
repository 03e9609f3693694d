//! Logs of writes: their format, and what replaying them gives.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::{AioContext, Co, IoVector};
use coblk_block::filters::blkdebug::{BlkDebug, Rule, Rules};
use coblk_block::filters::blklogwrites::{BlkLogWrites, EntryFlags, LogEntry, ReplayLog, WriteLog};
use coblk_block::{BlockBackend, BlockNode, RequestKind, WriteFlags, ZeroFlags};

use crate::memory::{Memory, errno, simulated};

const SECTOR: usize = 512;
const DISK_BYTES: usize = 64 * SECTOR;

struct Scene {
    ctx: AioContext,
    disk: Memory,
    image_rules: Rules,
    log_rules: Rules,
    log_disk: Memory,
    log: WriteLog,
    backend: BlockBackend,
}

fn scene(seed: u64, log_bytes: usize) -> Scene {
    let ctx = simulated(seed);
    let (disk, log_disk) = (Memory::new(DISK_BYTES), Memory::new(log_bytes));
    let (image_rules, log_rules) = (Rules::new(seed), Rules::new(seed + 1));
    let debug = |disk: &Memory, rules: &Rules| {
        BlockNode::new("debug", BlkDebug::new(disk.node("disk"), rules.clone()))
    };
    let (child, log) = (debug(&disk, &image_rules), debug(&log_disk, &log_rules));
    let filter = ctx.run(|co| BlkLogWrites::create(co, child, log)).expect("a log");
    let log = filter.log().clone();
    let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("logged", filter));
    Scene { ctx, disk, image_rules, log_rules, log_disk, log, backend }
}

impl Scene {
    fn write(&self, sector: u64, byte: u8, flags: WriteFlags) -> io::Result<()> {
        let data = [byte; SECTOR];
        let source = IoVector::from(&data[..]);
        self.backend.pwritev(&self.ctx, sector * SECTOR as u64, &source, flags)
    }

    fn entries(&self) -> Vec<LogEntry> {
        self.ctx.run(|co| entries(co, &self.log_disk))
    }

    /// The image after the first `entries` entries.
    fn replay(&self, entries: u64) -> Vec<u8> {
        let image = Memory::new(DISK_BYTES);
        let applied = self.ctx.run(|co| {
            let mut log = ReplayLog::open(co, self.log_disk.node("log"))?;
            log.co_apply_next(co, entries, &image.node("image"))
        });
        assert_eq!(applied.expect("a log"), entries);
        image.bytes().to_vec()
    }
}

fn entries(co: &Co<'_>, log_disk: &Memory) -> Vec<LogEntry> {
    let mut log = ReplayLog::open(co, log_disk.node("log")).expect("a log");
    std::iter::from_fn(|| log.co_next(co).expect("an entry")).collect()
}

/// Flags, first sector, sectors.
fn short(entry: &LogEntry) -> (EntryFlags, u64, u64) {
    (entry.flags, entry.offset / SECTOR as u64, entry.bytes / SECTOR as u64)
}

#[test]
fn every_change_is_an_entry() {
    let scene = scene(1, 1 << 20);
    let none = EntryFlags::empty();
    scene.disk.bytes().fill(0xff);
    scene.write(3, 7, WriteFlags::empty()).expect("a write");
    scene.backend.pwrite_zeroes(&scene.ctx, 1024, 1024, ZeroFlags::empty()).expect("zeroes");
    scene.backend.pdiscard(&scene.ctx, 4096, 8192).expect("a discard");
    scene.ctx.run(|co| scene.log.co_mark(co, "here")).expect("a mark");
    scene.write(4, 8, WriteFlags::FUA).expect("a write");
    scene.backend.flush(&scene.ctx).expect("a flush");
    let entries = scene.entries();
    let expected = [
        (none, 3, 1),
        (none, 2, 2),
        (EntryFlags::DISCARD, 8, 16),
        (EntryFlags::MARK, 0, 0),
        (EntryFlags::FUA, 4, 1),
        (EntryFlags::FLUSH, 0, 0),
    ];
    assert_eq!(entries.iter().map(short).collect::<Vec<_>>(), expected);
    assert_eq!(entries[3].mark.as_deref(), Some("here"));
    let image = scene.replay(6);
    assert_eq!(image[3 * SECTOR..4 * SECTOR], [0; SECTOR], "zeroed after it was written");
    assert_eq!(image[4 * SECTOR..5 * SECTOR], [8; SECTOR]);
    assert_eq!(scene.replay(1)[3 * SECTOR..4 * SECTOR], [7; SECTOR]);
}

#[test]
fn the_bytes_of_a_log_are_those_of_dm_log_writes() {
    let scene = scene(1, 1 << 20);
    scene.write(3, 7, WriteFlags::empty()).expect("a write");
    scene.backend.flush(&scene.ctx).expect("a flush");
    let bytes = scene.log_disk.bytes();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let words = |sector: usize| [0, 8, 16, 24].map(|at| word(sector * SECTOR + at));
    assert_eq!(words(0), [0x006a_7366_7773_6872, 1, 2, 512]);
    assert_eq!(words(1), [3, 1, 0, 0]);
    assert_eq!(bytes[2 * SECTOR..3 * SECTOR], [7; SECTOR]);
    assert_eq!(words(3), [0, 0, 1, 0]);
}

#[test]
fn a_durable_write_is_counted_at_once_and_others_when_asked() {
    let scene = scene(1, 1 << 20);
    scene.write(0, 1, WriteFlags::empty()).expect("a write");
    assert_eq!(scene.entries().len(), 0);
    scene.write(1, 1, WriteFlags::FUA).expect("a write");
    assert_eq!(scene.entries().len(), 2);
    scene.write(2, 1, WriteFlags::empty()).expect("a write");
    scene.ctx.run(|co| scene.log.co_publish(co)).expect("a superblock");
    assert_eq!((scene.entries().len(), scene.log.entries()), (3, 3));
}

#[test]
fn a_flush_that_fails_leaves_a_mark() {
    let scene = scene(1, 1 << 20);
    scene.image_rules.add(Rule::fail(libc::EIO).on(RequestKind::Flush).once());
    scene.write(0, 1, WriteFlags::empty()).expect("a write");
    assert_eq!(errno(scene.backend.flush(&scene.ctx)), libc::EIO);
    scene.backend.flush(&scene.ctx).expect("the second flush");
    let entries = scene.entries();
    assert_eq!(entries[1].mark.as_deref(), Some("flush failed"));
    assert_eq!((entries.len(), entries[2].flags), (3, EntryFlags::FLUSH));
}

#[test]
fn a_full_log_fails_writes_and_stays_readable() {
    // The superblock, two writes, and one entry without data.
    let scene = scene(1, 6 * SECTOR);
    scene.write(0, 1, WriteFlags::empty()).expect("a write");
    scene.write(1, 1, WriteFlags::empty()).expect("a write");
    assert_eq!(errno(scene.write(2, 1, WriteFlags::empty())), libc::ENOSPC);
    scene.backend.flush(&scene.ctx).expect("a flush");
    assert_eq!(errno(scene.backend.pdiscard(&scene.ctx, 0, 512)), libc::ENOSPC);
    assert_eq!(scene.entries().len(), 3);
    let long = "x".repeat(SECTOR - 31);
    assert_eq!(errno(scene.ctx.run(|co| scene.log.co_mark(co, &long))), libc::EINVAL);
}

#[test]
fn a_log_that_cannot_be_written_fails_everything_after() {
    let scene = scene(1, 1 << 20);
    scene.write(0, 1, WriteFlags::FUA).expect("a write");
    scene.log_rules.add(Rule::fail(libc::EREMOTEIO).on(RequestKind::Write).once());
    assert_eq!(errno(scene.write(1, 1, WriteFlags::empty())), libc::EREMOTEIO);
    assert_eq!(errno(scene.write(2, 1, WriteFlags::empty())), libc::EREMOTEIO);
    assert_eq!(errno(scene.backend.flush(&scene.ctx)), libc::EREMOTEIO);
    assert_eq!(scene.entries().len(), 1, "what was counted before can be read");
}

#[test]
fn what_is_no_log_is_refused() {
    let ctx = simulated(1);
    let opened = ctx.run(|co| ReplayLog::open(co, Memory::new(1 << 20).node("log")).err());
    assert_eq!(opened.map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
}

#[test]
fn a_log_that_ends_within_an_entry_is_refused() {
    let scene = scene(1, 1 << 20);
    scene.write(0, 1, WriteFlags::FUA).expect("a write");
    scene.log_disk.bytes().truncate(2 * SECTOR);
    let mut log = scene.ctx.run(|co| ReplayLog::open(co, scene.log_disk.node("log"))).expect("it");
    let next = scene.ctx.run(|co| log.co_next(co)).err();
    assert_eq!(next.map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
}

/// What writers and a flusher know while they run: the version of each sector that was
/// acknowledged, and what that was when each flush began.
#[derive(Default)]
struct Knowledge {
    acknowledged: RefCell<Vec<u8>>,
    at_flush: RefCell<Vec<Vec<u8>>>,
    running: Cell<usize>,
}

const WRITERS: usize = 8;
const VERSIONS: u8 = 12;

/// Writes its own sectors, version after version.
fn run_writer(co: &Co<'_>, backend: &BlockBackend, writer: usize, known: &Knowledge) {
    let own = DISK_BYTES / SECTOR / WRITERS;
    for version in 1..=VERSIONS {
        let random = |bound| co.context().simulation().expect("simulated").below(bound);
        let first = writer * own + random(4) as usize;
        let sectors = 1 + random(4) as usize;
        let flags = if random(10) == 0 { WriteFlags::FUA } else { WriteFlags::empty() };
        let data = vec![version; sectors * SECTOR];
        let offset = (first * SECTOR) as u64;
        backend.co_pwritev(co, offset, &IoVector::from(&data[..]), flags).expect("a write");
        known.acknowledged.borrow_mut()[first..first + sectors].fill(version);
    }
    known.running.set(known.running.get() - 1);
}

/// Flushes until no writer is left, and once more; looks into the log after each.
fn run_flusher(co: &Co<'_>, backend: &BlockBackend, log_disk: &Memory, known: &Knowledge) {
    loop {
        let last = known.running.get() == 0;
        let before = known.acknowledged.borrow().clone();
        backend.co_flush(co).expect("a flush");
        let flushes = flushes(&entries(co, log_disk)).len();
        let mut at_flush = known.at_flush.borrow_mut();
        if flushes == at_flush.len() {
            // Nothing was written since the last one, so the driver was not asked (contract: C79).
            assert_eq!(Some(&before), at_flush.last(), "a flush that is not in the log");
        } else {
            at_flush.push(before);
            assert_eq!(flushes, at_flush.len(), "one flush more in the log");
        }
        drop(at_flush);
        if last {
            return;
        }
        // A flush that is skipped does not suspend; simulated time passes only while all wait.
        co.sleep(Duration::from_micros(10));
    }
}

/// The numbers of the flushes.
fn flushes(entries: &[LogEntry]) -> Vec<u64> {
    let flush = |entry: &&LogEntry| entry.flags.contains(EntryFlags::FLUSH);
    entries.iter().filter(flush).map(|entry| entry.number).collect()
}

#[test]
fn at_each_flush_a_replay_has_what_was_acknowledged() {
    for seed in 0..20 {
        let scene = scene(seed, 8 << 20);
        for rules in [&scene.image_rules, &scene.log_rules] {
            for us in [50, 20, 7] {
                rules.add(Rule::delay(Duration::from_micros(us)).probability(0.4));
            }
        }
        let known = Rc::new(Knowledge::default());
        known.acknowledged.borrow_mut().resize(DISK_BYTES / SECTOR, 0);
        known.running.set(WRITERS);
        for writer in 0..WRITERS {
            let (backend, known) = (scene.backend.clone(), Rc::clone(&known));
            scene.ctx.spawn("writer", move |co| run_writer(co, &backend, writer, &known));
        }
        scene.ctx.run(|co| run_flusher(co, &scene.backend, &scene.log_disk, &known));

        let flushes = flushes(&scene.entries());
        assert!(flushes.len() > 3, "seed {seed}: {} flushes", flushes.len());
        for (flush, before) in flushes.iter().zip(known.at_flush.borrow().iter()) {
            let image = scene.replay(flush + 1);
            for (sector, version) in before.iter().enumerate() {
                let bytes = &image[sector * SECTOR..][..SECTOR];
                let whole = bytes.iter().all(|byte| *byte == bytes[0]);
                assert!(whole && bytes[0] >= *version, "seed {seed}, flush {flush}: {sector}");
            }
        }
        let all = scene.replay(scene.log.entries());
        assert!(all == *scene.disk.bytes(), "seed {seed}: the whole log makes the whole image");
    }
}

#[test]
fn a_context_that_ends_amid_a_write_breaks_the_log_for_others() {
    let scene = scene(1, 1 << 20);
    scene.log_rules.add(Rule::delay(Duration::from_secs(1)).on(RequestKind::Write).once());
    let other = simulated(2);
    let node = scene.backend.node().expect("a medium");
    let backend = BlockBackend::new(&other, "other", node);
    backend.aio_pwritev(&other, 0, vec![1; SECTOR], WriteFlags::empty(), |_, _, _| ());
    drop(backend);
    drop(other);
    assert_eq!(errno(scene.backend.flush(&scene.ctx)), libc::EIO, "an entry is missing");
}

/// The log may have to be written, whatever the node below can do.
#[test]
fn zeroes_in_a_log_are_never_fast() {
    let scene = scene(1, 1 << 20);
    let flags = ZeroFlags::NO_FALLBACK;
    assert_eq!(errno(scene.backend.pwrite_zeroes(&scene.ctx, 0, 1024, flags)), libc::ENOTSUP);
    assert_eq!(scene.disk.take_log(), []);
}
