//! `null-co` and `null-aio`: a device that stores nothing, to measure all other layers.

use std::io;
use std::time::Duration;

use coblk_aio::{Co, IoVector, IoVectorMut};
use serde::{Deserialize, Serialize};

use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, WriteFlags, ZeroFlags};
use crate::driver::{BlockDriver, BlockLimits};
use crate::options::{DriverConfig, DriverOptions};
use crate::registry::{Driver, OpenError, Opening};

/// A driver whose requests do nothing and succeed.
#[derive(Clone, Debug)]
pub struct Null {
    size_bytes: u64,
    read_zeroes: bool,
    deferred: bool,
    latency: Duration,
    /// What the options make of the end of a request. Called last, it takes the place of its caller on the
    /// stack: a request that completes at once saves no registers for those that wait, and a switch of
    /// stacks in those has no frame more around it, whose return the processor would mispredict.
    finish: fn(&Null, &Co<'_>) -> io::Result<()>,
}

impl Null {
    /// Makes a device of `size_bytes` whose requests complete at once (`null-co`). Reads leave the
    /// buffer as it is, for measurements within the process; an export fills its buffers first.
    pub fn new(size_bytes: u64) -> Null {
        Null {
            size_bytes,
            read_zeroes: false,
            deferred: false,
            latency: Duration::ZERO,
            finish: Null::at_once,
        }
    }

    /// Sets whether reads fill the buffer with zeroes.
    pub fn read_zeroes(self, read_zeroes: bool) -> Null {
        Null { read_zeroes, ..self }
    }

    /// Sets whether requests suspend, and complete from a bottom half (`null-aio`).
    pub fn deferred(self, deferred: bool) -> Null {
        Null { deferred, ..self }.with_finish()
    }

    /// Sets how long a request takes, at least, in nanoseconds; a timer of the context makes it
    /// wait.
    pub fn latency_ns(self, latency_ns: u64) -> Null {
        Null { latency: Duration::from_nanos(latency_ns), ..self }.with_finish()
    }

    fn with_finish(self) -> Null {
        let finish: fn(&Null, &Co<'_>) -> io::Result<()> = match (self.latency, self.deferred) {
            (Duration::ZERO, false) => Null::at_once,
            (Duration::ZERO, true) => Null::in_next_turn,
            _ => Null::after_latency,
        };
        Null { finish, ..self }
    }

    fn at_once(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn in_next_turn(&self, co: &Co<'_>) -> io::Result<()> {
        co.yield_now();
        Ok(())
    }

    fn after_latency(&self, co: &Co<'_>) -> io::Result<()> {
        co.sleep(self.latency);
        Ok(())
    }

    #[inline(never)]
    fn read_zeroes_to(&self, co: &Co<'_>, target: &mut IoVectorMut<'_>) -> io::Result<()> {
        target.fill_from(0, 0);
        (self.finish)(self, co)
    }
}

impl BlockDriver for Null {
    fn format_name(&self) -> &'static str {
        if self.deferred { "null-aio" } else { "null-co" }
    }

    fn length(&self) -> u64 {
        self.size_bytes
    }

    fn limits(&self) -> BlockLimits {
        // Nothing is stored, so nothing can be lost.
        BlockLimits { write_flags: WriteFlags::FUA, ..BlockLimits::default() }
    }

    fn leaves_reads_unwritten(&self) -> bool {
        !self.read_zeroes
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        _offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        if self.read_zeroes { self.read_zeroes_to(co, target) } else { (self.finish)(self, co) }
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        _offset: u64,
        _source: &IoVector<'_>,
        _flags: WriteFlags,
    ) -> io::Result<()> {
        (self.finish)(self, co)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        (self.finish)(self, co)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        _offset: u64,
        _bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        (self.finish)(self, co)
    }

    fn co_allocated_bytes(&self, _co: &Co<'_>) -> io::Result<Option<u64>> {
        Ok(Some(0))
    }

    fn filename(&self) -> Option<String> {
        Some(format!("{}://", self.format_name()))
    }

    fn co_block_status(&self, _co: &Co<'_>, _offset: u64, bytes: u64) -> io::Result<Extent> {
        Ok(if self.read_zeroes { Extent::hole(bytes) } else { Extent::data(bytes) })
    }
}

/// Options of `null-co` and `null-aio`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct NullOptions {
    /// `size` in bytes; 1 GiB by default.
    pub size: u64,
    /// `read-zeroes`: reads fill the buffer. Off by default.
    pub read_zeroes: bool,
    /// `latency-ns`: how long a request takes, in nanoseconds. 0 by default.
    pub latency_ns: u64,
}

impl Default for NullOptions {
    fn default() -> NullOptions {
        NullOptions { size: 1 << 30, read_zeroes: false, latency_ns: 0 }
    }
}

impl NullOptions {
    /// The same with so many bytes.
    #[must_use]
    pub fn size(self, size: u64) -> NullOptions {
        NullOptions { size, ..self }
    }

    /// The same, and reads fill the buffer if `read_zeroes`.
    #[must_use]
    pub fn read_zeroes(self, read_zeroes: bool) -> NullOptions {
        NullOptions { read_zeroes, ..self }
    }

    /// The same with requests that take so many nanoseconds.
    #[must_use]
    pub fn latency_ns(self, latency_ns: u64) -> NullOptions {
        NullOptions { latency_ns, ..self }
    }
}

impl DriverOptions for NullOptions {}

/// `null-co`.
impl From<NullOptions> for DriverConfig {
    fn from(options: NullOptions) -> DriverConfig {
        DriverConfig::new("null-co", options)
    }
}

impl Driver for Null {
    const NAMES: &'static [&'static str] = &["null-co", "null-aio"];
    type Options = NullOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &NullOptions) -> Result<Null, OpenError> {
        let null = Null::new(options.size).read_zeroes(options.read_zeroes);
        let null = null.latency_ns(options.latency_ns);
        Ok(null.deferred(opening.driver_name() == "null-aio"))
    }
}
