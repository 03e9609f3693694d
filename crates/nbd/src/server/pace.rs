//! [`Pace`]: whether a client makes use of the memory that it keeps from others.
//!
//! A client may be slow for as long as every client gets the memory that it asks for. Once one got
//! none, those that hold memory and keep the server waiting are watched for [`PATIENCE_NS`]. In that
//! time each must move a part of the bytes that wait for it, in each direction by itself.

use std::cell::Cell;

/// How long a client is watched before it is judged.
const PATIENCE_NS: i64 = 10_000_000_000;
/// In that time one in so many bytes that wait for a client must move.
const PART: u64 = 32;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direction {
    /// Bytes moved since the client has connected.
    pub moved: u64,
    /// Length of the messages that the client has not taken, or of the payload that it has not sent;
    /// 0 if the server does not wait for it.
    pub waiting: u64,
}

/// A client while it is watched.
#[derive(Default)]
pub struct Pace(Cell<Option<Window>>);

#[derive(Clone, Copy)]
struct Window {
    since_ns: i64,
    directions: [Direction; 2],
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not waited for, or was fast enough.
    Fine,
    /// It is to be looked at again.
    Open,
    TooSlow,
}

impl Pace {
    /// Begins anew with the next look.
    pub fn forget(&self) {
        self.0.set(None);
    }

    /// Looks at a client that holds memory.
    pub fn look(&self, now_ns: i64, directions: [Direction; 2]) -> Verdict {
        if directions.iter().all(|direction| direction.waiting == 0) {
            self.forget();
            return Verdict::Fine;
        }
        let Some(window) = self.0.get() else {
            self.0.set(Some(Window { since_ns: now_ns, directions }));
            return Verdict::Open;
        };
        if now_ns - window.since_ns < PATIENCE_NS {
            return Verdict::Open;
        }
        self.forget();
        let is_slow = |(then, now): (&Direction, &Direction)| {
            let least = (then.waiting / PART).max(1);
            then.waiting > 0 && now.waiting > 0 && now.moved - then.moved < least
        };
        let slow = window.directions.iter().zip(&directions).any(is_slow);
        if slow { Verdict::TooSlow } else { Verdict::Fine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const IDLE: Direction = Direction { moved: 7, waiting: 0 };

    /// What becomes of a client that has moved so much of 32 MiB when it is judged.
    fn judged(moved: u64) -> Verdict {
        let pace = Pace::default();
        let at = |moved| Direction { moved: 100 + moved, waiting: 32 * MIB };
        assert_eq!(pace.look(5, [IDLE, at(0)]), Verdict::Open);
        assert_eq!(pace.look(5 + PATIENCE_NS - 1, [IDLE, at(moved)]), Verdict::Open);
        pace.look(5 + PATIENCE_NS, [IDLE, at(moved)])
    }

    #[test]
    fn a_client_must_move_a_part_of_what_waits_for_it() {
        assert_eq!(judged(0), Verdict::TooSlow);
        // A few bytes, however regularly, are none.
        assert_eq!(judged(MIB - 1), Verdict::TooSlow);
        assert_eq!(judged(MIB), Verdict::Fine);
    }

    #[test]
    fn one_direction_does_not_excuse_the_other() {
        let pace = Pace::default();
        let at = |moved| Direction { moved, waiting: MIB };
        assert_eq!(pace.look(0, [at(0), at(0)]), Verdict::Open);
        assert_eq!(pace.look(PATIENCE_NS, [at(1), at(9 * MIB)]), Verdict::TooSlow);
    }

    #[test]
    fn a_client_that_is_not_waited_for_is_fine() {
        let pace = Pace::default();
        assert_eq!(pace.look(0, [IDLE, IDLE]), Verdict::Fine);
        let waited_for = Direction { moved: 0, waiting: MIB };
        assert_eq!(pace.look(0, [waited_for, IDLE]), Verdict::Open);
        // It has taken all, and is waited for again, for something else: that has its own time.
        assert_eq!(pace.look(1, [IDLE, IDLE]), Verdict::Fine);
        assert_eq!(pace.look(PATIENCE_NS, [waited_for, IDLE]), Verdict::Open);
        // Waited for in the other direction at last.
        let other = [IDLE, waited_for];
        assert_eq!(pace.look(2 * PATIENCE_NS, other), Verdict::Fine);
    }
}
