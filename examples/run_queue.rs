//! Many coroutines and a queue: a scheduler in the manner of goroutines, in one screen.
//!
//! ```text
//! cargo run --release --example run_queue [COROUTINES [TURNS]]
//! ```
//!
//! A coroutine that gives way puts itself at the end of the queue and suspends; the scheduler is a
//! loop that resumes the first of the queue. First three coroutines that say what they do, then many
//! (1000, with 1000 turns each, if not told otherwise) that only count.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use coblk::coroutine::{Coroutine, Suspender};

/// Those that are ready to run, the next one first.
#[derive(Clone, Default)]
struct RunQueue(Rc<RefCell<VecDeque<Coroutine>>>);

impl RunQueue {
    fn spawn(&self, name: &'static str, entry: impl FnOnce(&Suspender) + 'static) {
        self.0.borrow_mut().push_back(Coroutine::new(name, entry));
    }

    /// Called by a coroutine: lets everybody else run first.
    fn give_way(&self, suspender: &Suspender) {
        self.0.borrow_mut().push_back(suspender.coroutine());
        suspender.suspend();
    }

    fn run(&self) {
        let next = || self.0.borrow_mut().pop_front();
        while let Some(coroutine) = next() {
            coroutine.resume();
        }
    }
}

fn main() {
    let queue = RunQueue::default();
    for (name, turns) in [("red", 3), ("green", 1), ("blue", 2)] {
        let own = queue.clone();
        queue.spawn(name, move |suspender| {
            for turn in 1..=turns {
                println!("{name:>5}: turn {turn} of {turns}");
                own.give_way(suspender);
            }
            println!("{name:>5}: done");
        });
    }
    queue.run();

    let mut numbers = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let (coroutines, turns) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(1000));
    let started = Instant::now();
    let count = Rc::new(Cell::new(0u64));
    for _ in 0..coroutines {
        let (own, count) = (queue.clone(), Rc::clone(&count));
        queue.spawn("counter", move |suspender| {
            for _ in 0..turns {
                count.set(count.get() + 1);
                own.give_way(suspender);
            }
        });
    }
    let created = started.elapsed();
    queue.run();
    let ran = started.elapsed() - created;
    assert_eq!(count.get(), coroutines * turns);
    println!(
        "{coroutines} coroutines created in {created:.1?}; they took {turns} turns each in {ran:.1?}, {:.0} ns a turn",
        ran.as_nanos() as f64 / count.get().max(1) as f64
    );
}
