//! The device's view of one split virtqueue: which heads are available, which are used, and which side
//! wants to be told about it.
//!
//! ```text
//!   driver writes                        device writes
//!   avail.idx  ---> available()          used.idx    <--- publish_used()
//!   avail.ring ---> next_head()          used.ring   <--- push_used()
//!   used_event ---> needs_interrupt()    avail_event <--- enable_notification()
//! ```
//!
//! `virtio_queue::Queue` checks the layout when a queue starts. It does not walk the rings here:
//! it looks guest addresses up again for every field, which was measured as 80 ns for a request of
//! three descriptors. [`RingSlices`] looks them up once a batch, and the same work takes 7 ns.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, VolatileMemory, VolatileMemoryError, VolatileSlice,
};

use crate::chain::ChainError;
use crate::dirty::{QueueLog, RingLog};
use crate::inflight::{InflightError, InflightLog};
use crate::memory::GuestMap;

/// Bytes before the entries of the available and of the used ring: flags and index.
const RING_HEADER_BYTES: usize = 4;
const AVAIL_ENTRY_BYTES: usize = 2;
const USED_ENTRY_BYTES: usize = 8;
pub(crate) const DESCRIPTOR_BYTES: usize = 16;
/// Where `idx` is, in both rings; `flags` is at 0.
const IDX_OFFSET: usize = 2;

/// Where a driver has put a queue. Of a packed one the descriptor table is the descriptor ring, and instead of
/// the other rings there are the event suppression structures, of the driver and of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtqueueLayout {
    /// Entries: a power of two, at most [`VirtioBlkConfig::queue_size_max`](crate::VirtioBlkConfig).
    pub size: u16,
    /// Guest address of the descriptor table, a multiple of 16.
    pub desc_table: u64,
    /// Guest address of the available ring, a multiple of 2; of a packed queue, of 4.
    pub avail_ring: u64,
    /// Guest address of the used ring, a multiple of 4.
    pub used_ring: u64,
    /// Index of the first entry the device takes from the available ring: 0, or what
    /// [`VirtioBlk::co_stop_queue`](crate::VirtioBlk::co_stop_queue) returned. Where it goes on in the
    /// used ring is read there. A packed queue has the driver's wrap counter in bit 15, and begins at
    /// [`PACKED_START`](crate::PACKED_START), or at 0 if no descriptor was used yet.
    pub next_index: u16,
}

/// Why a queue cannot go on: the driver broke a rule that leaves no request to answer. The device
/// needs a reset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VirtqueueError {
    /// The queue cannot be used as laid out.
    #[error("invalid queue layout: {0}")]
    Layout(&'static str),
    /// More is available than fits in the queue.
    #[error(
        "available index jumped to {avail_idx}, {ahead} entries ahead of {next_avail}, in a queue of {size}"
    )]
    AvailIndexJump {
        /// The index the driver wrote.
        avail_idx: u16,
        /// The index the device would have taken next.
        next_avail: u16,
        /// The distance between the two.
        ahead: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A chain has no end, or its descriptors cannot be read.
    #[error("descriptor chain {head}: {source}")]
    Chain {
        /// The index of the chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        source: ChainError,
    },
    /// There is nowhere to put the status.
    #[error("descriptor chain {head} has no status byte that the device can write")]
    NoStatus {
        /// The index of the chain's first descriptor.
        head: u16,
    },
    /// More heads were offered than can be without one of them being offered twice.
    #[error("more than {size} requests in flight in a queue of {size}")]
    TooManyInFlight {
        /// Entries of the queue.
        size: u16,
    },
    /// A packed chain goes on where the driver has made nothing available in this round.
    #[error("descriptor chain {head} goes on at {index}, which is not available")]
    NotAvailable {
        /// The index of the chain's first descriptor.
        head: u16,
        /// The index of the descriptor.
        index: u16,
    },
    /// There is no such buffer id.
    #[error("buffer id {id} in a queue of {size}")]
    BufferId {
        /// The id.
        id: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// A buffer id was offered that is not answered yet.
    #[error("buffer id {id} is in flight already")]
    BufferInFlight {
        /// The id.
        id: u16,
    },
    /// What is known of requests in flight does not fit the queue.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The rings are not where they were when the queue started.
    #[error("cannot access the rings: {0}")]
    Access(String),
}

impl From<VolatileMemoryError> for VirtqueueError {
    fn from(error: VolatileMemoryError) -> Self {
        VirtqueueError::Access(error.to_string())
    }
}

impl From<GuestMemoryError> for VirtqueueError {
    fn from(error: GuestMemoryError) -> Self {
        VirtqueueError::Access(error.to_string())
    }
}

/// Where a split queue was paused.
#[derive(Clone, Debug)]
pub(crate) struct PausedSplit {
    pub(crate) next_avail: u16,
    /// Taken and not answered, in the order in which they are to be served.
    pub(crate) heads: Vec<u16>,
}

/// The three parts of a queue in memory, looked up once for many accesses. Of a packed one, the last two are
/// the event suppression structures of the driver and of the device.
pub(crate) struct RingSlices<'m> {
    pub(crate) desc: VolatileSlice<'m>,
    pub(crate) avail: VolatileSlice<'m>,
    pub(crate) used: VolatileSlice<'m>,
}

/// Indices and negotiated behaviour of one queue.
pub(crate) struct Virtqueue {
    layout: VirtqueueLayout,
    event_idx: bool,
    pub(crate) next_avail: u16,
    /// The next used entry to write.
    next_used: u16,
    /// The used index that the driver sees.
    published_used: u16,
    /// The used index as of the last decision whether to interrupt.
    signalled_used: u16,
    pub(crate) log: Option<InflightLog>,
    dirty: Option<RingLog>,
    /// Heads that a predecessor has taken and not answered, last one first.
    pub(crate) resubmit: Vec<u16>,
}

impl Virtqueue {
    /// Checks `layout` against `mem`. What was taken earlier and not answered comes first; with a log,
    /// the available index too is the one that log and used ring tell.
    pub(crate) fn new(
        mem: &GuestMap,
        layout: VirtqueueLayout,
        size_max: u16,
        event_idx: bool,
        log: Option<InflightLog>,
        paused: Option<PausedSplit>,
    ) -> Result<Virtqueue, VirtqueueError> {
        check_layout(mem, &layout, size_max)?;
        let next = layout.next_index;
        let mut queue = Virtqueue {
            layout,
            event_idx,
            next_avail: next,
            next_used: next,
            published_used: next,
            signalled_used: next,
            log,
            dirty: None,
            resubmit: Vec::new(),
        };
        // Each part in one piece of memory, and aligned for atomic access.
        let rings = queue.map(mem)?;
        let used_idx = u16::from_le(rings.used.load(IDX_OFFSET, Ordering::Acquire)?);
        // What the driver sees there is what it goes by. It differs from the available index if a
        // device before this one has left requests unanswered.
        (queue.next_used, queue.published_used, queue.signalled_used) =
            (used_idx, used_idx, used_idx);
        queue.recover(used_idx, paused)?;
        queue.available(&rings)?;
        Ok(queue)
    }

    /// Takes up what was in flight.
    fn recover(
        &mut self,
        used_idx: u16,
        paused: Option<PausedSplit>,
    ) -> Result<(), VirtqueueError> {
        let mut heads = match &self.log {
            Some(log) => log.recover(used_idx)?,
            None => Vec::new(),
        };
        if let Some(paused) = paused {
            self.next_avail = paused.next_avail;
            for head in paused.heads {
                if !heads.contains(&head) {
                    self.log.iter().for_each(|log| log.taken(head));
                    heads.push(head);
                }
            }
        } else if self.log.is_some() {
            // What was taken is either answered or in flight. At most `size` heads, so it fits.
            self.next_avail = used_idx.wrapping_add(heads.len() as u16);
        }
        heads.reverse();
        self.resubmit = heads;
        Ok(())
    }

    pub(crate) fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    pub(crate) fn size(&self) -> u16 {
        self.layout.size
    }

    /// Looks the rings up.
    pub(crate) fn map<'m>(&self, mem: &'m GuestMap) -> Result<RingSlices<'m>, VirtqueueError> {
        let size = usize::from(self.layout.size);
        let desc = GuestAddress(self.layout.desc_table);
        Ok(RingSlices {
            desc: mem.slice(desc, DESCRIPTOR_BYTES * size)?,
            avail: self.map_avail(mem)?,
            used: self.map_used(mem)?,
        })
    }

    pub(crate) fn map_avail<'m>(
        &self,
        mem: &'m GuestMap,
    ) -> Result<VolatileSlice<'m>, VirtqueueError> {
        // The entries are followed by `used_event`.
        let bytes = self.used_event_offset() + 2;
        Ok(mem.slice(GuestAddress(self.layout.avail_ring), bytes)?)
    }

    #[inline]
    pub(crate) fn map_used<'m>(
        &self,
        mem: &'m GuestMap,
    ) -> Result<VolatileSlice<'m>, VirtqueueError> {
        // The entries are followed by `avail_event`.
        let bytes = self.avail_event_offset() + 2;
        Ok(mem.slice(GuestAddress(self.layout.used_ring), bytes)?)
    }

    /// How many heads wait to be taken. What their descriptors say may be read after this.
    pub(crate) fn available(&self, rings: &RingSlices<'_>) -> Result<u16, VirtqueueError> {
        let avail_idx = u16::from_le(rings.avail.load(IDX_OFFSET, Ordering::Acquire)?);
        let ahead = avail_idx.wrapping_sub(self.next_avail);
        let (next_avail, size) = (self.next_avail, self.layout.size);
        if ahead > size {
            return Err(VirtqueueError::AvailIndexJump { avail_idx, next_avail, ahead, size });
        }
        Ok(ahead.saturating_add(self.resubmit.len() as u16))
    }

    /// Takes the next head; [`available`](Self::available) has said that there is one.
    pub(crate) fn next_head(&mut self, rings: &RingSlices<'_>) -> Result<u16, VirtqueueError> {
        if let Some(head) = self.resubmit.pop() {
            return Ok(head);
        }
        let head = self.head_at(&rings.avail, self.next_avail)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(log) = &self.log {
            log.taken(head);
        }
        Ok(head)
    }

    /// The head that the driver has made available at `index`.
    #[inline]
    pub(crate) fn head_at(
        &self,
        avail: &VolatileSlice<'_>,
        index: u16,
    ) -> Result<u16, VirtqueueError> {
        let entry = usize::from(index & (self.layout.size - 1));
        let offset = RING_HEADER_BYTES + AVAIL_ENTRY_BYTES * entry;
        Ok(u16::from_le(avail.load(offset, Ordering::Relaxed)?))
    }

    /// Writes a used entry. The driver sees it after [`publish_used`](Self::publish_used).
    #[inline]
    pub(crate) fn push_used(
        &mut self,
        used: &VolatileSlice<'_>,
        head: u16,
        written_bytes: u32,
    ) -> Result<(), VirtqueueError> {
        let entry = usize::from(self.next_used & (self.layout.size - 1));
        let offset = RING_HEADER_BYTES + USED_ENTRY_BYTES * entry;
        let words = used.get_array_ref(offset, 2)?;
        words.store(0, u32::from(head).to_le());
        words.store(1, written_bytes.to_le());
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(log) = &self.log {
            log.answered(head)?;
        }
        Ok(())
    }

    /// From now on what is written of the rings is marked in `log`, or nowhere.
    pub(crate) fn set_dirty_log(&mut self, log: Option<&QueueLog>) {
        let bytes = self.avail_event_offset() + 2;
        self.dirty = log.map(|log| RingLog::new(log, bytes));
    }

    /// Marks the entries that are not published yet.
    #[cold]
    fn mark_entries(&self) {
        let (size, count) = (usize::from(self.layout.size), usize::from(self.unpublished()));
        let first = usize::from(self.published_used) & (size - 1);
        let before_end = count.min(size - first);
        for (entry, count) in [(first, before_end), (0, count - before_end)] {
            let offset = RING_HEADER_BYTES + USED_ENTRY_BYTES * entry;
            self.dirty.iter().for_each(|it| it.wrote(offset, USED_ENTRY_BYTES * count));
        }
    }

    /// Entries pushed that the driver does not see yet.
    #[inline]
    pub(crate) fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published_used)
    }

    /// Shows the driver all entries pushed so far.
    pub(crate) fn publish_used(&mut self, used: &VolatileSlice<'_>) -> Result<(), VirtqueueError> {
        if self.published_used != self.next_used {
            if self.dirty.is_some() {
                self.mark_entries();
            }
            // Release: entries and data before the index.
            used.store(self.next_used.to_le(), IDX_OFFSET, Ordering::Release)?;
            self.published_used = self.next_used;
            if let Some(dirty) = &self.dirty {
                dirty.published(IDX_OFFSET, 2);
            }
            if let Some(log) = &self.log {
                log.published(self.next_used)?;
            }
        }
        Ok(())
    }

    /// Whether entries were published since this was last asked, and the driver wants to know.
    pub(crate) fn needs_interrupt(&mut self, mem: &GuestMap) -> Result<bool, VirtqueueError> {
        let (old, new) = (self.signalled_used, self.published_used);
        if old == new {
            return Ok(false);
        }
        self.signalled_used = new;
        let avail = self.map_avail(mem)?;
        // The used index is visible before we read what the driver wants: it writes its wish and
        // then looks at the index.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = u16::from_le(avail.load(self.used_event_offset(), Ordering::Relaxed)?);
            return Ok(is_event_passed(event, new, old));
        }
        let flags = u16::from_le(avail.load(0, Ordering::Relaxed)?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to kick.
    pub(crate) fn disable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<(), VirtqueueError> {
        // With EVENT_IDX, the index that we last asked a kick for is behind: none comes.
        if !self.event_idx {
            let flags = VRING_USED_F_NO_NOTIFY as u16;
            rings.used.store(flags.to_le(), 0, Ordering::Relaxed)?;
            self.dirty.iter().for_each(|it| it.wrote(0, 2));
        }
        Ok(())
    }

    /// Asks the driver to kick for the next head. Returns true if one is there already, for which
    /// no kick may come.
    pub(crate) fn enable_notification(
        &self,
        rings: &RingSlices<'_>,
    ) -> Result<bool, VirtqueueError> {
        let (value, offset) =
            if self.event_idx { (self.next_avail, self.avail_event_offset()) } else { (0, 0) };
        rings.used.store(value.to_le(), offset, Ordering::Relaxed)?;
        self.dirty.iter().for_each(|it| it.wrote(offset, 2));
        // Our wish is visible before we look: the driver writes the index and then reads our wish.
        fence(Ordering::SeqCst);
        Ok(self.available(rings)? != 0)
    }

    fn used_event_offset(&self) -> usize {
        RING_HEADER_BYTES + AVAIL_ENTRY_BYTES * usize::from(self.layout.size)
    }

    fn avail_event_offset(&self) -> usize {
        RING_HEADER_BYTES + USED_ENTRY_BYTES * usize::from(self.layout.size)
    }
}

/// Whether an index that went from `old` to `new` went past `event`, all modulo 2^16.
pub(crate) fn is_event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn check_layout(
    mem: &GuestMap,
    layout: &VirtqueueLayout,
    size_max: u16,
) -> Result<(), VirtqueueError> {
    let mut queue = Queue::new(size_max)
        .map_err(|_| VirtqueueError::Layout("the device's maximum size is no power of two"))?;
    queue
        .try_set_size(layout.size)
        .map_err(|_| VirtqueueError::Layout("the size is no power of two, or above the maximum"))?;
    queue
        .try_set_desc_table_address(GuestAddress(layout.desc_table))
        .map_err(|_| VirtqueueError::Layout("the descriptor table is not aligned to 16 bytes"))?;
    queue
        .try_set_avail_ring_address(GuestAddress(layout.avail_ring))
        .map_err(|_| VirtqueueError::Layout("the available ring is not aligned to 2 bytes"))?;
    queue
        .try_set_used_ring_address(GuestAddress(layout.used_ring))
        .map_err(|_| VirtqueueError::Layout("the used ring is not aligned to 4 bytes"))?;
    queue.set_ready(true);
    if !queue.is_valid(mem.memory()) {
        return Err(VirtqueueError::Layout("a part of the queue is outside guest memory"));
    }
    Ok(())
}
