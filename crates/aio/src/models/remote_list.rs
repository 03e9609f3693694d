//! The remote list, the sleep protocol, and the end of a context.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::model;
use crate::home::{Home, Kick};
use crate::run_list::{LocalList, Node, NodeKind, Runner};

/// An eventfd and the wait for it. A write without a waiter ends the next wait.
#[derive(Default)]
struct Eventfd {
    written: Mutex<bool>,
    changed: Condvar,
    writes: AtomicUsize,
}

impl Eventfd {
    fn wait(&self) {
        let mut written = self.written.lock().unwrap();
        while !*written {
            written = self.changed.wait(written).unwrap();
        }
        *written = false;
    }
}

impl Kick for Arc<Eventfd> {
    fn kick(&self) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        *self.written.lock().unwrap() = true;
        self.changed.notify_one();
        Ok(())
    }
}

/// A node with something that the home thread must see as it was before the push: loom reports a
/// read that is not ordered after the write. A worker's result is such a thing.
#[repr(C)]
struct Job {
    node: Node,
    result: UnsafeCell<usize>,
    discarded: AtomicUsize,
}

static KIND: NodeKind = NodeKind { run, discard };

unsafe fn run(_: NonNull<Node>, _: Runner<'_>) -> bool {
    unreachable!("a model has no context")
}

unsafe fn discard(node: NonNull<Node>) {
    // SAFETY: the models keep their jobs until all threads have ended.
    let job = unsafe { node.cast::<Job>().as_ref() };
    job.result();
    job.discarded.fetch_add(1, Ordering::Relaxed);
}

impl Job {
    fn new() -> Arc<Job> {
        Arc::new(Job {
            node: Node::new(&KIND),
            result: UnsafeCell::new(0),
            discarded: AtomicUsize::new(0),
        })
    }

    /// What a worker does: writes the result, and schedules the node.
    fn complete(self: &Arc<Job>, shared: &Arc<ModelHome>, result: usize) {
        // SAFETY: the job is this thread's until it is scheduled.
        self.result.with_mut(|place| unsafe { *place = result });
        let node = NonNull::from(&**self).cast::<Node>();
        // SAFETY: scheduled once; the models keep it until all threads have ended.
        unsafe { shared.schedule(node) };
    }

    fn result(&self) -> usize {
        // SAFETY: the caller has taken the job from the list, so it is its own.
        self.result.with(|place| unsafe { *place })
    }
}

type ModelHome = Home<Arc<Eventfd>>;

fn home() -> (Arc<ModelHome>, Arc<Eventfd>) {
    let eventfd = Arc::new(Eventfd::default());
    (Arc::new(Home::new("model".to_owned(), Arc::clone(&eventfd))), eventfd)
}

/// A blocking poll: the steps of `AioContext::poll`, with `served` for the bottom-half phase.
fn poll(shared: &ModelHome, eventfd: &Eventfd, mut served: impl FnMut(&Job)) {
    while !shared.has_remote() {
        if !shared.prepare_sleep() {
            shared.accept_notifications();
            break;
        }
        eventfd.wait();
        if shared.accept_notifications() || shared.has_remote() {
            break;
        }
    }
    let list = LocalList::new();
    shared.take_remote(&list);
    while let Some(node) = list.pop() {
        // SAFETY: just taken from the list; the models keep their jobs.
        served(unsafe { node.cast::<Job>().as_ref() });
    }
}

#[test]
fn no_completion_is_lost_and_each_brings_its_result() {
    model(3, || {
        let (shared, eventfd) = home();
        let jobs = [Job::new(), Job::new()];
        let workers: Vec<_> = (1..=2)
            .map(|result| {
                let (shared, job) = (Arc::clone(&shared), Arc::clone(&jobs[result - 1]));
                thread::spawn(move || job.complete(&shared, result))
            })
            .collect();
        let (mut count, mut sum) = (0, 0);
        while count < 2 {
            let before = count;
            poll(&shared, &eventfd, |job| {
                count += 1;
                sum += job.result();
            });
            assert!(count > before, "a poll was ended for something already served");
        }
        assert_eq!(sum, 3);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(!shared.has_remote());
    });
}

#[test]
fn what_one_thread_schedules_arrives_in_order() {
    model(4, || {
        let (shared, eventfd) = home();
        let jobs = [Job::new(), Job::new(), Job::new()];
        let worker = thread::spawn({
            let (shared, jobs) = (Arc::clone(&shared), jobs.clone());
            move || (0..3).for_each(|index: usize| jobs[index].complete(&shared, index))
        });
        let mut order = Vec::new();
        while order.len() < 3 {
            poll(&shared, &eventfd, |job| order.push(job.result()));
        }
        assert_eq!(order, [0, 1, 2]);
        worker.join().unwrap();
    });
}

#[test]
fn a_notification_is_not_lost_and_shows_what_came_before_it() {
    model(4, || {
        let (shared, eventfd) = home();
        let quit = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (shared, quit) = (Arc::clone(&shared), Arc::clone(&quit));
            move || {
                quit.store(true, Ordering::Relaxed);
                shared.notify();
            }
        });
        // A poll that does not block accepts it, if it is there yet.
        if shared.accept_notifications() {
            assert!(quit.load(Ordering::Relaxed));
            thread.join().unwrap();
            return;
        }
        // One notification, so one poll: a second one would have nothing to end it.
        poll(&shared, &eventfd, |_| ());
        assert!(quit.load(Ordering::Relaxed));
        thread.join().unwrap();
    });
}

#[test]
fn one_of_those_who_wake_a_sleeper_writes_the_eventfd() {
    model(4, || {
        let (shared, eventfd) = home();
        let job = Job::new();
        assert!(shared.prepare_sleep());
        let threads = [
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || shared.notify()
            }),
            thread::spawn({
                let (shared, job) = (Arc::clone(&shared), Arc::clone(&job));
                move || job.complete(&shared, 1)
            }),
        ];
        eventfd.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(eventfd.writes.load(Ordering::Relaxed), 1);
        assert!(shared.accept_notifications());
    });
}

#[test]
fn what_is_scheduled_while_a_context_ends_is_discarded_once() {
    model(4, || {
        let (shared, _) = home();
        let jobs = [Job::new(), Job::new()];
        let workers: Vec<_> = jobs
            .iter()
            .map(|job| {
                let (shared, job) = (Arc::clone(&shared), Arc::clone(job));
                thread::spawn(move || job.complete(&shared, 1))
            })
            .collect();
        shared.close();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        for job in &jobs {
            assert_eq!(job.discarded.load(Ordering::Relaxed), 1);
        }
    });
}
