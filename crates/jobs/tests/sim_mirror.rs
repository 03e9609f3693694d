//! Mirrors under guests, with a fault and a command at each of their suspensions.

mod util;

use util::sim::mirror::OfMirror;
use util::sim::run_seeds;

#[test]
fn j143_no_fault_and_no_command_loses_a_write_of_a_mirror() {
    run_seeds::<OfMirror>(200);
}

/// Each step that keeps writes is needed: without it a run fails.
#[cfg(feature = "test-rules")]
mod rules {
    use coblk_jobs::Rule;

    use super::OfMirror;

    #[track_caller]
    fn is_needed(rule: Rule) {
        super::util::sim::is_needed::<OfMirror>(rule, 2_000);
    }

    #[test]
    fn j51_a_mark_comes_after_the_write() {
        is_needed(Rule::MarkAfterWrite);
    }

    #[test]
    fn j51_a_mark_that_comes_during_a_copy_stays() {
        is_needed(Rule::KeepMarks);
    }

    #[test]
    fn j52_a_failed_copy_is_made_again() {
        is_needed(Rule::CopyAgain);
    }

    #[test]
    fn j58_both_are_equal_in_the_drained_section() {
        is_needed(Rule::EqualAtPivot);
    }

    #[test]
    fn j58_the_target_is_durable_before_the_pivot() {
        is_needed(Rule::DurableAtPivot);
    }

    #[test]
    fn j62_a_guest_claims_what_it_writes() {
        is_needed(Rule::GuestsClaim);
    }

    #[test]
    fn j62_a_failed_write_to_the_target_is_marked() {
        is_needed(Rule::MarkFailedAtTarget);
    }

    #[test]
    fn j63_a_granule_that_is_covered_in_part_is_left_to_the_copier() {
        is_needed(Rule::LeaveParts);
    }

    #[test]
    fn j65_a_write_that_fails_at_the_source_is_marked() {
        is_needed(Rule::MarkFailedAtSource);
    }
}
