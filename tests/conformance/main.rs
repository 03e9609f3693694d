//! One set of checks that every driver passes: with every engine, with the page cache and without,
//! in every wait mode, and in simulated contexts by seed.
//!
//! To add a driver, give it a row in `subjects.rs`; to add a stack of them, one in `STACKS`. Needs root, for
//! loop devices.

mod checks;
mod stage;
mod subjects;

use coblk::AioContext;
use coblk::aio::sys::faults::Faults;
use coblk::aio::{SimulationOptions, WaitMode};
use coblk_tests::image_dir;
use coblk_tests::random::seeds;
use stage::Stage;
use subjects::{Subject, subjects};

/// Runs every check on every driver of this machine, on contexts that `make` makes.
fn all_conform(world: &str, seed: u64, make: impl Fn() -> AioContext) {
    conform(subjects(), world, seed, make);
}

fn conform(subjects: Vec<Subject>, world: &str, seed: u64, make: impl Fn() -> AioContext) {
    let dir = image_dir!();
    for Subject { name, open, open_read_only, stores, resizes } in subjects {
        let run = |what: &str, open: &subjects::Open, check: checks::Check| {
            let ctx = make();
            let node = open(&ctx, dir.path());
            let what = format!("{name}, {world}, seed {seed}, {what}");
            check(&Stage::new(&ctx, node, (stores, resizes), seed, what));
        };
        for (what, check) in checks::CHECKS {
            run(what, &open, check);
        }
        if let Some(open) = &open_read_only {
            run("read-only", open, checks::read_only);
        }
    }
}

fn waits_in(mode: WaitMode) -> AioContext {
    AioContext::test_builder().wait_mode(mode).build().expect("a context")
}

#[test]
fn drivers_conform_where_the_loop_chooses_how_to_wait() {
    all_conform("auto", 1, || waits_in(WaitMode::Auto));
}

#[test]
fn drivers_conform_where_the_loop_waits_in_epoll() {
    all_conform("epoll", 2, || waits_in(WaitMode::Epoll));
}

#[test]
fn drivers_conform_where_the_loop_waits_in_a_ring() {
    all_conform("ring", 3, || waits_in(WaitMode::Ring));
}

/// Needs what `tests/ceph/up` brings up.
#[test]
fn ceph_rbd_conforms() {
    conform(vec![subjects::rbd()], "auto", 1, || waits_in(WaitMode::Auto));
}

/// The world outside is in no simulation.
#[test]
fn exports_of_nbd_servers_conform() {
    for mode in [WaitMode::Epoll, WaitMode::Ring] {
        conform(vec![subjects::nbd()], "nbd", 4, || waits_in(mode));
    }
}

#[test]
fn drivers_conform_in_simulated_contexts() {
    // What calls that fall short and are interrupted must not be noticed above.
    let faults =
        Faults::default().short_per_mille(100).short_unit_bytes(4096).interrupted_per_mille(100);
    for seed in seeds(1) {
        let options = SimulationOptions::new(seed).faults(faults);
        all_conform("simulated", seed, || {
            AioContext::test_builder().simulated(options).build().expect("a context")
        });
    }
}
