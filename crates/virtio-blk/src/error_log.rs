//! [`ErrorLog`]: a disk that has gone must not fill the log with the requests that fail on it.

use crate::kind::RunKind;

/// After an error was logged, for how long others like it are only counted.
const QUIET_NS: i64 = 1_000_000_000;

/// Errors of one kind of request with one errno.
struct Entry {
    kind: RunKind,
    errno: i32,
    logged_at_ns: i64,
    unlogged: u64,
}

/// When which errors were logged. One entry for each kind and errno that was seen, so it is bounded
/// by what errnos there are.
#[derive(Default)]
pub(crate) struct ErrorLog {
    entries: Vec<Entry>,
}

impl ErrorLog {
    /// An error came at `now_ns`. If it is to be logged: how many like it were not, since the last
    /// one that was.
    pub(crate) fn admit(&mut self, kind: RunKind, errno: i32, now_ns: i64) -> Option<u64> {
        let known = self.entries.iter_mut().find(|it| (it.kind, it.errno) == (kind, errno));
        let Some(entry) = known else {
            self.entries.push(Entry { kind, errno, logged_at_ns: now_ns, unlogged: 0 });
            return Some(0);
        };
        if now_ns.saturating_sub(entry.logged_at_ns) < QUIET_NS {
            entry.unlogged += 1;
            return None;
        }
        entry.logged_at_ns = now_ns;
        Some(std::mem::take(&mut entry.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_of_each_kind_and_errno_and_the_rest_is_counted() {
        let mut log = ErrorLog::default();
        assert_eq!(log.admit(RunKind::Read, 5, 0), Some(0));
        assert_eq!(log.admit(RunKind::Read, 5, 1), None);
        assert_eq!(log.admit(RunKind::Read, 28, 1), Some(0), "another errno");
        assert_eq!(log.admit(RunKind::Write, 5, 1), Some(0), "another kind");
        assert_eq!(log.admit(RunKind::Read, 5, QUIET_NS - 1), None);
        assert_eq!(log.admit(RunKind::Read, 5, QUIET_NS), Some(2));
        assert_eq!(log.admit(RunKind::Read, 5, 2 * QUIET_NS - 1), None);
        assert_eq!(log.admit(RunKind::Read, 5, 2 * QUIET_NS), Some(1));
        assert_eq!(log.entries.len(), 3);
    }
}
