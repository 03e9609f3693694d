//! Workers that sleep, and threads that wake them: no message may be left with all workers asleep. If one
//! is, all threads wait, which loom reports. A submitter wakes a worker for each message, or, as a loop does,
//! one for all that it has queued in a turn; or it leaves them to a worker that spins, until it waits itself.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::model;
use crate::thread_pool::parking::{Parking, Sleeper, Wakeup};

enum Message {
    Job,
    /// A job that ends when another worker is in one, too.
    Meet,
    Stop,
}

/// The pool, with a queue under a lock in the channel's place.
struct Pool {
    parking: Parking,
    queue: Mutex<VecDeque<Message>>,
    /// Workers in a [`Message::Meet`].
    met: (Mutex<usize>, Condvar),
    /// Jobs that have ended.
    done: (Mutex<usize>, Condvar),
}

impl Pool {
    fn new() -> Arc<Pool> {
        Arc::new(Pool {
            parking: Parking::new(),
            queue: Mutex::new(VecDeque::new()),
            met: (Mutex::new(0), Condvar::new()),
            done: (Mutex::new(0), Condvar::new()),
        })
    }

    fn queue(&self, message: Message) {
        self.queue.lock().unwrap().push_back(message);
    }

    fn wake_worker(&self) {
        self.parking.notify(|| self.has_messages());
    }

    fn send(&self, message: Message) {
        self.queue(message);
        self.wake_worker();
    }

    fn meet(&self) {
        let (count, changed) = &self.met;
        let mut met = count.lock().unwrap();
        *met += 1;
        changed.notify_one();
        while *met < 2 {
            met = changed.wait(met).unwrap();
        }
    }

    fn take(&self) -> Option<Message> {
        self.queue.lock().unwrap().pop_front()
    }

    fn has_messages(&self) -> bool {
        !self.queue.lock().unwrap().is_empty()
    }

    /// As `Worker::next` in `thread_pool/worker.rs`, for a worker that has to stay, spins for one look if it
    /// `spins`, and takes jobs for short ones. `patience` is zero if its idle time has run out by its first
    /// sleep, and then forever.
    fn next(&self, me: &Arc<Sleeper>, spins: bool, patience: &mut Duration) -> Message {
        if let Some(message) = self.take() {
            return message;
        }
        if spins && self.parking.begin_spin() {
            let message = self.take();
            self.parking.end_spin();
            if let Some(message) = message {
                return message;
            }
        }
        let mut searches = false;
        loop {
            let patience = std::mem::replace(patience, Duration::MAX);
            let wakeup = self.parking.sleep(me, searches, patience, || self.take());
            searches = false;
            match wakeup {
                Wakeup::Found(message) => {
                    self.wake_worker();
                    return message;
                }
                Wakeup::Woken => {
                    if let Some(message) = self.take() {
                        self.parking.end_search(|| self.has_messages());
                        return message;
                    }
                    searches = true;
                }
                Wakeup::TimedOut => {
                    assert!(patience.is_zero(), "time does not pass in a model");
                }
            }
        }
    }

    /// Runs jobs until it is stopped; returns how many.
    fn work(&self, spins: bool, mut patience: Duration) -> usize {
        let mut jobs = 0;
        let me = Parking::sleeper();
        loop {
            match self.next(&me, spins, &mut patience) {
                Message::Job => {}
                Message::Meet => self.meet(),
                Message::Stop => break,
            }
            jobs += 1;
            *self.done.0.lock().unwrap() += 1;
            self.done.1.notify_one();
        }
        self.wake_worker();
        jobs
    }

    /// A loop that queues jobs in a turn, leaves them to a worker that spins, and else wakes one. Then it waits
    /// until as many are done in all; not without a worker for each.
    fn turn(&self, jobs: impl IntoIterator<Item = Message>, until_done: usize) {
        jobs.into_iter().for_each(|job| self.queue(job));
        let owes = self.parking.is_spinning();
        if !owes {
            self.wake_worker();
        }
        // It looks by itself for a while.
        if owes && *self.done.0.lock().unwrap() < until_done {
            self.wake_worker();
        }
        let mut done = self.done.0.lock().unwrap();
        while *done < until_done {
            done = self.done.1.wait(done).unwrap();
        }
    }
}

/// Has a thread for each worker run `work`, and calls `submit`; then stops the workers, and returns how many
/// jobs they have run.
fn run_with(
    workers: usize,
    spin: bool,
    patience: Duration,
    submit: impl FnOnce(&Arc<Pool>),
) -> usize {
    let pool = Pool::new();
    let spawn_worker = |_| {
        let pool = Arc::clone(&pool);
        thread::spawn(move || pool.work(spin, patience))
    };
    let workers: Vec<_> = (0..workers).map(spawn_worker).collect();
    submit(&pool);
    workers.iter().for_each(|_| pool.send(Message::Stop));
    let done = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(pool.parking.searching(), 0);
    done
}

/// `submitters` threads send so many jobs each, and wake a worker for each of them.
fn run(workers: usize, jobs: usize, submitters: usize) {
    let done = run_with(workers, false, Duration::MAX, |pool| {
        let spawn_submitter = |_| {
            let pool = Arc::clone(pool);
            thread::spawn(move || (0..jobs).for_each(|_| pool.send(Message::Job)))
        };
        let others: Vec<_> = (1..submitters).map(spawn_submitter).collect();
        (0..jobs).for_each(|_| pool.send(Message::Job));
        others.into_iter().for_each(|other| other.join().unwrap());
    });
    assert_eq!(done, jobs * submitters);
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
    model(6, || {
        let done = run_with(1, false, Duration::ZERO, |pool| {
            pool.send(Message::Job);
            pool.send(Message::Job);
        });
        assert_eq!(done, 2);
    });
}

#[test]
fn one_wake_up_serves_all_jobs_of_a_turn() {
    model(3, || {
        let done = run_with(1, false, Duration::MAX, |pool| {
            pool.turn([Message::Job, Message::Job], 2);
        });
        assert_eq!(done, 2);
    });
}

#[test]
fn jobs_of_a_turn_that_block_get_a_worker_each() {
    model(2, || {
        let done = run_with(2, false, Duration::MAX, |pool| {
            pool.turn([Message::Meet, Message::Meet], 2);
        });
        assert_eq!(done, 2);
    });
}

#[test]
fn jobs_that_are_left_to_a_worker_that_spins_are_done() {
    model(3, || {
        let done = run_with(1, true, Duration::MAX, |pool| {
            pool.turn([Message::Job], 1);
            pool.turn([Message::Job], 2);
        });
        assert_eq!(done, 2);
    });
}

#[test]
fn jobs_that_block_get_a_worker_each_though_they_were_left_to_one_that_spins() {
    model(2, || {
        let done = run_with(2, true, Duration::MAX, |pool| {
            pool.turn([Message::Meet, Message::Meet], 2);
        });
        assert_eq!(done, 2);
    });
}

#[test]
fn a_turn_and_another_threads_job_leave_no_message() {
    model(2, || {
        let done = run_with(1, true, Duration::MAX, |pool| {
            let other = Arc::clone(pool);
            let other = thread::spawn(move || other.send(Message::Job));
            pool.turn([Message::Job], 2);
            other.join().unwrap();
        });
        assert_eq!(done, 2);
    });
}
