//! Hits, misses, eviction, and readers beside a filler.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::thread;

use coblk_aio::{AioContext, Co};

use super::*;

const SLICE: u64 = 512;

/// The words of a slice in these tests: all the same.
fn bytes_of(slice: u64, target: &mut [u8]) {
    target.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = slice.to_be_bytes());
}

fn first(words: &[AtomicU64]) -> u64 {
    words[0].load(Ordering::Relaxed)
}

/// What an image does for a look: a hit, or its turn to read.
fn look(
    cache: &SliceCache,
    co: &Co<'_>,
    slice: u64,
    read: impl FnOnce(&mut [u8]) -> io::Result<()>,
) -> io::Result<u64> {
    if let Some(found) = cache.look(slice, first) {
        return Ok(found);
    }
    let load = cache.load(slice);
    let _turn = load.co_turn(co);
    if let Some(found) = cache.look(slice, first) {
        return Ok(found);
    }
    let mut bytes = vec![0; SLICE as usize];
    read(&mut bytes)?;
    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    let slot = cache.fill(&cache.owed(), slice, words);
    Ok(first(cache.words(slot)))
}

fn get(cache: &SliceCache, co: &Co<'_>, slice: u64, reads: &Cell<u32>) -> u64 {
    let read = |target: &mut [u8]| {
        reads.set(reads.get() + 1);
        bytes_of(slice, target);
        Ok(())
    };
    look(cache, co, slice, read).unwrap()
}

#[test]
fn a_slice_is_read_once_and_the_cache_stays_within_its_bytes() {
    let ctx = AioContext::for_test().unwrap();
    let cache = SliceCache::new((16 * SLICE, 0), SLICE, 512).unwrap();
    ctx.run(|co| {
        let reads = Cell::new(0);
        for slice in (0..16).chain(0..16) {
            assert_eq!(get(&cache, co, slice, &reads), slice);
        }
        assert_eq!(reads.get(), 16);
        for slice in 0..1000 {
            assert_eq!(get(&cache, co, slice, &reads), slice);
        }
        assert_eq!(cache.bytes(), 16 * SLICE);
        assert!(cache.loading.is_empty());
        cache.clear(&cache.owed());
        assert!(cache.look(999, first).is_none());
        assert_eq!(get(&cache, co, 999, &reads), 999);
    });
}

#[test]
fn a_slice_that_is_used_stays() {
    let ctx = AioContext::for_test().unwrap();
    let cache = SliceCache::new((8 * SLICE, 0), SLICE, 512).unwrap();
    ctx.run(|co| {
        let reads = Cell::new(0);
        for slice in 0..200 {
            get(&cache, co, slice, &reads);
            // Between any two misses.
            get(&cache, co, 1000, &reads);
        }
        // Each time that all were used one has to go, and it may be this one.
        assert!(reads.get() < 200 + 60, "{}", reads.get());
    });
}

#[test]
fn q187_a_miss_waits_for_its_own_slice_alone() {
    let ctx = AioContext::for_test().unwrap();
    let cache = Rc::new(SliceCache::new((8 * SLICE, 0), SLICE, 512).unwrap());
    let release = Rc::new(coblk_aio::sync::CoQueue::new());
    let (reads, ended) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    for _ in 0..3 {
        let (cache, release) = (Rc::clone(&cache), Rc::clone(&release));
        let (reads, ended) = (Rc::clone(&reads), Rc::clone(&ended));
        ctx.spawn("miss", move |co| {
            let found = look(&cache, co, 5, |target| {
                reads.set(reads.get() + 1);
                release.wait(co);
                bytes_of(5, target);
                Ok(())
            });
            assert_eq!(found.unwrap(), 5);
            ended.set(ended.get() + 1);
        });
    }
    ctx.run(|co| {
        let others = Cell::new(0);
        // It is in the same set, and does not wait.
        assert_eq!(get(&cache, co, 6, &others), 6);
        assert_eq!((reads.get(), ended.get()), (1, 0));
        release.wake_all();
    });
    while ended.get() < 3 {
        ctx.poll();
    }
    assert_eq!(reads.get(), 1);
    assert!(cache.loading.is_empty());
}

#[test]
fn q90_a_failed_read_is_not_cached() {
    let ctx = AioContext::for_test().unwrap();
    let cache = SliceCache::new((8 * SLICE, 0), SLICE, 512).unwrap();
    ctx.run(|co| {
        let failed = look(&cache, co, 5, |_| Err(io::Error::from_raw_os_error(libc::EIO)));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(cache.loading.is_empty());
        assert_eq!(get(&cache, co, 5, &Cell::new(0)), 5);
    });
}

#[test]
fn q186_a_hit_beside_a_filler_sees_one_slice() {
    let cache = SliceCache::new((2 * SLICE, 0), SLICE, 512).unwrap();
    let (is_done, owed) = (AtomicBool::new(false), cache.owed());
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut hits = 0_u64;
                    while hits == 0 || !is_done.load(Ordering::Relaxed) {
                        for slice in 0..8 {
                            let all = |words: &[AtomicU64]| {
                                words.iter().all(|word| word.load(Ordering::Relaxed) == slice)
                            };
                            let word = cache.word(slice * SLICE / 8 + 5);
                            assert_eq!(word.unwrap_or(slice), slice, "a word of another slice");
                            let found = cache.look(slice, all);
                            assert!(found.unwrap_or(true), "words of another slice");
                            hits += u64::from(found.is_some());
                        }
                    }
                    hits
                })
            })
            .collect();
        for round in 0..100_000_u64 {
            let slice = round % 8;
            cache.fill(&owed, slice, std::iter::repeat(slice));
        }
        // The last slices stay, so that every reader has a hit in the end.
        is_done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| assert!(reader.join().unwrap() > 0));
    });
}

#[test]
fn q61_slices_that_were_not_used_are_forgotten() {
    let ctx = AioContext::for_test().unwrap();
    let cache = SliceCache::new((1000 * SLICE, 0), SLICE, 512).unwrap();
    ctx.run(|co| {
        let (reads, mut owed) = (Cell::new(0), cache.owed());
        let clean = |owed: &Owed| {
            let (mut next, mut keeps) = (Some(0), false);
            while let Some(first) = next {
                let (then, kept) = cache.clean(owed, first);
                (next, keeps) = (then, keeps || kept);
            }
            keeps
        };
        for slice in 0..1000 {
            get(&cache, co, slice, &reads);
        }
        // All were used by being filled.
        assert!(clean(&owed));
        let promised = cache.find(7).unwrap();
        owed.promise(promised);
        get(&cache, co, 500, &reads);
        assert_eq!(reads.get(), 1000);
        assert!(clean(&owed));
        let left: Vec<u64> = (0..1000).filter(|slice| cache.find(*slice).is_some()).collect();
        assert_eq!(left, [7, 500]);
        assert_eq!((get(&cache, co, 7, &reads), get(&cache, co, 500, &reads)), (7, 500));
        assert_eq!((get(&cache, co, 8, &reads), reads.get()), (8, 1001));
        owed.drop_promise(promised);
        assert!(clean(&owed) && !clean(&owed));
        assert!((0..1000).all(|slice| cache.find(slice).is_none()));
    });
}

#[test]
fn q65_a_cache_becomes_larger_and_smaller() {
    let ctx = AioContext::for_test().unwrap();
    let cache = SliceCache::new((16 * SLICE, 1000 * SLICE), SLICE, 512).unwrap();
    ctx.run(|co| {
        let (reads, mut owed) = (Cell::new(0), cache.owed());
        for (bytes, slots) in [(16, 16), (500, 496), (10_000, 1000), (1, 2), (24, 24)] {
            cache.resize(&mut owed, bytes * SLICE);
            assert_eq!(cache.bytes(), slots * SLICE);
            reads.set(0);
            for slice in (0..slots).chain(0..slots) {
                assert_eq!(get(&cache, co, slice, &reads), slice);
                let words = [0, 63].map(|at| cache.word(slice * SLICE / 8 + at));
                assert_eq!(words, [Some(slice); 2]);
            }
            assert_eq!(reads.get(), slots as u32);
        }
        // What owes something stays.
        owed.promise(cache.find(3).unwrap());
        cache.resize(&mut owed, 16 * SLICE);
        assert_eq!((cache.bytes(), cache.find(3).is_some()), (24 * SLICE, true));
    });
}
