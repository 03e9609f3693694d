//! The pool of the process: batches of idle coroutines that any thread may take.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::BATCH;
use crate::coroutine::control::Control;
use crate::stack::{self, GuardKind};

/// Says how many idle coroutines the pool of the process may hold; 8192 unless told otherwise.
///
/// Set it to the number of requests that are in flight at the busiest time: what comes back beyond
/// it is freed, and made anew next time. Where each stack costs mappings ([`GuardKind::Mapping`])
/// the limit is also kept below what the kernel allows. A lower limit holds for what comes back
/// from now on; see [`trim_pool`](crate::trim_pool).
pub fn set_pool_limit(coroutines: usize) {
    lock().limit = coroutines;
}

/// Idle coroutines, in a list of their own.
pub(super) struct Batch {
    head: NonNull<Control>,
    len: u32,
}

// SAFETY: an idle block runs nothing, and only the batch points to it. `give` has taken the frames
// off its stack, which could hold what belongs to a thread. So it may go on to another thread, and
// the lock of the pool orders what the two do.
unsafe impl Send for Batch {}

impl Batch {
    /// The blocks of a list, which is not empty.
    pub(super) fn new(head: *const Control, len: u32) -> Batch {
        Batch { head: NonNull::new(head.cast_mut()).expect("a batch is not empty"), len }
    }

    pub(super) fn full(head: *const Control) -> Batch {
        Batch::new(head, BATCH)
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn into_list(self) -> *const Control {
        self.head.as_ptr()
    }

    /// The first block; the others go back to the pool.
    pub(super) fn into_one(self) -> NonNull<Control> {
        // SAFETY: blocks in a batch are valid.
        let rest = unsafe { self.head.as_ref() }.next();
        if !rest.is_null() {
            give(Batch::new(rest, self.len - 1));
        }
        self.head
    }

    /// Frees the blocks, and returns how many there were.
    pub(super) fn free(self) -> usize {
        // SAFETY: the batch owns its blocks, which are idle.
        self.for_each(|block| unsafe { Control::free(block) });
        self.len as usize
    }

    fn is_untrimmed(&self) -> bool {
        // SAFETY: blocks in a batch are valid.
        unsafe { self.head.as_ref() }.is_untrimmed()
    }

    fn trim(&self) {
        super::trim_list(self.head.as_ptr());
    }

    fn for_each(&self, act: impl Fn(NonNull<Control>)) {
        let mut control = self.head.as_ptr().cast_const();
        while let Some(block) = NonNull::new(control.cast_mut()) {
            // SAFETY: blocks in a batch are valid; `act` may end that.
            control = unsafe { block.as_ref() }.next();
            act(block);
        }
    }
}

/// Adds a batch; frees it if there is no room.
pub(super) fn give(batch: Batch) {
    // SAFETY: the batch owns its blocks, which are idle.
    batch.for_each(|block| unsafe { Control::reset(block) });
    let surplus = {
        let mut shared = lock();
        let newest = shared.batches.len();
        UNTRIMMED.store(true, Ordering::Relaxed);
        shared.admit(batch, newest)
    };
    // Not under the lock: it is a system call for each.
    surplus.map(Batch::free);
}

/// Whether a batch has come in since [`trim`].
#[inline]
pub(super) fn has_untrimmed() -> bool {
    UNTRIMMED.load(Ordering::Relaxed)
}

/// Gives back the memory of all batches but for the tops of stacks.
pub(super) fn trim() {
    {
        // Under the lock: what comes in afterwards sets it again.
        let _shared = lock();
        if !UNTRIMMED.swap(false, Ordering::Relaxed) {
            return;
        }
    }
    while let Some(batch) = take_if(Batch::is_untrimmed) {
        batch.trim();
        let surplus = lock().admit(batch, 0);
        surplus.map(Batch::free);
    }
}

fn take_if(wanted: impl Fn(&Batch) -> bool) -> Option<Batch> {
    let mut shared = lock();
    let index = shared.batches.iter().position(wanted)?;
    let batch = shared.batches.remove(index);
    shared.idle -= batch.len as usize;
    Some(batch)
}

/// Takes a batch.
pub(super) fn take() -> Option<Batch> {
    let mut shared = lock();
    let batch = shared.batches.pop()?;
    shared.idle -= batch.len as usize;
    Some(batch)
}

/// Takes all batches.
pub(super) fn take_all() -> Vec<Batch> {
    let mut shared = lock();
    shared.idle = 0;
    std::mem::take(&mut shared.batches)
}

pub(super) fn idle() -> usize {
    lock().idle
}

pub(super) fn limit() -> usize {
    lock().limit()
}

struct Shared {
    batches: Vec<Batch>,
    /// Blocks in all batches together.
    idle: usize,
    limit: usize,
}

/// A batch has come in that has not been trimmed.
static UNTRIMMED: AtomicBool = AtomicBool::new(false);

static SHARED: Mutex<Shared> = Mutex::new(Shared { batches: Vec::new(), idle: 0, limit: 8192 });

impl Shared {
    /// Takes a batch in at a place, or returns it if there is no room. The last one is taken first.
    fn admit(&mut self, batch: Batch, place: usize) -> Option<Batch> {
        let idle = self.idle + batch.len as usize;
        if idle > self.limit() {
            return Some(batch);
        }
        self.idle = idle;
        self.batches.insert(place, batch);
        None
    }

    fn limit(&self) -> usize {
        match stack::guard_kind() {
            Some(GuardKind::Mapping) => self.limit.min(limit_by_mappings()),
            _ => self.limit,
        }
    }
}

fn lock() -> MutexGuard<'static, Shared> {
    // No panic can leave it half changed.
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many idle stacks leave the kernel enough mappings for everything else, at two for a stack.
fn limit_by_mappings() -> usize {
    /// For libraries, heaps, files, and the stacks that are in use.
    const RESERVED: usize = 5000;
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse::<usize>().unwrap_or(65530).saturating_sub(RESERVED) / 2
    })
}
