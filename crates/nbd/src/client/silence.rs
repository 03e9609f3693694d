//! Servers that are silent, and requests that are given up though their server is there.

use std::io;
use std::time::Duration;

use coblk_aio::AioContext;

use crate::client::connection::Connection;
use crate::client::link::Link;

/// How long a server may be silent once its requests are to be given up.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
/// How long one that is not silent may take for them: a server that sends a byte now and then never ends.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may be silent while the node is drained: a slow disk has answered by then, and a command that
/// drains has not given up yet.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a silent server is looked at, at least.
const MAX_TICK: Duration = Duration::from_secs(1);

/// Since when nothing has been received.
#[derive(Clone, Copy, Default)]
pub struct Silence {
    received: u64,
    since_ns: i64,
}

/// Requests that are to end, and since when.
#[derive(Clone, Copy)]
pub struct Cancelled {
    /// The newest of them. Those that come later are not meant.
    newest_cookie: u64,
    since_ns: i64,
}

impl Connection {
    /// Requests that wait for a server fail at once, and those at a server that is silent for a second.
    pub fn cancel(&self, ctx: &AioContext) {
        self.stop_waiting();
        if let Some(link) = self.link().filter(|link| link.in_flight() > 0) {
            let (newest_cookie, since_ns) = (link.newest_cookie(), ctx.now_ns());
            self.cancelled.set(Some(Cancelled { newest_cookie, since_ns }));
            self.look_soon(ctx, &link);
        }
    }

    /// The node is being drained: requests that wait for a server fail at once, and those at a server that is silent
    /// for [`DRAIN_PATIENCE`].
    pub fn quiesce(&self, ctx: &AioContext) {
        self.interrupted.set(self.interrupted.get() || self.waiting.get());
        self.stop_waiting();
        if let Some(link) = self.link() {
            self.look_soon(ctx, &link);
        }
    }

    /// Whether requests are to end that are still in flight.
    pub fn is_cancelled(&self) -> bool {
        if let Some(link) = self.link() {
            self.forget_cancel(&link);
        }
        self.cancelled.get().is_some()
    }

    /// What was to end has ended: those that came later wait for a server as ever.
    pub fn forget_cancel(&self, link: &Link) {
        let is_over = |it: Cancelled| !link.waits_for_one_up_to(it.newest_cookie);
        if self.cancelled.get().is_some_and(is_over) {
            self.cancelled.set(None);
        }
    }

    /// How long a server may be silent, while requests are in flight. `None` if for ever.
    fn patience(&self) -> Option<Duration> {
        let delay = self.shared.reconnect_delay;
        let usual = Some(delay).filter(|delay| !delay.is_zero());
        let drained = self.shared.is_quiesced().then_some(DRAIN_PATIENCE);
        let cancelled = self.cancelled.get().map(|_| CANCEL_PATIENCE);
        [usual, drained, cancelled].into_iter().flatten().min()
    }

    pub fn watch_for_silence(&self, ctx: &AioContext, link: &Link) {
        if self.patience().is_some() && self.tick.get().is_some_and(|tick| !tick.is_armed()) {
            self.look_soon(ctx, link);
        }
    }

    /// Looks as often as it takes from now on, as the patience may have become shorter.
    fn look_soon(&self, ctx: &AioContext, link: &Link) {
        let (Some(patience), Some(tick)) = (self.patience(), self.tick.get()) else { return };
        if !tick.is_armed() {
            self.silence.set(Silence { received: link.received(), since_ns: ctx.now_ns() });
        }
        tick.arm_after((patience / 8).min(MAX_TICK));
    }

    pub fn look_at_silence(&self, ctx: &AioContext) {
        let Some(link) = self.link().filter(|link| link.in_flight() > 0) else {
            self.cancelled.set(None);
            return;
        };
        self.forget_cancel(&link);
        let (Some(patience), Some(tick)) = (self.patience(), self.tick.get()) else { return };
        let mut silence = self.silence.get();
        if silence.received != link.received() {
            silence = Silence { received: link.received(), since_ns: ctx.now_ns() };
            self.silence.set(silence);
        }
        let passed = |since_ns| u64::try_from(ctx.now_ns() - since_ns).unwrap_or(0);
        let left = patience.saturating_sub(Duration::from_nanos(passed(silence.since_ns)));
        let is_slow = |it: Cancelled| Duration::from_nanos(passed(it.since_ns)) >= CANCEL_LIMIT;
        let why = match self.cancelled.get().is_some_and(is_slow) {
            true => "the server does not end what is given up",
            false if left.is_zero() => "the server is silent",
            false => return tick.arm_after((patience / 8).min(MAX_TICK).min(left)),
        };
        // Its requests have waited long enough.
        let (newest_cookie, since_ns) = (link.newest_cookie(), ctx.now_ns());
        self.cancelled.set(Some(Cancelled { newest_cookie, since_ns }));
        link.fail(&io::Error::new(io::ErrorKind::TimedOut, why));
        self.cancelled.set(None);
    }
}
