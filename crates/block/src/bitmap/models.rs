//! Models that loom runs in every order that the memory model allows, on the crate's own [`Words`] and [`Slots`]:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p coblk-block --release --lib models
//! ```

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

use super::bits::DirtyBits;
use super::slots::{Slot, Slots};
use super::words::Words;

/// Runs a model in every order with at most three switches away from a thread that could go on. More find nothing
/// new in models this small, and take forever.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// A granule with its bit. The data is what was written last.
struct Disk {
    words: Words,
    data: AtomicU64,
}

impl Disk {
    fn new() -> Arc<Disk> {
        Arc::new(Disk { words: Words::new(1).unwrap(), data: AtomicU64::new(0) })
    }

    fn write(&self, data: u64) {
        self.data.store(data, Ordering::Relaxed);
        // The driver's return.
        fence(Ordering::SeqCst);
        self.words.set(0, 1);
    }
}

/// A copier takes the bit, then reads. What it has not seen is dirty at the end.
fn is_copied_or_dirty(take: impl Fn(&Words) -> bool + Send + Sync + Copy + 'static) {
    model(move || {
        let disk = Disk::new();
        disk.words.set(0, 1);
        let writer = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || disk.write(7))
        };
        let copied = take(&disk.words).then(|| disk.data.load(Ordering::Relaxed));
        writer.join().unwrap();
        let is_dirty = disk.words.get(0) & 1 != 0;
        assert!(is_dirty || copied == Some(7), "copied {copied:?}");
        assert_eq!(disk.words.next_set(0), is_dirty.then_some(0));
    });
}

#[test]
fn j134_a_write_is_seen_by_the_copy_or_marked_again() {
    is_copied_or_dirty(|words| words.clear(0, 1) != 0);
    is_copied_or_dirty(|words| words.take(0, |old| old & 1) != 0);
}

#[test]
fn j134_a_word_with_bits_is_noted_when_all_have_returned() {
    model(|| {
        // The scan looks at its first word itself, and at notes for others.
        let words = Arc::new(Words::new(2).unwrap());
        words.set(1, 1);
        let set = {
            let words = Arc::clone(&words);
            thread::spawn(move || words.set(1, 2))
        };
        words.clear(1, 1);
        set.join().unwrap();
        assert_eq!(words.next_set(0), Some(65));
    });
}

#[test]
fn j134_what_another_writer_is_about_to_note_is_noted_by_the_first_to_return() {
    model(|| {
        let words = Arc::new(Words::new(2).unwrap());
        let other = {
            let words = Arc::clone(&words);
            thread::spawn(move || words.set(1, 1))
        };
        words.set(1, 1);
        assert_eq!(words.next_set(0), Some(64));
        other.join().unwrap();
    });
}

#[test]
fn j126_each_granule_is_taken_by_one() {
    model(|| {
        let words = Arc::new(Words::new(1).unwrap());
        words.set(0, 3);
        let other = {
            let words = Arc::clone(&words);
            thread::spawn(move || words.take(0, |old| old))
        };
        let mine = words.take(0, |old| old & 1);
        let other = other.join().unwrap();
        assert_eq!(mine & other, 0);
        assert_eq!((mine | other) | words.get(0), 3);
    });
}

/// A bitmap takes over from its successor, as [`SplitBitmap`](super::SplitBitmap) does when it is dropped.
#[test]
fn j111_a_write_beside_a_merge_is_in_the_bitmap() {
    model(|| {
        let slots = Arc::new(Slots::default());
        let slot = || Slot::new(DirtyBits::new(512, 512).unwrap());
        let (bitmap, successor) = (slot(), slot());
        slots.add(&bitmap);
        slots.add(&successor);
        slots.count_pair(true);
        successor.set_recording(true);
        let writer = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || slots.mark(&(0..1)))
        };
        bitmap.set_recording(true);
        bitmap.bits.merge_from(&successor.bits);
        successor.set_recording(false);
        slots.count_pair(false);
        writer.join().unwrap();
        assert!(bitmap.bits.is_dirty(0));
    });
}
