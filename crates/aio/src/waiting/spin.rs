//! Looking, without sleeping.

use std::time::{Duration, Instant};

use super::Place;
use super::presence::{Crowd, HERE};

/// So often it looks between two glances at the clock.
const LOOKS: u32 = 4;

/// Whether the calling thread may spin: each thread that is awake can have a CPU, and the other side, if it is
/// known, is not on this one.
#[inline]
fn may_spin(crowd: &Crowd, other: Option<&Place>) -> bool {
    crowd.has_room() && !other.is_some_and(Place::is_here)
}

/// Calls `look` until it finds something, for `limit` after `start` at most. `None`: time is up, or the CPU is
/// needed. Not at all if `limit` is zero or the CPU is needed at once. `other` is where the
/// thread is that is waited for, if it is one of ours.
#[inline]
pub(crate) fn spin<T>(
    start: Instant,
    limit: Duration,
    other: Option<&Place>,
    look: impl FnMut() -> Option<T>,
) -> Option<T> {
    if limit.is_zero() {
        return None;
    }
    spin_in(&HERE, start, limit, other, look)
}

fn spin_in<T>(
    crowd: &Crowd,
    start: Instant,
    limit: Duration,
    other: Option<&Place>,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    while may_spin(crowd, other) {
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

    #[test]
    fn it_does_not_spin_on_the_cpu_that_the_other_side_needs() {
        let crowd = Crowd::of(1, 2);
        let here = Place::new();
        // The thread may be moved at any moment: then it looks, and publishes where it is now.
        let mut looks = 0;
        for _ in 0..1000 {
            here.publish();
            spin_in(&crowd, Instant::now(), LONG, Some(&here), || {
                looks += 1;
                here.publish();
                None::<()>
            });
        }
        assert!(looks < 1000, "{looks} looks");
        let elsewhere = Place::on(u32::MAX - 1);
        let found = spin_in(&crowd, Instant::now(), LONG, Some(&elsewhere), || Some(1));
        assert_eq!(found, Some(1));
    }

    #[test]
    fn it_gives_up_when_a_thread_wakes_that_needs_the_cpu() {
        let full = Crowd::of(3, 2);
        let at_once =
            spin_in(&full, Instant::now(), LONG, None, || -> Option<()> { panic!("a look") });
        assert_eq!(at_once, None);
    }

    #[test]
    fn it_looks_until_the_time_is_up() {
        let crowd = Crowd::of(1, 1);
        let (start, limit) = (Instant::now(), Duration::from_micros(50));
        assert_eq!(spin_in(&crowd, start, limit, None, || None::<()>), None);
        assert!(start.elapsed() >= limit);
        let never =
            spin(Instant::now(), Duration::ZERO, None, || -> Option<()> { panic!("a look") });
        assert_eq!(never, None);
    }
}
