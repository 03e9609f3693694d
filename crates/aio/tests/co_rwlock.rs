//! Contract line 70: the lock for readers and writers.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coblk_aio::AioContext;
use coblk_aio::sync::{CoQueue, CoRwLock, CoRwLockReadGuard, CoRwLockWriteGuard};

use crate::util::{Log, contend, settle, watchdog};

/// A coroutine that goes through the steps of `script` and says each; between two steps it waits
/// to be told.
fn scripted(
    ctx: &AioContext,
    log: &Log,
    name: &'static str,
    lock: &Rc<CoRwLock<u32>>,
    script: &'static str,
) -> Rc<CoQueue> {
    enum Held<'a> {
        Nothing,
        Read(CoRwLockReadGuard<'a, u32>),
        Write(CoRwLockWriteGuard<'a, u32>),
    }
    let go_on = Rc::new(CoQueue::new());
    let (queue, log, lock) = (Rc::clone(&go_on), log.clone(), Rc::clone(lock));
    ctx.spawn(name, move |co| {
        let mut held = Held::Nothing;
        for (index, step) in script.chars().enumerate() {
            if index > 0 {
                queue.wait(co);
            }
            held = match (step, held) {
                ('r', _) => Held::Read(lock.read(co)),
                ('w', _) => Held::Write(lock.write(co)),
                ('u', Held::Read(guard)) => Held::Write(CoRwLockReadGuard::upgrade(guard, co)),
                ('d', Held::Write(guard)) => Held::Read(CoRwLockWriteGuard::downgrade(guard)),
                (_, held) => {
                    drop(held);
                    Held::Nothing
                }
            };
            log.add(format!("{name}{step}"));
        }
    });
    go_on
}

#[test]
fn c70_readers_share_and_a_writer_is_alone() {
    let lock = CoRwLock::new(1);
    let (a, b) = (lock.try_read().unwrap(), lock.try_read().unwrap());
    assert_eq!(*a + *b, 2);
    assert!(lock.try_write().is_none());
    drop((a, b));
    let mut writer = lock.try_write().unwrap();
    *writer += 1;
    assert!(lock.try_read().is_none() && lock.try_write().is_none());
    drop(writer);
    assert_eq!(*lock.try_read().unwrap(), 2);
}

#[test]
fn c70_a_reader_waits_if_anyone_queues_before_it() {
    let ctx = AioContext::for_test().unwrap();
    let (log, lock) = (Log::new(), Rc::new(CoRwLock::new(0)));
    let a = scripted(&ctx, &log, "a", &lock, "r-");
    let b = scripted(&ctx, &log, "b", &lock, "w-");
    let c = scripted(&ctx, &log, "c", &lock, "r-");
    assert_eq!(log.take(), ["ar"]);
    assert!(lock.try_read().is_none(), "also this one would have to queue");
    assert!(a.wake_one());
    assert_eq!(log.take(), ["a-", "bw"]);
    assert!(b.wake_one());
    assert_eq!(log.take(), ["b-", "cr"]);
    assert!(c.wake_one());
    assert!(lock.try_write().is_some());
}

#[test]
fn c70_upgrade_waits_its_turn_behind_a_waiting_writer() {
    let ctx = AioContext::for_test().unwrap();
    let (log, lock) = (Log::new(), Rc::new(CoRwLock::new(0)));
    let a = scripted(&ctx, &log, "a", &lock, "ru-");
    let b = scripted(&ctx, &log, "b", &lock, "w-");
    assert_eq!(log.take(), ["ar"]);
    assert!(a.wake_one());
    assert_eq!(log.take(), ["bw"], "the writer that waited comes first");
    assert!(b.wake_one());
    assert_eq!(log.take(), ["b-", "au"]);
    assert!(a.wake_one());
    assert!(lock.try_write().is_some());
}

#[test]
fn c70_upgrade_of_the_only_reader_does_not_wait() {
    let ctx = AioContext::for_test().unwrap();
    let (log, lock) = (Log::new(), Rc::new(CoRwLock::new(0)));
    let a = scripted(&ctx, &log, "a", &lock, "ru-");
    assert!(a.wake_one());
    assert_eq!(log.take(), ["ar", "au"]);
    assert!(lock.try_read().is_none());
    assert!(a.wake_one());
    // With another reader it waits for that one.
    let (a, b) = (scripted(&ctx, &log, "a", &lock, "ru-"), scripted(&ctx, &log, "b", &lock, "r-"));
    assert!(a.wake_one());
    assert_eq!(log.take(), ["a-", "ar", "br"]);
    assert!(b.wake_one());
    assert_eq!(log.take(), ["b-", "au"]);
}

#[test]
fn c70_downgrade_never_waits_and_wakes_readers() {
    let ctx = AioContext::for_test().unwrap();
    let (log, lock) = (Log::new(), Rc::new(CoRwLock::new(0)));
    let a = scripted(&ctx, &log, "a", &lock, "wd-");
    let b = scripted(&ctx, &log, "b", &lock, "r-");
    let c = scripted(&ctx, &log, "c", &lock, "w-");
    let d = scripted(&ctx, &log, "d", &lock, "r-");
    assert_eq!(log.take(), ["aw"]);
    assert!(a.wake_one());
    // "d" came after a writer, and still waits.
    assert_eq!(log.take(), ["ad", "br"]);
    assert!(a.wake_one() && b.wake_one());
    assert_eq!(log.take(), ["a-", "b-", "cw"]);
    assert!(c.wake_one());
    assert_eq!(log.take(), ["c-", "dr"]);
    assert!(d.wake_one());
}

#[test]
fn c70_contended_from_5_threads_writers_are_alone_and_readers_see_whole_writes() {
    let lock = Arc::new(CoRwLock::new((0u64, 0u64)));
    let shared = Arc::clone(&lock);
    contend(5, 3, move |co| {
        for round in 0..200 {
            match round % 4 {
                0 => {
                    let mut guard = shared.write(co);
                    guard.0 += 1;
                    co.yield_now();
                    guard.1 += 1;
                }
                1 => {
                    let guard = shared.read(co);
                    assert_eq!(guard.0, guard.1);
                    let mut guard = CoRwLockReadGuard::upgrade(guard, co);
                    guard.0 += 1;
                    guard.1 += 1;
                }
                2 => {
                    let mut guard = shared.write(co);
                    guard.0 += 1;
                    guard.1 += 1;
                    let guard = CoRwLockWriteGuard::downgrade(guard);
                    let before = *guard;
                    co.yield_now();
                    assert_eq!(*guard, before, "no writer comes in between");
                }
                _ => {
                    let guard = shared.read(co);
                    assert_eq!(guard.0, guard.1);
                }
            }
        }
    });
    assert_eq!(*lock.try_read().unwrap(), (15 * 150, 15 * 150));
}

#[test]
fn a_writer_unwound_while_it_waits_lets_those_behind_it_in() {
    let lock = Arc::new(CoRwLock::new(0));
    let reader = lock.try_read().unwrap();
    let (doomed, ctx) = (AioContext::for_test().unwrap(), AioContext::for_test().unwrap());
    let own = Arc::clone(&lock);
    doomed.spawn("writer", move |co| drop(own.write(co)));
    let (own, read) = (Arc::clone(&lock), Rc::new(Cell::new(false)));
    let seen = Rc::clone(&read);
    ctx.spawn("reader", move |co| {
        drop(own.read(co));
        seen.set(true);
    });
    assert!(!read.get());
    drop(doomed);
    settle(&ctx);
    assert!(read.get(), "beside the reader that is still there");
    drop(reader);
    assert!(lock.try_write().is_some());
}

#[test]
fn contexts_may_end_while_others_read_write_and_upgrade() {
    let _watchdog = watchdog();
    for round in 0..30 {
        let lock = Arc::new(CoRwLock::new(0u64));
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    let ctx = AioContext::for_test().unwrap();
                    for _ in 0..4 {
                        let lock = Arc::clone(&lock);
                        ctx.spawn("contends", move |co| {
                            loop {
                                let guard = lock.read(co);
                                co.yield_now();
                                *CoRwLockReadGuard::upgrade(guard, co) += 1;
                            }
                        });
                    }
                    (0..20 + round + index * 10)
                        .for_each(|_| _ = ctx.poll_timeout(Duration::from_micros(100)));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(lock.try_write().is_some(), "round {round}: the lock got lost");
    }
}
