//! Backups under guests, with a fault and a command at each of their suspensions.

mod util;

use util::sim::backup::OfBackup;
use util::sim::run_seeds;

#[test]
fn j143_no_fault_and_no_command_spoils_the_instant_of_a_backup() {
    run_seeds::<OfBackup>(80);
}
