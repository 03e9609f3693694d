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

/// Each step that keeps writes is needed: without it a run fails.
#[cfg(feature = "test-rules")]
mod rules {
    use coblk_jobs::Rule;

    use super::util::sim::is_needed;
    use super::{OfActiveCommit, OfCommit, OfStream};

    #[test]
    fn j38_what_a_stream_has_left_out_keeps_the_chain() {
        is_needed::<OfStream>(Rule::LeftOutFails, 2_000);
    }

    #[test]
    fn j52_a_failed_copy_of_a_commit_is_made_again() {
        is_needed::<OfCommit>(Rule::CopyAgain, 2_000);
    }

    #[test]
    fn j51_j52_j58_an_active_commit_needs_the_steps_of_a_mirror() {
        for rule in [Rule::MarkAfterWrite, Rule::KeepMarks, Rule::CopyAgain, Rule::EqualAtPivot] {
            is_needed::<OfActiveCommit>(rule, 2_000);
        }
    }
}
