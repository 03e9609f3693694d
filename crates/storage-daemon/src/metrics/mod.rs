//! Metrics for Prometheus, over HTTP: `GET /metrics` on a socket of its own.
//!
//! * `server.rs`: listens, and bounds how many clients there are at once;
//! * `client.rs`: one client, from its request to the end of the answer;
//! * `http.rs`: what a request says, and what an answer looks like;
//! * `sample.rs`: the numbers of a moment, read where they are counted anyway;
//! * `text.rs`: these in the format of OpenMetrics.
//!
//! Nothing is counted for this that is not counted without it, but latencies: exports have them once there
//! is a server of metrics.

mod client;
mod http;
mod sample;
mod server;
mod text;

pub(crate) use sample::{Sample, co_ask_loops, measure_latencies};
pub(crate) use server::MetricsServer;
pub(crate) use text::encode;
