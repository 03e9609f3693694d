//! Who starts and who leaves, with a queue in place of the channel.

use std::collections::VecDeque;
use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle};

use super::model;
use crate::thread_pool::headcount::{Headcount, Leave};

#[derive(PartialEq)]
enum Message {
    Job,
    /// One that is done when another one is.
    HangingJob,
    Recheck,
}

struct Pool {
    headcount: Headcount,
    queue: Mutex<VecDeque<Message>>,
    done: AtomicUsize,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    fn new(max: usize) -> Arc<Pool> {
        let pool = Pool {
            headcount: Headcount::new(),
            queue: Mutex::default(),
            done: AtomicUsize::new(0),
            workers: Mutex::default(),
        };
        assert_eq!(pool.headcount.set_limits(0, max), (0, 0));
        Arc::new(pool)
    }

    fn submit(self: &Arc<Pool>) {
        self.submit_as(Message::Job, false);
    }

    /// As `PoolState::submit`.
    fn submit_as(self: &Arc<Pool>, job: Message, is_first: bool) {
        let start = self.headcount.job_submitted(is_first);
        self.queue.lock().unwrap().push_back(job);
        if start {
            self.start_worker_as(is_first);
        }
    }

    fn start_worker(self: &Arc<Pool>) {
        self.start_worker_as(false);
    }

    /// As `PoolState::start_worker`.
    fn start_worker_as(self: &Arc<Pool>, in_any_case: bool) {
        if self.headcount.add_worker(in_any_case) {
            let pool = Arc::clone(self);
            let worker = thread::spawn(move || pool.work());
            self.workers.lock().unwrap().push(worker);
        }
    }

    /// As `ThreadPool::set_limits`.
    fn set_max(&self, max: usize) {
        let (_, surplus) = self.headcount.set_limits(0, max);
        for _ in 0..surplus {
            self.headcount.message_sent();
            self.queue.lock().unwrap().push_back(Message::Recheck);
        }
    }

    /// As `worker::run`, with an idle time that has run out whenever there is nothing to do.
    fn work(&self) {
        self.headcount.worker_started();
        loop {
            let message = self.queue.lock().unwrap().pop_front();
            match message {
                Some(message) => {
                    while message == Message::HangingJob && self.done.load(Ordering::Relaxed) == 0 {
                        thread::yield_now();
                    }
                    if message != Message::Recheck {
                        self.done.fetch_add(1, Ordering::Relaxed);
                    }
                    self.headcount.worker_ready();
                    if self.headcount.over_max() && self.headcount.try_leave(Leave::AboveMax) {
                        return;
                    }
                }
                None if self.headcount.try_leave(Leave::Idle) => return,
                // A message is on its way to this worker.
                None => thread::yield_now(),
            }
        }
    }

    /// All workers end when there is nothing to do; then every job was done, and is counted as done.
    fn check(&self, jobs: usize) {
        loop {
            let worker = self.workers.lock().unwrap().pop();
            match worker {
                Some(worker) => worker.join().unwrap(),
                None => break,
            }
        }
        assert_eq!(self.done.load(Ordering::Relaxed), jobs, "a job was left behind");
        assert_eq!((self.headcount.threads(), self.headcount.idle()), (0, 0));
        assert_eq!(self.headcount.jobs(), 0);
        assert!(self.queue.lock().unwrap().is_empty());
    }
}

#[test]
fn a_job_that_comes_while_the_last_worker_ends_is_done() {
    model(4, || {
        let pool = Pool::new(1);
        pool.start_worker();
        pool.submit();
        pool.check(1);
    });
}

#[test]
fn two_jobs_in_turn_with_one_worker_at_most() {
    model(3, || {
        let pool = Pool::new(1);
        pool.submit();
        pool.submit();
        pool.check(2);
    });
}

#[test]
fn two_submitters_and_a_worker_that_ends() {
    model(3, || {
        for_two_submitters(1);
    });
}

#[test]
fn two_submitters_and_up_to_two_workers() {
    model(2, || {
        for_two_submitters(2);
    });
}

fn for_two_submitters(max: usize) {
    let pool = Pool::new(max);
    let other = thread::spawn({
        let pool = Arc::clone(&pool);
        move || pool.submit()
    });
    pool.submit();
    other.join().unwrap();
    pool.check(2);
}

#[test]
fn a_lower_maximum_ends_workers_and_loses_no_job() {
    model(3, || {
        let pool = Pool::new(2);
        pool.start_worker();
        pool.start_worker();
        pool.set_max(1);
        pool.submit();
        pool.check(1);
    });
}

#[test]
fn the_first_job_of_a_share_is_done_though_the_pool_is_full_of_one_that_hangs() {
    model(3, || {
        let pool = Pool::new(1);
        pool.submit_as(Message::HangingJob, true);
        pool.submit_as(Message::Job, true);
        pool.check(2);
    });
}

#[test]
fn first_jobs_of_two_contexts_are_done_beside_one_that_hangs() {
    model(1, || {
        let pool = Pool::new(1);
        pool.submit_as(Message::HangingJob, true);
        let other = thread::spawn({
            let pool = Arc::clone(&pool);
            move || pool.submit_as(Message::Job, true)
        });
        pool.submit_as(Message::Job, true);
        other.join().unwrap();
        pool.check(3);
    });
}
