//! [`OnError`]: what a job does when one of its requests fails; and how long it waits to try again.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use coblk_block::ErrorAction;

/// What a job does when a request of its own fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It fails. The default.
    #[default]
    Report,
    /// It tries again, or leaves that part out, as its kind does.
    Ignore,
    /// [`Stop`](Self::Stop) if there is no space left (ENOSPC), else [`Report`](Self::Report).
    Enospc,
    /// It is paused, as by a user, and tries again when it is resumed.
    Stop,
}

impl OnError {
    /// The action after an error.
    pub(super) fn action(self, error: &io::Error) -> ErrorAction {
        let is_no_space = error.raw_os_error() == Some(libc::ENOSPC);
        match self {
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc if is_no_space => ErrorAction::Stop,
            OnError::Report | OnError::Enospc => ErrorAction::Report,
        }
    }
}

const FIRST_WAIT: Duration = Duration::from_millis(10);
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How many errors are told in [`TOLD_IN`].
const MAX_TOLD: u32 = 10;
const TOLD_IN_NS: i64 = 1_000_000_000;

/// Errors that are ignored: requests are tried again after longer and longer waits, and of a storm some errors
/// are told.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// How many have failed since one succeeded.
    failed: Cell<u32>,
    /// The beginning of a second, and how many were told in it.
    told: Cell<Option<(i64, u32)>>,
}

impl Retries {
    /// A request has succeeded.
    pub(super) fn succeeded(&self) {
        self.failed.set(0);
    }

    /// A request has failed: how long to wait before the next one.
    pub(super) fn failed(&self) -> Duration {
        let before = self.failed.replace(self.failed.get().saturating_add(1));
        FIRST_WAIT.saturating_mul(2_u32.saturating_pow(before.min(16))).min(LAST_WAIT)
    }

    /// Whether an error of this moment is to be told.
    pub(super) fn tell(&self, now_ns: i64) -> bool {
        let (start, told) = match self.told.get() {
            Some((start, told)) if now_ns - start < TOLD_IN_NS => (start, told),
            _ => (now_ns, 0),
        };
        self.told.set(Some((start, told + 1)));
        told < MAX_TOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j38_policies_lead_to_actions() {
        let action = |policy: OnError, errno| policy.action(&io::Error::from_raw_os_error(errno));
        let of = |policy| [libc::EIO, libc::ENOSPC].map(|errno| action(policy, errno));
        assert_eq!(of(OnError::Report), [ErrorAction::Report; 2]);
        assert_eq!(of(OnError::Ignore), [ErrorAction::Ignore; 2]);
        assert_eq!(of(OnError::Stop), [ErrorAction::Stop; 2]);
        assert_eq!(of(OnError::Enospc), [ErrorAction::Report, ErrorAction::Stop]);
    }

    #[test]
    fn j41_retries_wait_longer_and_longer_and_a_storm_is_told_in_part() {
        let retries = Retries::default();
        let waits: Vec<u128> = (0..10).map(|_| retries.failed().as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        retries.succeeded();
        assert_eq!(retries.failed().as_millis(), 10);
        let told = |from: i64| (0..1000).filter(|it| retries.tell(from + it)).count();
        assert_eq!([told(0), told(500_000_000), told(TOLD_IN_NS)], [10, 0, 10]);
    }
}
