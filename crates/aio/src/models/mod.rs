//! Models that loom runs in every order that the memory model allows. They use the crate's own types:
//! `Home` with its remote list and notifications, and the worker pool's `Headcount`
//! and `Parking`.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p coblk-aio --release --lib models
//! ```
//!
//! What is replaced: the eventfd, by a flag under a lock with a condition variable; the channel to
//! the workers, by a queue under a lock; and time, so that a worker's idle time may have run out
//! whenever it finds nothing to do. Coroutines and their stacks are beyond loom.

mod headcount;
mod parking;
mod remote_list;

/// Runs a model in every order with at most that many switches away from a thread that could go
/// on. More find nothing new in models this small, and take forever.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}
