//! Many wakes: between many coroutines, within one context, between two, and among five. Each test
//! ends only if none is lost.

mod util;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use coblk_aio::{AioContext, AioHandle, Co, CoWaker, IoThread, JoinHandle};
use util::{Random, watchdog};

const WAKES: usize = 25_000;

/// Stores a waker in a slot that is empty.
fn put(slot: &Mutex<Option<CoWaker>>, waker: CoWaker) {
    assert!(slot.lock().unwrap().replace(waker).is_none());
}

fn take(slot: &Mutex<Option<CoWaker>>) -> Option<CoWaker> {
    slot.lock().unwrap().take()
}

#[test]
fn two_coroutines_of_one_context_wake_each_other_25000_times() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let slots: Arc<[Mutex<Option<CoWaker>>; 2]> = Arc::default();
    let wakes = Rc::new(Cell::new(0));
    let (own, count) = (Arc::clone(&slots), Rc::clone(&wakes));
    ctx.spawn("pong", move |co| {
        for _ in 0..WAKES {
            co.suspend_with(|waker| put(&own[1], waker));
            count.set(count.get() + 1);
            take(&own[0]).expect("ping waits").wake();
        }
    });
    let (own, count) = (Arc::clone(&slots), Rc::clone(&wakes));
    ctx.spawn("ping", move |co| {
        for _ in 0..WAKES {
            take(&own[1]).expect("pong waits").wake();
            co.suspend_with(|waker| put(&own[0], waker));
            count.set(count.get() + 1);
        }
    });
    // All of it happened within the last spawn: a wake inside a coroutine is served as soon as that
    // one suspends, and no stack has grown.
    assert_eq!(wakes.get(), 2 * WAKES);
    assert!(ctx.coroutines().is_empty());
}

#[test]
fn each_of_25000_coroutines_wakes_the_next_one() {
    let _watchdog = watchdog();
    let ctx = AioContext::for_test().unwrap();
    let waiting = Rc::new(RefCell::new(Vec::new()));
    let woken = Rc::new(Cell::new(0));
    for _ in 0..WAKES {
        let (waiting, woken) = (Rc::clone(&waiting), Rc::clone(&woken));
        ctx.spawn("link of a chain", move |co| {
            co.suspend_with(|waker| waiting.borrow_mut().push(waker));
            woken.set(woken.get() + 1);
            let next = waiting.borrow_mut().pop();
            next.into_iter().for_each(CoWaker::wake);
        });
    }
    let first: CoWaker = waiting.borrow_mut().pop().expect("all wait");
    first.wake();
    assert_eq!(woken.get(), WAKES);
}

#[test]
fn two_coroutines_of_two_contexts_wake_each_other_25000_times() {
    let _watchdog = watchdog();
    let threads = ["ping", "pong"].map(|name| IoThread::new(name).unwrap());
    let slots: Arc<[Mutex<Option<CoWaker>>; 2]> = Arc::default();
    // Puts its own waker first, and wakes the other one before it suspends, so a wake often comes
    // before the suspension it is for.
    let spawn = |handle: &AioHandle, own: usize| -> JoinHandle<usize> {
        let slots = Arc::clone(&slots);
        handle.spawn("player", move |co: &Co<'_>| {
            for _ in 0..WAKES {
                co.suspend_with(|waker| {
                    put(&slots[own], waker);
                    if let Some(other) = take(&slots[1 - own]) {
                        other.wake();
                    }
                });
            }
            // The other one may have to take one more turn than this one.
            take(&slots[1 - own]).into_iter().for_each(CoWaker::wake);
            WAKES
        })
    };
    let players = [spawn(threads[0].handle(), 0), spawn(threads[1].handle(), 1)];
    let [ping, pong] = players.map(|player| player.wait().unwrap());
    assert_eq!(ping + pong, 2 * WAKES);
}

/// Coroutines that wait, and how many there are that have not ended.
struct Bag {
    waiting: Vec<CoWaker>,
    live: usize,
    random: Random,
}

impl Bag {
    /// So many coroutines are awake at least, while there are that many.
    const AWAKE: usize = 8;

    /// Takes out, at random, as many as have to be awake. The newest stays, if it is `own`.
    fn surplus(&mut self, own: usize) -> Vec<CoWaker> {
        let mut out = Vec::new();
        while self.waiting.len() > self.live.saturating_sub(Bag::AWAKE).max(own) {
            let chosen = self.random.below(self.waiting.len() - own);
            out.push(self.waiting.remove(chosen));
        }
        out
    }
}

#[test]
fn a_hundred_coroutines_of_five_contexts_wake_each_other_at_random() {
    const CONTEXTS: usize = 5;
    const COROUTINES: usize = 20;
    const ROUNDS: usize = 500;
    let _watchdog = watchdog();
    let live = CONTEXTS * COROUTINES;
    let bag = Arc::new(Mutex::new(Bag { waiting: Vec::new(), live, random: Random::new(28) }));
    let (to_main, at_main) = channel();
    let threads: Vec<IoThread> =
        (0..CONTEXTS).map(|index| IoThread::new(&format!("io{index}")).unwrap()).collect();
    let spawned: Vec<_> = (0..live)
        .map(|index| {
            let (bag, to_main) = (Arc::clone(&bag), to_main.clone());
            threads[index % CONTEXTS].handle().spawn("wanderer", move |co| {
                let home = thread::current().id();
                for _ in 0..ROUNDS {
                    co.suspend_with(|waker| {
                        let mut bag = bag.lock().unwrap();
                        if bag.live == 1 {
                            return to_main.send(waker).unwrap();
                        }
                        bag.waiting.push(waker);
                        let surplus = bag.surplus(1);
                        drop(bag);
                        surplus.into_iter().for_each(CoWaker::wake);
                    });
                    assert_eq!(thread::current().id(), home);
                }
                let mut bag = bag.lock().unwrap();
                bag.live -= 1;
                let surplus = bag.surplus(0);
                drop(bag);
                surplus.into_iter().for_each(CoWaker::wake);
                ROUNDS
            })
        })
        .collect();
    // Only this thread is left to wake the last one.
    drop(to_main);
    at_main.into_iter().for_each(CoWaker::wake);
    let rounds: usize = spawned.into_iter().map(|one| one.wait().unwrap()).sum();
    assert_eq!(rounds, CONTEXTS * COROUTINES * ROUNDS);
}
