//! [`Image`]: an open image, as its requests see it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use coblk_aio::sync::CoMutex;
use coblk_aio::{Co, PoolShare};
use coblk_block::{Child, ChildSlot, EventSink, Preallocation, Truncate};

use crate::bitmap::StoredBitmaps;
use crate::cache::SliceCache;
use crate::cleaning::Cleaner;
use crate::commit::BlockLoads;
use crate::encryption::Encryption;
use crate::epoch::Epochs;
use crate::event::ImageCorrupted;
use crate::giving_way::WholeTurn;
use crate::header_io::HeaderCell;
use crate::holes::Holes;
use crate::inflated::InflatedClusters;
use crate::layout::{
    CompressionType, Corruption, EntryRules, Geometry, Header, Incompatible, Snapshot,
};
use crate::live::LiveOptions;
use crate::map::L1;
use crate::metadata::MetadataSet;
use crate::refcount::Refcounts;
use crate::rewrites::Rewrites;
use crate::rules::Rule;
use crate::state::State;
use crate::survey::Survey;

/// Steps in which the file grows, in bytes: data finds its space there already, as a rule.
const GROWTH_BYTES: u64 = 1 << 20;

/// An open image. Any thread; several contexts at once.
pub(crate) struct Image {
    /// Itself, for coroutines that no request waits for.
    pub(crate) me: OnceLock<Weak<Image>>,
    pub(crate) header: HeaderCell,
    /// Length of the disk in bytes.
    disk_bytes: AtomicU64,
    pub(crate) geometry: Geometry,
    pub(crate) rules: EntryRules,
    /// How clusters were compressed when the image was opened.
    compression: CompressionType,
    pub(crate) snapshots: Mutex<Vec<Snapshot>>,
    pub(crate) whole_turn: WholeTurn,
    pub(crate) bitmaps: StoredBitmaps,
    /// The snapshot that is read instead of the disk, as an option names it.
    pub(crate) shown: Option<String>,
    pub(crate) l1: L1,
    pub(crate) cache: SliceCache,
    pub(crate) cleaner: Cleaner,
    state: Mutex<State>,
    pub(crate) epochs: Epochs,
    pub(crate) metadata: Arc<MetadataSet>,
    /// Held by the one that reads a refcount block.
    pub(crate) block_turn: CoMutex<()>,
    pub(crate) block_loads: BlockLoads,
    pub(crate) rewrites: Rewrites,
    pub(crate) survey: Survey,
    pub(crate) holes: Holes,
    /// Memory for refcounts in bytes. A reopen changes it.
    refcount_bytes: AtomicU64,
    pub(crate) options: LiveOptions,
    #[cfg(feature = "test-rules")]
    pub(crate) omitted: Option<Rule>,
    /// Where the file ended when it was looked at last.
    end: AtomicU64,
    /// The file was made longer, by more than was needed perhaps.
    has_grown: AtomicBool,
    /// How long the file is durably, at least; of a file that was just opened nothing is known.
    durable_end: AtomicU64,
    pub(crate) file: Child,
    pub(crate) data_file: Option<Child>,
    pub(crate) backing: ChildSlot,
    pub(crate) encryption: Option<Encryption>,
    pub(crate) inflated: InflatedClusters,
    /// Decompression shares workers with nothing else.
    pub(crate) workers: PoolShare,
    events: EventSink,
    /// A corruption was told.
    is_told: AtomicBool,
    /// [`Hurdle`]s.
    hurdles: AtomicU8,
    /// It has become version 2, or is about to.
    pub(crate) is_downgraded: AtomicBool,
}

bitflags::bitflags! {
    /// What keeps writes from the disk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Hurdle: u8 {
        /// A corruption was found while the image was written: it is not used any more.
        const DEAD = 1;
        /// The file does not say that its bitmaps are in use.
        const UNMARKED = 2;
    }
}

/// The mapping that an image shows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// The snapshot, as an option names it; `None`: the disk.
    pub(crate) snapshot: Option<String>,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(crate) disk_bytes: u64,
}

/// What an opening has found, for an [`Image`] to be made.
pub(crate) struct Parts {
    pub(crate) header: Box<Header>,
    /// Cluster 0 as it is in the file.
    pub(crate) cluster: Vec<u8>,
    pub(crate) l1: Vec<u64>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bitmaps: StoredBitmaps,
    pub(crate) shown: Shown,
    pub(crate) cache: SliceCache,
    pub(crate) cleaner: Cleaner,
    pub(crate) metadata: Arc<MetadataSet>,
    /// Of an image that is written.
    pub(crate) refcounts: Option<Refcounts>,
    /// Memory for refcounts in bytes.
    pub(crate) refcount_bytes: u64,
    pub(crate) options: LiveOptions,
    #[cfg(feature = "test-rules")]
    pub(crate) omitted: Option<Rule>,
    pub(crate) file: Child,
    pub(crate) data_file: Option<Child>,
    pub(crate) encryption: Option<Encryption>,
    /// Most bytes of decompressed clusters in memory.
    pub(crate) inflated_bytes: u64,
    pub(crate) events: EventSink,
}

impl Image {
    /// The image of a header that has been [checked](Header::check).
    pub(crate) fn new(parts: Parts, backing: ChildSlot) -> io::Result<Image> {
        let geometry = parts.header.geometry()?;
        let rules = EntryRules {
            geometry,
            is_v2: parts.header.version == 2,
            has_data_file: parts.data_file.is_some(),
        };
        let header = parts.header;
        let image = Image {
            me: OnceLock::new(),
            geometry,
            rules,
            compression: header.compression()?,
            disk_bytes: parts.shown.disk_bytes.into(),
            l1: L1::new(&parts.l1, parts.shown.l1_entries.into()),
            shown: parts.shown.snapshot,
            snapshots: Mutex::new(parts.snapshots),
            whole_turn: WholeTurn::default(),
            bitmaps: parts.bitmaps,
            header: HeaderCell::new(*header, parts.cluster),
            state: Mutex::new(State::new(parts.cache.owed(), parts.refcounts)),
            cache: parts.cache,
            cleaner: parts.cleaner,
            epochs: Epochs::new(),
            metadata: parts.metadata,
            block_turn: CoMutex::new(()),
            block_loads: BlockLoads::default(),
            rewrites: Rewrites::default(),
            survey: Survey::default(),
            holes: Holes::default(),
            refcount_bytes: parts.refcount_bytes.into(),
            options: parts.options,
            #[cfg(feature = "test-rules")]
            omitted: parts.omitted,
            end: parts.file.length().into(),
            has_grown: AtomicBool::new(false),
            durable_end: AtomicU64::new(0),
            file: parts.file,
            data_file: parts.data_file,
            backing,
            encryption: parts.encryption,
            inflated: InflatedClusters::new(parts.inflated_bytes, geometry.cluster_bytes()),
            workers: PoolShare::new(),
            events: parts.events,
            is_told: AtomicBool::new(false),
            hurdles: AtomicU8::new(0),
            is_downgraded: AtomicBool::new(false),
        };
        image.look_at_bitmaps();
        Ok(image)
    }

    /// The lock of what changes of mappings need. Not to be held across a suspension.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of the disk in bytes.
    #[inline]
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// The disk has another length.
    pub(crate) fn set_disk_bytes(&self, bytes: u64) {
        self.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Fails if the image is not used any more.
    #[inline]
    pub(crate) fn check_alive(&self) -> io::Result<()> {
        match self.hurdles().contains(Hurdle::DEAD) {
            false => Ok(()),
            true => Err(io::Error::from_raw_os_error(libc::ENOMEDIUM)),
        }
    }

    /// What keeps writes from the disk.
    #[inline]
    pub(crate) fn hurdles(&self) -> Hurdle {
        Hurdle::from_bits_retain(self.hurdles.load(Ordering::Relaxed))
    }

    /// Returns whether it was there.
    pub(crate) fn raise_hurdle(&self, hurdle: Hurdle) -> bool {
        let before = self.hurdles.fetch_or(hurdle.bits(), Ordering::SeqCst);
        Hurdle::from_bits_retain(before).contains(hurdle)
    }

    pub(crate) fn lower_hurdle(&self, hurdle: Hurdle) {
        self.hurdles.fetch_and(!hurdle.bits(), Ordering::SeqCst);
    }

    /// Has the image be used again, or not any more, after a repair.
    pub(crate) fn set_alive(&self, is_alive: bool) {
        self.is_told.store(false, Ordering::SeqCst);
        match is_alive {
            true => self.lower_hurdle(Hurdle::DEAD),
            false => drop(self.raise_hurdle(Hurdle::DEAD)),
        }
    }

    /// How the compressed clusters are compressed that there are.
    pub(crate) fn compression(&self) -> CompressionType {
        // Version 2 knows one way, and an image that has become so had no clusters of another one.
        match self.compression {
            CompressionType::Zstd if self.header().version == 2 => CompressionType::Deflate,
            compression => compression,
        }
    }

    /// How clusters are to be compressed; `None`: they are not, as it is about to be another way.
    pub(crate) fn new_compression(&self) -> Option<CompressionType> {
        let compression = self.compression();
        let changes = compression == CompressionType::Zstd && self.is_v2();
        (!changes).then_some(compression)
    }

    /// The child that has data, and its name.
    pub(crate) fn data(&self) -> (&Child, &'static str) {
        match &self.data_file {
            Some(data_file) => (data_file, "data-file"),
            None => (&self.file, "file"),
        }
    }

    /// Where the file ends, at least behind `offset` if it does so. It may have become longer.
    #[inline]
    pub(crate) fn end_behind(&self, offset: u64) -> u64 {
        let end = self.end.load(Ordering::Relaxed);
        if offset < end {
            return end;
        }
        self.look_at_end()
    }

    /// Looks where the file ends.
    pub(crate) fn look_at_end(&self) -> u64 {
        let end = self.file.length();
        self.end.store(end, Ordering::Relaxed);
        end
    }

    /// Whether the file was made longer.
    pub(crate) fn has_grown(&self) -> bool {
        self.has_grown.load(Ordering::Relaxed)
    }

    /// Whether the file was made longer, and has not been synced since: an entry that leads behind the durable end
    /// may not be in the file before that is.
    pub(crate) fn has_growth_to_sync(&self) -> bool {
        self.file.length() > self.durable_end.load(Ordering::Relaxed)
    }

    /// Makes all that was written to the file durable, and its length.
    pub(crate) fn co_flush_file(&self, co: &Co<'_>) -> io::Result<()> {
        // What comes to it meanwhile is not covered.
        let end = self.file.length();
        self.file.co_flush(co)?;
        self.durable_end.store(end, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the file end at `end` bytes. No other request is in flight.
    pub(crate) fn co_shorten_file(&self, co: &Co<'_>, end: u64) -> io::Result<()> {
        self.durable_end.fetch_min(end, Ordering::Relaxed);
        self.file.co_truncate(co, end, Truncate::default())
    }

    /// Makes the file at least `end` bytes long, and somewhat longer.
    pub(crate) fn co_grow_file(&self, co: &Co<'_>, end: u64) -> io::Result<()> {
        if end <= self.file.length() {
            return Ok(());
        }
        self.has_grown.store(true, Ordering::Relaxed);
        let how = Truncate { preallocation: Preallocation::Off, ..Truncate::default() };
        let ahead = end.checked_next_multiple_of(GROWTH_BYTES).unwrap_or(end);
        // What cannot become so long may become as long as is needed.
        if self.file.co_grow(co, ahead, how).is_err() {
            self.file.co_grow(co, end, how)?;
        }
        self.look_at_end();
        Ok(())
    }

    /// Makes the file at least `end` bytes long, and no longer, its new space as `how` says.
    pub(crate) fn co_grow_exactly(&self, co: &Co<'_>, end: u64, how: Truncate) -> io::Result<()> {
        self.has_grown.store(true, Ordering::Relaxed);
        self.file.co_grow(co, end, how)?;
        self.look_at_end();
        Ok(())
    }

    /// Tells of a corruption, and returns the error for the request that met it. An image that is written is
    /// not used any more then, and gets the corrupt bit.
    #[cold]
    pub(crate) fn co_corrupt(&self, co: &Co<'_>, corruption: &Corruption) -> io::Error {
        let is_fatal = self.is_written();
        let is_told = match is_fatal {
            true => self.raise_hurdle(Hurdle::DEAD),
            false => self.is_told.swap(true, Ordering::SeqCst),
        };
        if !is_told {
            tracing::warn!("qcow2 image is corrupt: {corruption}");
            self.events.tell(&ImageCorrupted::new(corruption, is_fatal));
            if is_fatal && self.header().version == 2 {
                return io::Error::from_raw_os_error(libc::EIO);
            }
            // A repair that runs decides by itself.
            let mark = |header: &mut Header| {
                if !self.rewrites.is_active() {
                    header.incompatible.insert(Incompatible::CORRUPT);
                }
            };
            if is_fatal && let Err(error) = self.co_update_header(co, mark) {
                tracing::error!(%error, "a corrupt image cannot be marked as such");
            }
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Memory for refcounts in bytes.
    pub(crate) fn refcount_bytes(&self) -> u64 {
        self.refcount_bytes.load(Ordering::Relaxed)
    }

    /// Has memory for `l2_bytes` bytes of tables and `refcount_bytes` bytes of refcounts; returns what it had. The
    /// node is drained, and nothing is to be written.
    pub(crate) fn swap_cache_sizes(&self, (l2_bytes, refcount_bytes): (u64, u64)) -> (u64, u64) {
        let mut state = self.lock();
        let before = self.cache.bytes();
        self.cache.resize(&mut state.owed, l2_bytes);
        if let Some(refcounts) = &mut state.refcounts {
            refcounts.set_cache_bytes(refcount_bytes);
        }
        (before, self.refcount_bytes.swap(refcount_bytes, Ordering::Relaxed))
    }

    /// Whether the image is written.
    pub(crate) fn is_written(&self) -> bool {
        self.lock().refcounts.is_some()
    }

    /// Whether a step is left out.
    #[cfg(feature = "test-rules")]
    pub(crate) fn rules_omit(&self, rule: Rule) -> bool {
        self.omitted == Some(rule)
    }

    /// Whether a step is left out: none is.
    #[cfg(not(feature = "test-rules"))]
    #[inline(always)]
    #[allow(clippy::unused_self)]
    pub(crate) fn rules_omit(&self, _: Rule) -> bool {
        false
    }
}
