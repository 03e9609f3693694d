//! Syncs of a flush, and failures at each step of a write.

use std::fs;
use std::path::{Path, PathBuf};

use coblk_block::ZeroFlags;
use coblk_tests::{errno, tools};
use serde_json::{Value, json};

use crate::util::{Opened, Stand, assert_same, first_l2, patch};

/// Flags of an entry of a log: a flush, and a discard.
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// What a log of writes says of one request to the file.
struct Entry {
    offset: u64,
    flags: u64,
    /// Whole sectors, of writes.
    bytes: Vec<u8>,
}

impl Entry {
    fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }
}

fn entries(log: &Path) -> Vec<Entry> {
    let log = fs::read(log).unwrap();
    let word = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    let mut at = 512;
    let entry = |_| {
        let (offset, sectors, flags) = (word(at) * 512, word(at + 8) as usize, word(at + 16));
        let data = at + 512..at + 512 + if flags & DISCARD != 0 { 0 } else { sectors * 512 };
        at = data.end;
        Entry { offset, flags, bytes: log[data].to_vec() }
    };
    (0..word(16)).map(entry).collect()
}

/// The syncs that a log of writes has.
fn syncs(log: &Path) -> usize {
    entries(log).iter().filter(|entry| entry.is_flush()).count()
}

fn file(path: &Path) -> Value {
    json!({"driver": "file", "filename": tools::text(path)})
}

/// An image whose file has a log, and that log.
fn open_logged<'a>(stand: &'a Stand, image: &Path) -> (Opened<'a>, PathBuf) {
    // A file with a log does not grow.
    fs::OpenOptions::new().write(true).open(image).unwrap().set_len(64 << 20).unwrap();
    let log = stand.path("writes.log");
    fs::File::create(&log).unwrap().set_len(8 << 20).unwrap();
    let logged = json!({"driver": "blklogwrites", "file": file(image), "log": file(&log)});
    (stand.open_writable(image, json!({"file": logged, "discard": "unmap"})), log)
}

/// Syncs of the image file in a flush after `write`; before that something was written and flushed.
fn syncs_of(create: &str, before: impl Fn(&Opened<'_>), write: impl Fn(&Opened<'_>)) -> usize {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", create, "1G");
    let (opened, log) = open_logged(&stand, &image);
    before(&opened);
    opened.flush().unwrap();
    let earlier = syncs(&log);
    write(&opened);
    assert_eq!(syncs(&log), earlier, "a write that syncs");
    opened.flush().unwrap();
    let count = syncs(&log) - earlier;
    opened.flush().unwrap();
    assert_eq!(syncs(&log), earlier + count, "a flush of nothing");
    drop(opened);
    stand.check(&image);
    stand.end();
    count
}

#[test]
fn q121_q194_a_flush_is_two_syncs_after_allocations_and_one_after_writes_in_place() {
    let write = |opened: &Opened<'_>| opened.write(0, &[7; 4096]).unwrap();
    let others = |opened: &Opened<'_>| {
        // New clusters under ten new tables.
        for index in 1..10 {
            opened.write(index * (60 << 20), &[8; 4096]).unwrap();
        }
    };
    for create in ["cluster_size=8k", "extended_l2=on", "compat=0.10"] {
        assert_eq!(syncs_of(create, write, others), 2, "{create}");
        assert_eq!(syncs_of(create, write, write), 1, "{create}");
        assert_eq!(syncs_of(create, write, |_| ()), 0, "{create}");
    }
}

#[test]
fn q194_zeroes_and_discards_are_flushed_by_one_or_two_syncs() {
    let write = |opened: &Opened<'_>| opened.write(0, &[7; 256 << 10]).unwrap();
    let zero = |opened: &Opened<'_>| {
        let (ctx, flags) = (opened.ctx(), ZeroFlags::empty());
        opened.backend().pwrite_zeroes(ctx, 0, 128 << 10, flags).unwrap();
    };
    assert_eq!(syncs_of("", write, zero), 1);
    let discard = |opened: &Opened<'_>| {
        opened.backend().pdiscard(opened.ctx(), 0, 128 << 10).unwrap();
    };
    assert_eq!(syncs_of("", write, discard), 1);
}

/// What is behind the old end is unlinked before the length says that it is seen; what is behind the new end loses its
/// entries after the length says that it is not.
#[test]
fn q116_q118_a_length_is_durable_after_what_it_shows_and_before_what_it_hides() {
    let stand = Stand::new();
    let image = stand.create("image.qcow2", "cluster_size=8k", "1M");
    stand.qemu_io(&image, &["write -P 7 0 1M".to_owned()]);
    let (half, whole, table) = (512_u64 << 10, 1_u64 << 20, first_l2(&image));
    patch(&image, 24, &half.to_be_bytes());
    let (opened, log) = open_logged(&stand, &image);
    let new_length = |entries: &[Entry], length: u64| {
        let is_it =
            |it: &Entry| it.offset == 0 && it.bytes.get(24..32) == Some(&length.to_be_bytes());
        entries.iter().position(is_it).expect("the header is written")
    };
    let is_of_table =
        |it: &Entry| (table..table + 8192).contains(&it.offset) && !it.bytes.is_empty();
    opened.backend().truncate(&stand.ctx, whole).unwrap();
    let longer = entries(&log);
    let at = new_length(&longer, whole);
    let unlinked = longer[..at].iter().position(is_of_table).expect("entries are dropped before");
    assert!(longer[unlinked..at].iter().any(Entry::is_flush) && longer[at + 1].is_flush());
    assert!(!longer[at..].iter().any(is_of_table));

    opened.write(half, &[8; 64 << 10]).unwrap();
    opened.flush().unwrap();
    let before = entries(&log).len();
    opened.backend().truncate(&stand.ctx, half).unwrap();
    let shorter = entries(&log).split_off(before);
    let at = new_length(&shorter, half);
    assert!(shorter[..at].iter().all(|it| it.bytes.is_empty()), "something else is written first");
    assert!(shorter[at + 1].is_flush() && shorter[at..].iter().any(is_of_table));
    drop(opened);
    stand.check(&image);
    stand.end();
}

/// No refcount changes then, and still data is durable before the entry that shows it: what the place had before
/// the zeroes must not come back.
#[test]
fn q168_data_in_a_place_that_was_kept_is_durable_before_its_entry() {
    let zeroed = |opened: &Opened<'_>| {
        opened.write(0, &[7; 64 << 10]).unwrap();
        let flags = ZeroFlags::empty();
        opened.backend().pwrite_zeroes(opened.ctx(), 0, 64 << 10, flags).unwrap();
    };
    let write = |opened: &Opened<'_>| opened.write(0, &[8; 4096]).unwrap();
    for create in ["", "extended_l2=on"] {
        assert_eq!(syncs_of(create, zeroed, write), 2, "{create}");
    }
}

/// Each step that a write may come to.
const EVENTS: [&str; 12] = [
    "l1_update",
    "l2_load",
    "l2_update",
    "l2_alloc_write",
    "l2_alloc_cow_read",
    "cow_read",
    "read_backing_aio",
    "write_aio",
    "refblock_load",
    "refblock_update_part",
    "refblock_alloc_hookup",
    "cluster_free",
];

/// Writes with a failure at one step: what failed is done again, and then nothing is lost and nothing leaks.
fn run_failure(create: &str, event: &str, code: i32) {
    let stand = Stand::new();
    stand.random_file("base.raw", 1 << 20);
    let backing = format!("backing_file=base.raw,backing_fmt=raw,{create}");
    let image = stand.create("image.qcow2", backing.trim_end_matches(','), "4M");
    let text = tools::text(&image).to_owned();
    stand.qemu_io(&image, &["write -P 1 0 1M".to_owned(), "write -P 2 3M 100k".to_owned()]);
    tools::run("qemu-img", ["snapshot", "-c", "one", &text]);
    let mut content = stand.content(&image);
    let file = json!({
        "driver": "blkdebug",
        "image": file(&image),
        "inject-error": [{"event": event, "once": true, "errno": code}],
    });
    let opened = stand.open_writable(
        &image,
        json!({
            "file": file,
            "discard": "unmap",
            "backing": {"driver": "raw", "file": self::file(&stand.path("base.raw"))},
        }),
    );
    let mut failures = 0;
    let mut again = |what: &dyn Fn() -> std::io::Result<()>| {
        for _ in 0..3 {
            match what() {
                Ok(()) => return,
                failed => {
                    assert_eq!(errno(failed), code, "{event}");
                    failures += 1;
                }
            }
        }
        panic!("{event}: it fails again and again");
    };
    for round in 0..4_u8 {
        for (offset, bytes) in [(100 << 10, 5000), (1 << 20, 70 << 10), (3 << 20, 512)] {
            let data = vec![10 + round; bytes];
            again(&|| opened.write(offset as u64, &data));
            content[offset..offset + bytes].copy_from_slice(&data);
            again(&|| opened.flush());
        }
        again(&|| opened.backend().pdiscard(&stand.ctx, 512 << 10, 256 << 10));
        content[512 << 10..768 << 10].fill(0);
        again(&|| opened.flush());
    }
    assert!(failures <= 2, "{event}: {failures}");
    assert_same(&opened.read(0, 4 << 20).unwrap(), &content, event);
    drop(opened);
    stand.check(&image);
    assert_same(&stand.content(&image), &content, event);
    stand.end();
}

#[test]
fn q95_q196_q223_a_failure_at_any_step_loses_nothing_and_leaks_nothing() {
    for event in EVENTS {
        run_failure("cluster_size=4k", event, libc::EIO);
    }
}

#[test]
fn q95_q196_q223_no_space_at_any_step_loses_nothing_and_leaks_nothing() {
    for event in EVENTS {
        run_failure("", event, libc::ENOSPC);
    }
}
