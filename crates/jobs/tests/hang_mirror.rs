//! Mirrors to a target that does not answer any more.

mod util;

use util::sim::mirror::OfMirror;
use util::sim::run_silent;

#[test]
fn j145_a_silent_target_holds_up_neither_a_cancellation_nor_guests_in_the_background() {
    run_silent::<OfMirror>(25);
}
