//! Streams and commits under guests, with a fault and a command at each of their suspensions.

mod util;

use util::sim::chain::{OfActiveCommit, OfCommit, OfStream};
use util::sim::{run_seeds, run_silent};

#[test]
fn j143_no_fault_and_no_command_loses_a_write_of_a_stream() {
    run_seeds::<OfStream>(80);
}

#[test]
fn j143_no_fault_and_no_command_loses_a_write_of_a_commit() {
    run_seeds::<OfCommit>(80);
}

#[test]
fn j143_no_fault_and_no_command_loses_a_write_of_an_active_commit() {
    run_seeds::<OfActiveCommit>(80);
}

#[test]
fn j145_a_silent_disk_of_a_chain_loses_nothing_and_jobs_end_when_it_answers() {
    run_silent::<OfStream>(5);
    run_silent::<OfCommit>(5);
    run_silent::<OfActiveCommit>(5);
}
