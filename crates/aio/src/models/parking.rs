//! Workers that sleep, and threads that wake them: no message may be left with all workers asleep. If one
//! is, all threads wait, which loom reports.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use loom::sync::Mutex;
use loom::thread;

use super::model;
use crate::thread_pool::parking::{Parking, Sleeper, Wakeup};

enum Message {
    Job,
    Stop,
}

/// The pool, with a queue under a lock in the channel's place.
struct Pool {
    parking: Parking,
    queue: Mutex<VecDeque<Message>>,
}

impl Pool {
    fn new() -> Arc<Pool> {
        Arc::new(Pool { parking: Parking::new(), queue: Mutex::new(VecDeque::new()) })
    }

    fn send(&self, message: Message) {
        self.queue.lock().unwrap().push_back(message);
        self.parking.notify();
    }

    fn take(&self) -> Option<Message> {
        self.queue.lock().unwrap().pop_front()
    }

    fn has_more(&self) -> bool {
        !self.queue.lock().unwrap().is_empty()
    }

    /// As `next` in `thread_pool/worker.rs`, for a worker that has to stay. `patience` is zero if its
    /// idle time has run out by its first sleep, and then forever.
    fn next(&self, me: &Arc<Sleeper>, patience: &mut Duration) -> Message {
        if let Some(message) = self.take() {
            return message;
        }
        self.parking.begin_search();
        loop {
            if let Some(message) = self.take() {
                self.parking.end_search(|| self.has_more());
                return message;
            }
            let patience = std::mem::replace(patience, Duration::MAX);
            match self.parking.sleep(me, patience, || self.take()) {
                Wakeup::Found(message) => {
                    if self.has_more() {
                        self.parking.notify();
                    }
                    return message;
                }
                Wakeup::Woken => {}
                Wakeup::TimedOut => {
                    assert!(patience.is_zero(), "time does not pass in a model");
                    self.parking.begin_search();
                }
            }
        }
    }

    /// Runs jobs until it is stopped; returns how many.
    fn work(&self, mut patience: Duration) -> usize {
        let mut jobs = 0;
        let me = Parking::sleeper();
        while let Message::Job = self.next(&me, &mut patience) {
            jobs += 1;
        }
        if self.has_more() {
            self.parking.notify();
        }
        jobs
    }
}

fn run(workers: usize, jobs: usize, submitters: usize) {
    run_with(workers, jobs, submitters, Duration::MAX);
}

fn run_with(workers: usize, jobs: usize, submitters: usize, patience: Duration) {
    let pool = Pool::new();
    let spawn_worker = |_| {
        let pool = Arc::clone(&pool);
        thread::spawn(move || pool.work(patience))
    };
    let workers: Vec<_> = (0..workers).map(spawn_worker).collect();
    let spawn_submitter = |_| {
        let pool = Arc::clone(&pool);
        thread::spawn(move || (0..jobs).for_each(|_| pool.send(Message::Job)))
    };
    let others: Vec<_> = (1..submitters).map(spawn_submitter).collect();
    (0..jobs).for_each(|_| pool.send(Message::Job));
    others.into_iter().for_each(|other| other.join().unwrap());
    workers.iter().for_each(|_| pool.send(Message::Stop));
    let done: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(done, jobs * submitters);
    assert_eq!(pool.parking.searching(), 0);
}

#[test]
fn one_worker_sleeps_and_is_woken() {
    model(3, || run(1, 2, 1));
}

#[test]
fn two_workers_leave_no_message() {
    model(2, || run(2, 1, 1));
}

#[test]
fn two_submitters_wake_one_worker() {
    model(2, || run(1, 1, 2));
}

#[test]
fn a_wake_up_that_comes_late_is_not_one_from_a_later_sleep() {
    model(6, || run_with(1, 2, 1, Duration::ZERO));
}
