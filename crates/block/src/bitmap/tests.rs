use std::sync::Arc;
use std::thread;

use super::*;

const GRANULE: u64 = 512;

/// Which granules of a small disk are dirty, the simple way.
struct Model {
    dirty: Vec<bool>,
    longest: usize,
}

impl Model {
    fn mark(&mut self, first: usize, last: usize, on: bool) {
        self.dirty[first..=last].fill(on);
    }

    fn runs(&self, within: std::ops::Range<usize>) -> Vec<std::ops::Range<u64>> {
        let mut runs: Vec<std::ops::Range<u64>> = Vec::new();
        for granule in within.filter(|granule| self.dirty[*granule]) {
            let (start, end) = (granule as u64 * GRANULE, (granule as u64 + 1) * GRANULE);
            match runs.last_mut().filter(|run| run.end == start) {
                Some(run) => run.end = end,
                None => runs.push(start..end),
            }
        }
        runs
    }

    fn set_length(&mut self, granules: usize) {
        let old = self.dirty.len();
        self.dirty.resize(granules, false);
        if granules > old {
            let again = old..granules.min(self.longest).max(old);
            self.dirty[again].fill(true);
        }
        self.longest = self.longest.max(granules);
    }
}

#[test]
fn bits_are_as_those_of_a_plain_list() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let granules = random.usize(1..20_000);
        let bits = DirtyBits::new(granules as u64 * GRANULE, GRANULE).unwrap();
        let mut model = Model { dirty: vec![false; granules], longest: granules };
        for _ in 0..150 {
            let granules = model.dirty.len();
            let first = random.usize(0..granules);
            let most = random.usize(1..10_000);
            let last = random.usize(first..granules.min(first + most));
            let start = first as u64 * GRANULE;
            let range = start..(last as u64 + 1) * GRANULE;
            match random.u32(0..20) {
                0..7 => {
                    let inner =
                        range.start + random.u64(0..GRANULE)..range.end - random.u64(0..GRANULE);
                    if inner.start < inner.end {
                        bits.mark(inner);
                        model.mark(first, last, true);
                    }
                }
                7..11 => {
                    bits.clear(range);
                    model.mark(first, last, false);
                }
                11..14 => {
                    let expected = model.runs(first..last + 1).into_iter().next();
                    assert_eq!(bits.take(range), expected, "seed {seed}");
                    if let Some(taken) = expected {
                        let (first, end) = (taken.start / GRANULE, taken.end / GRANULE);
                        model.mark(first as usize, end as usize - 1, false);
                    }
                }
                14..17 => {
                    let found: Vec<_> = bits.dirty_ranges(range.clone()).collect();
                    assert_eq!(found, model.runs(first..last + 1), "seed {seed}");
                    let clean = (first..=last).find(|granule| !model.dirty[*granule]);
                    assert_eq!(bits.next_clean(range), clean.map(|it| it as u64 * GRANULE));
                    assert_eq!(bits.is_dirty(start), model.dirty[first]);
                }
                17 => {
                    let words = (granules as u64).div_ceil(64);
                    let copy = DirtyBits::new(bits.length(), GRANULE).unwrap();
                    (0..words).for_each(|word| copy.set_word(word, bits.word(word)));
                    assert_eq!(copy.sha256(), bits.sha256());
                    let ones = model.dirty.iter().filter(|it| **it).count() as u64;
                    assert_eq!([bits.count(), copy.count()], [ones * GRANULE; 2], "seed {seed}");
                }
                _ => {
                    let granules = random.usize(1..40_000);
                    bits.set_length(granules as u64 * GRANULE, true);
                    model.set_length(granules);
                    assert_eq!(bits.granules(), granules as u64);
                }
            }
        }
        let all: Vec<_> = bits.dirty_ranges(0..u64::MAX).collect();
        assert_eq!(all, model.runs(0..model.dirty.len()), "seed {seed}");
    }
}

#[test]
fn the_last_granule_may_be_a_part_of_one() {
    let bits = DirtyBits::new(1000, GRANULE).unwrap();
    bits.mark(999..1000);
    assert_eq!(bits.count(), 512);
    assert_eq!(bits.next_dirty_range(0..u64::MAX), Some(512..1000));
    assert_eq!(bits.next_dirty_range(600..700), Some(600..700));
    assert_eq!(bits.next_clean(512..1000), None);
    assert_eq!(bits.take(0..1000), Some(512..1000));
    assert_eq!(bits.next_dirty(0..1000), None);
}

#[test]
fn impossible_bits_are_refused() {
    let errno = |length, granularity| {
        DirtyBits::new(length, granularity).map(drop).unwrap_err().raw_os_error()
    };
    for granularity in [0, 1, 256, 513, 1 << 32] {
        assert_eq!(errno(1 << 20, granularity), Some(libc::EINVAL), "{granularity}");
    }
    assert_eq!(errno(1 << 62, 512), Some(libc::EFBIG));
    assert!(DirtyBits::new(0, 1 << 31).is_ok());
}

#[test]
fn j113_a_mark_behind_the_end_makes_place_for_itself() {
    let bits = DirtyBits::new(GRANULE, GRANULE).unwrap();
    bits.mark(1 << 20..(1 << 20) + 1);
    assert_eq!(bits.length(), (1 << 20) + 1);
    assert_eq!(bits.next_dirty_range(0..u64::MAX), Some(1 << 20..(1 << 20) + 1));
    assert!(!bits.is_torn());
    // There is no memory for so many: what is clean may be dirty.
    bits.mark((1 << 61)..(1 << 61) + 1);
    assert!(bits.is_torn());
}

#[test]
fn j113_what_was_cut_and_has_come_back_is_dirty_and_what_is_new_is_clean() {
    let bits = DirtyBits::new(10 * GRANULE, GRANULE).unwrap();
    bits.set_length(4 * GRANULE, true);
    assert_eq!(bits.count(), 0);
    bits.set_length(20 * GRANULE, true);
    let dirty: Vec<_> = bits.dirty_ranges(0..u64::MAX).collect();
    assert_eq!(dirty, vec![4 * GRANULE..10 * GRANULE]);
    // One that does not record stays clean.
    let disabled = DirtyBits::new(10 * GRANULE, GRANULE).unwrap();
    disabled.mark(9 * GRANULE..10 * GRANULE);
    disabled.set_length(4 * GRANULE, false);
    disabled.set_length(20 * GRANULE, false);
    assert_eq!(disabled.count(), 0);
}

#[test]
fn threads_mark_and_take_at_once_and_no_granule_is_lost() {
    let bits = &DirtyBits::new(64 * 64 * 8 * GRANULE, GRANULE).unwrap();
    let all = bits.granules();
    let taken: u64 = thread::scope(|scope| {
        let markers = (0..2).map(|part| {
            scope.spawn(move || {
                for granule in (part..all).step_by(2) {
                    bits.mark(granule * GRANULE..(granule + 1) * GRANULE);
                }
            })
        });
        let markers: Vec<_> = markers.collect();
        let mut taken = 0;
        while !markers.iter().all(|marker| marker.is_finished()) {
            taken += bits.take(0..u64::MAX).map_or(0, |range| (range.end - range.start) / GRANULE);
        }
        taken
    });
    assert_eq!(taken + bits.count() / GRANULE, all);
    let scanned: u64 = bits.dirty_ranges(0..u64::MAX).map(|range| range.end - range.start).sum();
    assert_eq!(scanned, bits.count());
}

fn named(name: &str) -> NewBitmap {
    NewBitmap::new(Some(name.to_owned()), 65536)
}

#[test]
fn j110_merges_go_across_granularities() {
    let set = Bitmaps::new();
    let length = 1 << 20;
    let coarse = set.add(named("coarse"), length).unwrap();
    let fine = set.add(NewBitmap { granularity: 4096, ..named("fine") }, length).unwrap();
    fine.bits().mark(70_000..70_001);
    coarse.merge(&[Arc::clone(&fine), Arc::clone(&coarse)]).unwrap();
    assert_eq!(coarse.bits().next_dirty_range(0..length), Some(65536..131072));
    fine.merge(&[Arc::clone(&coarse)]).unwrap();
    assert_eq!(fine.bits().count(), 65536);
    // None, and one of another disk, after one that would do.
    fine.merge(&[]).unwrap();
    let other = set.add(named("other"), length + 1).unwrap();
    other.bits().mark(0..1);
    let before = coarse.bits().sha256();
    let dirty = set.add(named("dirty"), length).unwrap();
    dirty.bits().mark(0..1);
    let error = coarse.merge(&[dirty, other]).unwrap_err().to_string();
    assert!(error.contains("(destination size is 1048576, source size is 1048577)"), "{error}");
    assert_eq!(coarse.bits().sha256(), before);
}

#[test]
fn a_slot_is_used_again_for_the_next_bitmap() {
    let set = Bitmaps::new();
    let first = set.add(named("a"), 1 << 20).unwrap();
    set.mark(&(0..1));
    let bits = std::ptr::from_ref(first.bits());
    let kept = set.add(named("a"), 1 << 20).unwrap_err().to_string();
    assert_eq!(kept, "Bitmap already exists: a");
    set.remove(&first);
    // While it is held its bits stay as they are.
    let second = set.add(named("a"), 1 << 20).unwrap();
    assert!(!std::ptr::eq(bits, second.bits()));
    assert_eq!(first.bits().count(), 65536);
    drop(first);
    set.remove(&second);
    drop(second);
    let third = set.add(named("a"), 1 << 19).unwrap();
    assert!(std::ptr::eq(bits, third.bits()));
    assert_eq!((third.bits().count(), third.bits().length()), (0, 1 << 19));
    // It has not been longer.
    set.follow(|| 1 << 20);
    assert_eq!(third.bits().count(), 0);
}

#[test]
fn j111_a_successor_takes_the_place_of_a_bitmap_or_is_merged_into_it() {
    let set = Bitmaps::new();
    let bitmap = set.add(NewBitmap { is_persistent: true, ..named("a") }, 1 << 20).unwrap();
    set.mark(&(0..1));
    let split = set.split(&bitmap).unwrap();
    set.mark(&(1 << 19..(1 << 19) + 1));
    assert_eq!(bitmap.bits().count(), 65536);
    assert!(bitmap.is_recording() && bitmap.info().is_busy);
    assert!(matches!(bitmap.clear(), Err(BitmapError::Busy(_))));
    assert_eq!(set.list()[0].name(), None);
    drop(split);
    assert_eq!((bitmap.bits().count(), set.list().len()), (2 * 65536, 1));
    set.mark(&(1 << 18..(1 << 18) + 1));
    assert_eq!(bitmap.bits().count(), 3 * 65536);

    let split = set.split(&bitmap).unwrap();
    set.mark(&(0..1));
    let heir = split.keep_successor();
    assert_eq!((heir.bits().count(), heir.is_persistent()), (65536, true));
    assert_eq!(bitmap.info().name, None);
    assert!(!bitmap.is_recording());
    let listed = set.list();
    assert!(listed.len() == 1 && Arc::ptr_eq(&listed[0], &heir));
    assert!(Arc::ptr_eq(&set.find("a").unwrap(), &heir));
    assert!(heir.clear().is_ok());
}

#[test]
fn states_forbid_what_they_have_to() {
    let set = Bitmaps::new();
    let add = |name: &str| set.add(named(name), 1 << 20).unwrap();
    let (busy, fixed, torn, plain) = (add("busy"), add("fixed"), add("torn"), add("plain"));
    let acquired = busy.acquire(BitmapUse::Read).unwrap();
    fixed.set_read_only(true);
    torn.set_inconsistent();
    let allowed = |bitmap: &Arc<DirtyBitmap>| {
        [
            bitmap.clear().is_ok(),
            bitmap.set_recording(true).is_ok(),
            bitmap.merge(&[Arc::clone(&plain)]).is_ok(),
            plain.merge(&[Arc::clone(bitmap)]).is_ok(),
            bitmap.check(BitmapUse::Remove).is_ok(),
            bitmap.check(BitmapUse::Read).is_ok(),
        ]
    };
    assert_eq!(allowed(&busy), [false; 6]);
    assert_eq!(allowed(&fixed), [false, true, false, true, false, true]);
    assert_eq!(allowed(&torn), [false, false, false, false, true, false]);
    assert_eq!(allowed(&plain), [true; 6]);
    drop(acquired);
    assert_eq!(allowed(&busy), [true; 6]);
}
