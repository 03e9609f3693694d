//! A storage daemon with two drivers of its own: a disk in memory, and, in `own_filter.rs`, a filter that
//! protects the beginning of another node.
//!
//! ```sh
//! cargo run --example own_driver -- --blockdev ram,node-name=disk,size=1G,latency-us=200 \
//!     --blockdev protect,node-name=guarded,file=disk,bytes=1M \
//!     --nbd-server addr.type=unix,addr.path=/tmp/nbd.sock \
//!     --export nbd,id=e0,node-name=guarded,writable=on
//! qemu-io -f raw -c 'write 1M 64k' -c 'write 0 64k' 'nbd+unix:///guarded?socket=/tmp/nbd.sock'
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coblk::block::options::DriverOptions;
use coblk::block::{
    BlockDriver, BlockLimits, Driver, EventData, EventSink, EventType, Extent, OpenError, Opening,
    ReadFlags, Reopen, Reopening, WriteFlags, ZeroFlags,
};
use coblk::qapi::Size;
use coblk::{Co, IoVector, IoVectorMut};
use coblk_storage_daemon::builder::DaemonBuilder;
use coblk_storage_daemon::daemon::Daemon;
use coblk_storage_daemon::run;
use serde::{Deserialize, Serialize};

#[path = "own_filter.rs"]
mod own_filter;

/// What is stored at once. Chunks that were never written take no memory.
const CHUNK_BYTES: u64 = 64 << 10;
/// The longest disk, so that the map of a full one stays small beside its bytes.
const MAX_BYTES: u64 = 1 << 40;

fn main() -> ExitCode {
    run::main_with(builder(), std::env::args_os())
}

/// The daemon, with one line for each driver.
pub fn builder() -> DaemonBuilder {
    Daemon::builder().driver::<Ram>().driver::<own_filter::Protect>()
}

/// The disk.
struct Ram {
    size_bytes: u64,
    /// By number.
    chunks: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Requests read it, and a reopen changes it, while nothing is in flight.
    latency_us: AtomicU64,
    /// How many chunks it may store.
    max_chunks: u64,
    /// Where it tells that it has no memory left.
    events: EventSink,
}

/// What options say of it, beside those of all nodes.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct RamOptions {
    /// Its length in bytes.
    size: Size,
    /// How long a request takes, in microseconds.
    #[serde(default)]
    latency_us: u64,
    /// How many bytes of memory it may take; as many as it is long if left out.
    memory: Option<Size>,
}

impl DriverOptions for RamOptions {}

/// What is told when a write finds no memory.
#[derive(Deserialize, Serialize)]
struct RamFull {
    /// Where it is missing, in bytes.
    offset: u64,
}

impl EventData for RamFull {
    const NAME: &'static str = "X_RAM_FULL";
}

impl Driver for Ram {
    const NAMES: &'static [&'static str] = &["ram"];
    const CHANGEABLE: &'static [&'static str] = &["latency-us"];
    const EVENTS: &'static [EventType] = &[EventType::of::<RamFull>()];
    type Options = RamOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &RamOptions) -> Result<Ram, OpenError> {
        let RamOptions { size: Size(size_bytes), latency_us, memory } = *options;
        if size_bytes > MAX_BYTES {
            return Err(OpenError::option("size", format!("more than {MAX_BYTES} bytes")));
        }
        Ok(Ram {
            size_bytes,
            chunks: Mutex::default(),
            latency_us: latency_us.into(),
            max_chunks: memory.map_or(u64::MAX, |Size(bytes)| bytes / CHUNK_BYTES),
            events: opening.events(),
        })
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        _: &Reopening<'_, '_>,
        options: &RamOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        // Called once, and once more if a user of the node does not agree.
        let mut other = options.latency_us;
        Ok(Box::new(move || other = self.latency_us.swap(other, Ordering::Relaxed)))
    }
}

impl Ram {
    /// Waits as long as a request takes; then the chunks. No guard is held while a coroutine waits.
    fn co_chunks(&self, co: &Co<'_>) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        let latency_us = self.latency_us.load(Ordering::Relaxed);
        if latency_us > 0 {
            co.sleep(Duration::from_micros(latency_us));
        }
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear(&self, co: &Co<'_>, offset: u64, bytes: u64) {
        let mut chunks = self.co_chunks(co);
        for (number, within, _) in pieces(offset, bytes) {
            if within.len() as u64 == CHUNK_BYTES {
                chunks.remove(&number);
            } else if let Some(chunk) = chunks.get_mut(&number) {
                chunk[within].fill(0);
            }
        }
    }
}

/// The chunks of a request: the number of each, the range in it, and where that is in the request.
fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, Range<usize>, usize)> {
    let end = offset + bytes;
    (offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES)).map(move |number| {
        let first = number * CHUNK_BYTES;
        let (from, to) = (offset.max(first), end.min(first + CHUNK_BYTES));
        (number, (from - first) as usize..(to - first) as usize, (from - offset) as usize)
    })
}

/// The layer has checked that a request ends within the length, and that the node may be written to.
impl BlockDriver for Ram {
    fn format_name(&self) -> &'static str {
        "ram"
    }

    fn length(&self) -> u64 {
        self.size_bytes
    }

    fn limits(&self) -> BlockLimits {
        // A write is as durable as it will ever be.
        BlockLimits { write_flags: WriteFlags::FUA, ..BlockLimits::default() }
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _flags: ReadFlags,
    ) -> io::Result<()> {
        let chunks = self.co_chunks(co);
        for (number, within, at) in pieces(offset, target.len() as u64) {
            match chunks.get(&number) {
                Some(chunk) => drop(target.copy_from(at, &chunk[within])),
                None => target.slice(at, within.len()).fill_from(0, 0),
            }
        }
        Ok(())
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _flags: WriteFlags,
    ) -> io::Result<()> {
        let mut chunks = self.co_chunks(co);
        for (number, within, at) in pieces(offset, source.len() as u64) {
            if chunks.len() as u64 >= self.max_chunks && !chunks.contains_key(&number) {
                drop(chunks);
                let offset = number * CHUNK_BYTES;
                self.events.tell(&RamFull { offset });
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let chunk = chunks.entry(number).or_insert_with(|| vec![0; CHUNK_BYTES as usize]);
            source.copy_to(at, &mut chunk[within]);
        }
        Ok(())
    }

    fn co_flush(&self, _co: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        _flags: ZeroFlags,
    ) -> io::Result<()> {
        self.clear(co, offset, bytes);
        Ok(())
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.clear(co, offset, bytes);
        Ok(())
    }

    fn co_block_status(&self, _co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        let chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = bytes.min(CHUNK_BYTES - offset % CHUNK_BYTES);
        match chunks.contains_key(&(offset / CHUNK_BYTES)) {
            true => Ok(Extent::data(bytes)),
            false => Ok(Extent::hole(bytes)),
        }
    }

    fn co_allocated_bytes(&self, _co: &Co<'_>) -> io::Result<Option<u64>> {
        let chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(chunks.len() as u64 * CHUNK_BYTES))
    }
}
