//! Backups under guests, with a fault and a command at each of their suspensions.

mod util;

use util::sim::backup::OfBackup;
use util::sim::run_seeds;

#[test]
fn j143_no_fault_and_no_command_spoils_the_instant_of_a_backup() {
    run_seeds::<OfBackup>(80);
}

/// Each step that keeps old bytes is needed: without it a run fails.
#[cfg(feature = "test-rules")]
mod rules {
    use coblk_jobs::Rule;

    use super::OfBackup;
    use super::util::sim::is_needed;

    #[test]
    fn j52_a_failed_copy_is_made_again() {
        is_needed::<OfBackup>(Rule::CopyAgain, 2_000);
    }

    #[test]
    fn j77_a_guest_waits_for_copies_of_others() {
        is_needed::<OfBackup>(Rule::GuestsWait, 2_000);
    }

    #[test]
    fn j130_held_bytes_that_are_lost_fail_the_backup() {
        is_needed::<OfBackup>(Rule::LostFails, 10_000);
    }

    #[test]
    fn j73_the_copy_is_durable_before_the_end() {
        is_needed::<OfBackup>(Rule::DurableAtEnd, 2_000);
    }

    #[test]
    fn j131_a_guest_copies_no_newer_bytes_over_what_is_in_the_spill() {
        is_needed::<OfBackup>(Rule::SpilledStays, 10_000);
    }
}
