//! How a TCP peer that has vanished is noticed, so that it does not keep its place forever.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::address::KeepAlive;

/// Silence before the first probe.
const IDLE_SECONDS: u32 = 60;
/// Between two probes.
const INTERVAL_SECONDS: u32 = 10;
/// Probes that may stay unanswered.
const PROBES: u32 = 6;
/// The kernel takes no more.
const MAX_SECONDS: u32 = 32_767;
const MAX_PROBES: u32 = 127;

/// Has the kernel end a connection whose peer does not answer: probes while there is nothing to send,
/// and a limit for what was sent and is not acknowledged, of the same length. Probes alone would not
/// do: the kernel sends none while data waits, and tries that for a quarter of an hour.
pub fn set(socket: &SockRef<'_>, wanted: &KeepAlive) -> io::Result<()> {
    if wanted.enabled == Some(false) {
        return socket.set_keepalive(false);
    }
    // What an administrator has made shorter for the whole system holds.
    let system_seconds = |time: io::Result<Duration>, default| {
        time.map_or(default, |time| time.as_secs().min(u64::from(default)) as u32)
    };
    let idle = system_seconds(socket.tcp_keepalive_time(), IDLE_SECONDS);
    let interval = system_seconds(socket.tcp_keepalive_interval(), INTERVAL_SECONDS);
    let count = socket.tcp_keepalive_retries().map_or(PROBES, |count| count.min(PROBES));
    // 0, as in QEMU, is the default.
    let or = |wanted: Option<u32>, default: u32, most| {
        wanted.filter(|it| *it > 0).unwrap_or(default).clamp(1, most)
    };
    let idle = or(wanted.idle_seconds, idle, MAX_SECONDS);
    let interval = or(wanted.interval_seconds, interval, MAX_SECONDS);
    let count = or(wanted.count, count, MAX_PROBES);
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let keep_alive = TcpKeepalive::new()
        .with_time(seconds(idle))
        .with_interval(seconds(interval))
        .with_retries(count);
    socket.set_tcp_keepalive(&keep_alive)?;
    socket.set_tcp_user_timeout(Some(seconds(idle) + seconds(interval) * count))
}
