//! Sockets from systemd: `LISTEN_FDS` of them, from descriptor 3 on, with names in
//! `LISTEN_FDNAMES`, for the process `LISTEN_PID`.

use std::env;
use std::os::fd::RawFd;

use crate::daemonize;

/// Number of the first.
const FIRST: RawFd = 3;
/// More are not believed.
const MAX_SOCKETS: usize = 1024;

/// The number of the socket called `name`.
pub fn number_of(name: &str) -> Option<RawFd> {
    let variable = |name| env::var(name).ok();
    let own = [Some(std::process::id()), daemonize::parent()];
    let pid: u32 = variable("LISTEN_PID")?.parse().ok()?;
    if !own.contains(&Some(pid)) {
        return None;
    }
    find(name, variable("LISTEN_FDS")?.parse().ok()?, &variable("LISTEN_FDNAMES")?)
}

fn find(name: &str, count: usize, names: &str) -> Option<RawFd> {
    let place = names.split(':').take(count.min(MAX_SOCKETS)).position(|it| it == name)?;
    Some(FIRST + RawFd::try_from(place).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_descriptors() {
        assert_eq!(find("b", 2, "a:b"), Some(4));
        assert_eq!(find("b", 1, "a:b"), None, "there is only one");
        assert_eq!(find("c", 2, "a:b"), None);
    }
}
