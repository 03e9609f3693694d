//! Looking, without sleeping.

use std::time::{Duration, Instant};

use super::Place;
use super::presence::{Crowd, HERE};

/// So often it looks between two glances at the clock.
const LOOKS: u32 = 4;

/// Whether the calling thread may spin: each thread that is awake can have a CPU, and the other side, if it is
/// known, is not on this one. `other` is where the thread is that is waited for, if it is one of ours.
#[inline]
pub(crate) fn may_spin(other: Option<&Place>) -> bool {
    may_spin_in(&HERE, other)
}

#[inline]
fn may_spin_in(crowd: &Crowd, other: Option<&Place>) -> bool {
    crowd.has_room() && !other.is_some_and(Place::is_here)
}

/// Calls `look` until it finds something, for `limit` after `start` at most. `None`: time is up, or the CPU is
/// needed. Not at all if `limit` is zero, or if the calling thread [may not](may_spin).
#[inline]
pub(crate) fn spin<T>(
    start: Instant,
    limit: Duration,
    other: Option<&Place>,
    look: impl FnMut() -> Option<T>,
) -> Option<T> {
    spin_while(start, limit, || may_spin(other), look)
}

/// [`spin`] as long as `goes_on` says so.
#[inline]
pub(crate) fn spin_while<T>(
    start: Instant,
    limit: Duration,
    goes_on: impl Fn() -> bool,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    while !limit.is_zero() && goes_on() {
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                return Some(found);
            }
            std::hint::spin_loop();
        }
        if start.elapsed() >= limit {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Spins in a process with that many threads and CPUs.
    fn spin_in(
        crowd: &Crowd,
        other: Option<&Place>,
        look: impl FnMut() -> Option<u32>,
    ) -> Option<u32> {
        spin_while(Instant::now(), LONG, || may_spin_in(crowd, other), look)
    }

    #[test]
    fn it_does_not_spin_on_the_cpu_that_the_other_side_needs() {
        let crowd = Crowd::of(1, 2);
        let here = Place::new();
        let mut looks = 0;
        for _ in 0..1000 {
            here.publish();
            // If it has been moved in between, it looks, until it is where the other one is.
            let found = spin_in(&crowd, Some(&here), || {
                looks += 1;
                here.publish();
                None
            });
            assert_eq!(found, None);
        }
        assert!(looks < 1000, "{looks} looks");
        let elsewhere = Place::on(u32::MAX - 1);
        assert_eq!(spin_in(&crowd, Some(&elsewhere), || Some(1)), Some(1));
    }

    #[test]
    fn it_gives_up_when_a_thread_wakes_that_needs_the_cpu() {
        let free = Crowd::of(2, 2);
        let found = spin_in(&free, None, || {
            free.wakes();
            None
        });
        assert_eq!(found, None);
        assert_eq!(spin_in(&free, None, || panic!("a look")), None);
    }

    #[test]
    fn it_looks_until_the_time_is_up() {
        let (start, limit) = (Instant::now(), Duration::from_micros(50));
        assert_eq!(spin_while(start, limit, || true, || None::<()>), None);
        assert!(start.elapsed() >= limit);
        let none =
            spin_while(start, Duration::ZERO, || true, || -> Option<()> { panic!("a look") });
        assert_eq!(none, None);
    }
}
