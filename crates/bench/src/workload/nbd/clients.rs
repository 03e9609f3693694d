//! Several connections at once, each with a thread.

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::NbdClient;
use crate::workload::{Job, new_histogram};

/// Connections to one export.
pub struct NbdClients(Vec<NbdClient>);

impl NbdClients {
    /// Connects so often, each with `job.depth` requests in flight.
    ///
    /// # Errors
    /// If there is no server, it refuses, or the export is too small for the job.
    pub fn connect(
        socket: &Path,
        name: &str,
        connections: usize,
        job: &Job,
    ) -> io::Result<NbdClients> {
        let connect = |index| {
            NbdClient::connect(socket, name, &Job { seed: job.seed + index as u64, ..job.clone() })
        };
        (0..connections).map(connect).collect::<io::Result<_>>().map(NbdClients)
    }

    /// Makes `ops` requests, or as many more as make it the same number for each connection.
    ///
    /// # Errors
    /// If the server fails one, says what it must not, or says nothing for ten seconds.
    pub fn run(&mut self, ops: u64) -> io::Result<u64> {
        let each = ops.div_ceil(self.0.len() as u64);
        if let [client] = &mut self.0[..] {
            return client.run(each).map(|()| each);
        }
        thread::scope(|scope| {
            let clients = self.0.iter_mut();
            let threads: Vec<_> =
                clients.map(|client| scope.spawn(move || client.run(each))).collect();
            let ended = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            // All are waited for before the first error counts.
            ended.collect::<Vec<_>>().into_iter().collect::<io::Result<Vec<()>>>()
        })?;
        Ok(each * self.0.len() as u64)
    }

    /// Makes `per_s` requests a second on the first one for `time`; how many it has made.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_at_rate(&mut self, per_s: u64, time: Duration) -> io::Result<u64> {
        match &mut self.0[..] {
            [first, ..] => first.run_at_rate(per_s, time),
            [] => Ok(0),
        }
    }

    /// How long the requests since the last call took, in nanoseconds.
    ///
    /// # Errors
    /// If they cannot be counted together.
    pub fn take_latencies(&mut self) -> io::Result<Histogram<u64>> {
        let mut all = new_histogram();
        for client in &mut self.0 {
            all.add(client.take_latencies()).map_err(io::Error::other)?;
        }
        Ok(all)
    }
}
