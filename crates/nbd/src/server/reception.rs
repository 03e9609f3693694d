//! [`Reception`]: what a client meets before it has chosen an export.

use std::fmt::Display;

use crate::server::client::Client;
use crate::server::exports::Exports;
use crate::server::options::NbdOptions;
use crate::server::refusals::Refusals;

/// What a server offers, and on which terms. On the thread of the server.
pub struct Reception {
    pub exports: Exports,
    pub options: NbdOptions,
    refusals: Refusals,
}

impl Reception {
    pub fn new(options: NbdOptions) -> Reception {
        Reception { exports: Exports::default(), options, refusals: Refusals::default() }
    }

    /// A client is refused, which is for the operator to know; others like it are logged at most once a
    /// second.
    pub fn log_refusal(&self, client: &Client, now_ns: i64, why: &dyn Display) {
        if let Some(unlogged) = self.refusals.admit(now_ns) {
            let client = client.link.transport.peer();
            tracing::warn!(%client, unlogged, "an NBD client is refused: {why}");
        }
    }
}
