//! One thread hands jobs to another and gets them back: the floor of a worker's round trip.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::sched_getcpu;

use crate::measure::{Lap, lap};
use crate::workload::stopwatch::RoundTrips;

/// How long a side that spins does so before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// Turns of the spin between looks at the clock.
const TURNS: u32 = 64;

/// How both sides wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They spin for a while, unless the other was last on the same CPU, where it could not go on;
    /// then they sleep on a futex.
    Aware,
    /// They sleep on a futex (the standard library's park).
    Futex,
    /// They sleep in reads of eventfds.
    Eventfd,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 3] = [Way::Aware, Way::Futex, Way::Eventfd];

    /// How rows call it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Aware => "bare hand-over, spinning",
            Way::Futex => "bare hand-over, futex",
            Way::Eventfd => "bare hand-over, eventfd",
        }
    }
}

/// What one side tells the other; alone on its cache line.
#[repr(align(128))]
struct Side {
    /// How many jobs it has handed over.
    handed: AtomicU64,
    /// Where it was when it did so last.
    cpu: AtomicUsize,
    bell: OwnedFd,
}

impl Side {
    fn new() -> io::Result<Side> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Side { handed: AtomicU64::new(0), cpu: AtomicUsize::new(usize::MAX), bell })
    }

    /// Hands over job number `number`, counted from 1, to the thread `to`.
    fn hand(&self, way: Way, number: u64, to: &Thread) -> io::Result<()> {
        if way == Way::Aware {
            self.cpu.store(sched_getcpu(), Ordering::Relaxed);
        }
        self.handed.store(number, Ordering::Release);
        if way == Way::Eventfd {
            rustix::io::write(&self.bell, &1u64.to_ne_bytes())?;
        } else {
            to.unpark();
        }
        Ok(())
    }

    fn has(&self, number: u64) -> bool {
        self.handed.load(Ordering::Acquire) >= number
    }

    /// Waits, on the other side's thread, for job number `number`.
    fn wait(&self, way: Way, number: u64) -> io::Result<()> {
        match way {
            Way::Eventfd => {
                let mut count = [0; 8];
                while !self.has(number) {
                    rustix::io::retry_on_intr(|| rustix::io::read(&self.bell, &mut count))?;
                }
            }
            Way::Futex => {
                while !self.has(number) {
                    thread::park();
                }
            }
            Way::Aware => {
                while !self.has(number) && !self.spin(number) {
                    thread::park();
                }
            }
        }
        Ok(())
    }

    /// Whether it came while this spun.
    fn spin(&self, number: u64) -> bool {
        if self.cpu.load(Ordering::Relaxed) == sched_getcpu() {
            return false;
        }
        let begin = Instant::now();
        while begin.elapsed() < SPIN {
            for _ in 0..TURNS {
                if self.has(number) {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }
}

/// The number that ends the worker.
const END: u64 = u64::MAX;

/// A worker that does one job after the other, and hands each back.
pub struct HandOver {
    way: Way,
    sides: Arc<[Side; 2]>,
    done: u64,
    /// How many jobs are handed over before one is waited for.
    batch: u64,
    /// How long each round trip took, if that is asked for.
    round_trips: Option<RoundTrips>,
    worker: Option<JoinHandle<io::Result<()>>>,
}

impl HandOver {
    /// A worker that calls `job` with the number of each job, from 0 on.
    ///
    /// # Errors
    /// If there is no thread or no eventfd to be had.
    pub fn new(
        way: Way,
        mut job: impl FnMut(u64) -> io::Result<()> + Send + 'static,
    ) -> io::Result<HandOver> {
        let sides = Arc::new([Side::new()?, Side::new()?]);
        let (theirs, requester) = (Arc::clone(&sides), thread::current());
        let worker = thread::Builder::new().name("worker".to_owned()).spawn(move || {
            let [from, to] = &*theirs;
            for number in 1.. {
                from.wait(way, number)?;
                if from.has(END) {
                    break;
                }
                let done = job(number - 1);
                if done.is_err() {
                    to.hand(way, END, &requester)?;
                    return done;
                }
                to.hand(way, number, &requester)?;
            }
            Ok(())
        })?;
        Ok(HandOver { way, sides, done: 0, batch: 1, round_trips: None, worker: Some(worker) })
    }

    /// So many jobs are handed over, one by one, before the last of them is waited for.
    pub fn batch(mut self, batch: u64) -> HandOver {
        self.batch = batch;
        self
    }

    /// Laps say how long round trips took. Each needs a look at the clock for that.
    pub fn timed(mut self, timed: bool) -> HandOver {
        self.round_trips = timed.then(RoundTrips::new);
        self
    }

    /// Has `ops` jobs done, on the thread that made this.
    ///
    /// # Errors
    /// The first that failed.
    pub fn run(&mut self, ops: u64) -> io::Result<Lap> {
        let mut result = Ok(());
        let lap = lap(ops, || result = self.jobs(ops));
        let latency = self.round_trips.as_mut().and_then(RoundTrips::take);
        result.map(|()| Lap { latency, ..lap })
    }

    fn jobs(&mut self, ops: u64) -> io::Result<()> {
        let [to, from] = &*self.sides;
        let mut left = ops;
        if let Some(round_trips) = &mut self.round_trips {
            round_trips.begin();
        }
        while left > 0 {
            let Some(worker) = &self.worker else {
                return Err(io::Error::other("the worker has ended"));
            };
            let batch = self.batch.min(left);
            for _ in 0..batch {
                self.done += 1;
                to.hand(self.way, self.done, worker.thread())?;
            }
            left -= batch;
            from.wait(self.way, self.done)?;
            if from.has(END) {
                return self.end();
            }
            if let Some(round_trips) = &mut self.round_trips {
                round_trips.end();
            }
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        self.sides[0].hand(self.way, END, worker.thread())?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        // What its last job said has been told.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn each_job_is_done_once_and_in_order_before_its_round_trip_ends() {
        for way in Way::ALL {
            let done = Arc::new(Mutex::new(Vec::new()));
            let worker = Arc::clone(&done);
            let job = move |number| {
                worker.lock().unwrap().push(number);
                Ok(())
            };
            let mut hand_over = HandOver::new(way, job).unwrap();
            for count in [0, 1, 500] {
                assert_eq!(hand_over.run(count).unwrap().ops, count);
            }
            let mut hand_over = hand_over.batch(64).timed(true);
            let lap = hand_over.run(200).unwrap();
            assert!(lap.latency.is_some_and(|latency| latency.max_ns >= latency.p50_ns));
            assert_eq!(*done.lock().unwrap(), (0..701).collect::<Vec<u64>>(), "{way:?}");
        }
    }

    #[test]
    fn a_job_that_fails_ends_the_run() {
        for way in Way::ALL {
            let job = |number| if number < 3 { Ok(()) } else { Err(io::Error::other("the job")) };
            let mut hand_over = HandOver::new(way, job).unwrap();
            assert_eq!(hand_over.run(10).unwrap_err().to_string(), "the job");
            assert!(hand_over.run(1).is_err());
        }
    }
}
