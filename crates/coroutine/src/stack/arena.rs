//! Carves stacks from few large mappings.
//!
//! A mapping of its own for each stack would end at the kernel's limit on mappings, and cost a call
//! to map and one to unmap. Here a chunk of address space holds many stacks side by side:
//!
//! ```text
//! chunk:  | guard | stack 0        | guard | stack 1        | ...   | never used yet       |
//!           ^ lowest page of each                                     ^ fresh: no access
//! ```
//!
//! Address space costs nothing until it is touched. A stack that is freed keeps its place and gives
//! its memory back; places are used again before fresh ones are. The size of a place is decided
//! when the first one is carved, and never changes: places that were carved stay on the free list.
//!
//! In a process that locks its future memory (`mlockall`), a chunk that could be written to would
//! have memory behind all of it. So a chunk begins without access, is unlocked, and becomes
//! writable a few places at a time, for each time is a system call; a place is then locked page by
//! page as it is touched.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::config::{StackConfig, StackConfigError};
use super::guard::{self, GuardKind};
use super::{Stack, page_bytes};

/// Address space of the first chunk. Each further one is twice as large, up to the maximum.
const FIRST_CHUNK_BYTES: usize = 256 << 20;
const MAX_CHUNK_BYTES: usize = 32 << 30;
/// How much becomes writable at once, at most: strict accounting of memory counts it, and `mlockall`
/// fills it.
const MAX_STEP_BYTES: usize = 16 << 20;

/// Stacks of one size.
pub(super) struct Arena {
    state: Mutex<State>,
}

struct State {
    /// `None` until it is decided, at the latest by the first stack.
    config: Option<StackConfig>,
    /// Found out with the first stack.
    guard: Option<GuardKind>,
    /// A place has been carved, so the size stands.
    carved: bool,
    /// The newest chunk came locked: see the head of this file.
    locked: bool,
    /// Stacks that were used and are not now.
    free: Vec<Place>,
    /// The part of the newest chunk that has never been used.
    fresh: *mut u8,
    fresh_bytes: usize,
    /// How much of that, from its beginning, can be written to.
    writable_bytes: usize,
    next_chunk_bytes: usize,
    allocated: usize,
}

/// Memory of an unused stack.
struct Place {
    bottom: NonNull<u8>,
    /// Whether its lowest page faults.
    guarded: bool,
}

// SAFETY: free memory belongs to no thread; the same goes for `fresh`.
unsafe impl Send for State {}

impl Arena {
    pub(super) const fn new() -> Arena {
        Arena {
            state: Mutex::new(State {
                config: None,
                guard: None,
                carved: false,
                locked: false,
                free: Vec::new(),
                fresh: ptr::null_mut(),
                fresh_bytes: 0,
                writable_bytes: 0,
                next_chunk_bytes: FIRST_CHUNK_BYTES,
                allocated: 0,
            }),
        }
    }

    /// Decides how stacks are made, if none has been made yet. If a first one failed for its guard,
    /// that may still be chosen, and the size no more.
    pub(super) fn configure(&self, config: StackConfig) -> Result<(), StackConfigError> {
        let mut state = self.lock();
        let size = |config: &StackConfig| config.size_bytes;
        if state.guard.is_some()
            || state.carved && state.config.as_ref().map(size) != Some(size(&config))
        {
            return Err(StackConfigError::StacksExist);
        }
        state.config = Some(config);
        Ok(())
    }

    /// A stack with a guard page.
    pub(super) fn allocate(&self) -> io::Result<Stack> {
        let mut state = self.lock();
        let length_bytes = state.config.get_or_insert_default().size_bytes + page_bytes();
        let place = match state.free.pop() {
            Some(place) => place,
            None => state.carve(length_bytes)?,
        };
        if !place.guarded {
            if let Err(error) = state.guard(place.bottom, length_bytes) {
                state.free.push(place);
                return Err(error);
            }
            if state.locked {
                lock_on_fault(place.bottom, length_bytes);
            }
        }
        state.allocated += 1;
        Ok(Stack { bottom: place.bottom, length_bytes })
    }

    /// Takes a stack back.
    ///
    /// # Safety
    /// It came from this arena, and nothing runs on it or points to it any more.
    pub(super) unsafe fn free(&self, stack: Stack) {
        let mut state = self.lock();
        state.allocated -= 1;
        let page = page_bytes();
        // SAFETY: the contents of the stack are no longer needed. Both calls stay inside of it.
        let guarded = unsafe {
            give_back(stack.bottom.add(page), stack.length_bytes - page);
            !state.guard.is_some_and(|kind| kind.remove_if_costly(stack.bottom))
        };
        state.free.push(Place { bottom: stack.bottom, guarded });
    }

    pub(super) fn allocated(&self) -> usize {
        self.lock().allocated
    }

    pub(super) fn guard_kind(&self) -> Option<GuardKind> {
        self.lock().guard
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next place that has never been used, in a new chunk if need be.
    fn carve(&mut self, length_bytes: usize) -> io::Result<Place> {
        if self.fresh_bytes < length_bytes {
            self.map_chunk(length_bytes)?;
        }
        if self.writable_bytes < length_bytes {
            self.make_writable(length_bytes)?;
        }
        let bottom = NonNull::new(self.fresh).expect("a chunk at address 0");
        self.carved = true;
        // SAFETY: the chunk has at least that many bytes left.
        self.fresh = unsafe { self.fresh.add(length_bytes) };
        self.fresh_bytes -= length_bytes;
        self.writable_bytes -= length_bytes;
        Ok(Place { bottom, guarded: false })
    }

    /// Makes fresh places writable: as many as are in use already, up to a limit, so that few stacks
    /// ask for little. If there is no memory for that many, one.
    fn make_writable(&mut self, length_bytes: usize) -> io::Result<()> {
        let places =
            (MAX_STEP_BYTES.min(self.fresh_bytes) / length_bytes).clamp(1, self.allocated.max(1));
        let access = libc::PROT_READ | libc::PROT_WRITE;
        for bytes in [places * length_bytes, length_bytes] {
            // SAFETY: the chunk has that many bytes left, which are unused.
            if unsafe { libc::mprotect(self.fresh.cast(), bytes, access) } == 0 {
                self.writable_bytes = bytes;
                return Ok(());
            }
        }
        Err(io::Error::last_os_error())
    }

    /// Makes the lowest page of a place fault.
    fn guard(&mut self, page: NonNull<u8>, length_bytes: usize) -> io::Result<()> {
        let kind = self.guard.or(self.config.and_then(|config| config.guard));
        let install = || {
            // SAFETY: the page belongs to an unused place.
            unsafe {
                match kind {
                    Some(kind) => kind.install(page).map(|()| kind),
                    None => guard::install_cheapest(page),
                }
            }
        };
        let installed = install().or_else(|error| {
            // Memory that the process has locked since the chunk was mapped takes no marker.
            if !unlock(page, length_bytes) {
                return Err(error);
            }
            self.locked = true;
            // SAFETY: the place is unused.
            unsafe { give_back(page, length_bytes) };
            install()
        });
        self.guard = Some(installed?);
        Ok(())
    }

    /// Maps address space for as many stacks as the system allows.
    fn map_chunk(&mut self, length_bytes: usize) -> io::Result<()> {
        let mut bytes = self.next_chunk_bytes.max(length_bytes);
        loop {
            match map(bytes) {
                Ok(chunk) => {
                    self.locked = unlock(chunk, bytes);
                    (self.fresh, self.fresh_bytes) = (chunk.as_ptr(), bytes);
                    self.writable_bytes = 0;
                    self.next_chunk_bytes = (bytes * 2).min(MAX_CHUNK_BYTES);
                    return Ok(());
                }
                // A limit on address space or strict accounting: a smaller chunk may still fit.
                Err(_) if bytes / 2 >= length_bytes => bytes /= 2,
                Err(error) => return Err(error),
            }
        }
    }
}

fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let access = libc::PROT_NONE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
    // SAFETY: asks for new memory, so touches none that exists.
    let chunk = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
    if chunk == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // A huge page would make every stack cost two megabytes. Where there are none, this fails, and
    // need not succeed.
    // SAFETY: the mapping was made just now.
    unsafe { libc::madvise(chunk, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(NonNull::new(chunk.cast()).expect("mmap gave address 0"))
}

/// Unlocks memory that is not in use. Whether it was locked.
fn unlock(from: NonNull<u8>, bytes: usize) -> bool {
    let chunk = from.as_ptr().cast();
    // SAFETY: the memory is ours, and nothing in it is needed. The kernel refuses to discard what
    // is locked, and that is how one sees it.
    unsafe {
        let locked = libc::madvise(chunk, page_bytes(), libc::MADV_DONTNEED) != 0;
        if locked {
            libc::munlock(chunk, bytes);
        }
        locked
    }
}

/// Has the pages of a place locked as they are touched. If that is refused they are not.
fn lock_on_fault(bottom: NonNull<u8>, bytes: usize) {
    // SAFETY: the memory is ours, and stays what it is.
    unsafe { libc::mlock2(bottom.as_ptr().cast(), bytes, libc::MLOCK_ONFAULT) };
}

/// Gives memory back to the system, also if it is locked. Where that cannot be done it stays.
///
/// # Safety
/// The range is whole pages of a stack, and nothing in it is needed.
pub(super) unsafe fn give_back(from: NonNull<u8>, bytes: usize) {
    /// `MADV_DONTNEED_LOCKED`, since Linux 5.18.
    const DISCARD_LOCKED: libc::c_int = 24;
    let from = from.as_ptr().cast();
    // SAFETY: by the caller.
    unsafe {
        if libc::madvise(from, bytes, libc::MADV_DONTNEED) != 0 {
            libc::madvise(from, bytes, DISCARD_LOCKED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An arena of small stacks, guarded in that way.
    fn arena(guard: Option<GuardKind>) -> Arena {
        let arena = Arena::new();
        arena.configure(StackConfig { size_bytes: 64 << 10, guard }).unwrap();
        arena
    }

    /// Both ways to guard; the second one is what a kernel before 6.13 makes of `None`.
    fn arenas() -> [Arena; 2] {
        [arena(None), arena(Some(GuardKind::Mapping))]
    }

    /// How many mappings begin within these stacks, which lie in one chunk.
    fn mappings_within(stacks: &[Stack]) -> usize {
        let bottoms = || stacks.iter().map(|stack| stack.bottom.addr().get());
        let range = bottoms().min().unwrap()..=bottoms().max().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts =
            maps.lines().map(|line| usize::from_str_radix(&line[..line.find('-').unwrap()], 16));
        starts.filter(|start| range.contains(start.as_ref().unwrap())).count()
    }

    /// The bytes of a stack that have memory behind them.
    fn resident_pages(stack: &Stack) -> usize {
        let mut pages = vec![0_u8; stack.length_bytes / page_bytes()];
        let bottom = stack.bottom.as_ptr().cast();
        // SAFETY: asks about mapped memory, and there is room for one byte a page.
        let result = unsafe { libc::mincore(bottom, stack.length_bytes, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    /// Whether the kernel, too, would fault on a byte: it then refuses to write it to a pipe.
    fn faults(address: NonNull<u8>) -> bool {
        let mut ends = [0; 2];
        // SAFETY: two new descriptors, used here only; a pipe takes one byte without blocking, and
        // a bad address is an error to the kernel.
        unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let written = libc::write(ends[1], address.as_ptr().cast(), 1);
            ends.iter().for_each(|&end| assert_eq!(libc::close(end), 0));
            written != 1
        }
    }

    #[test]
    fn only_the_lowest_page_of_a_stack_faults() {
        for arena in arenas() {
            let stacks: Vec<_> = (0..3).map(|_| arena.allocate().unwrap()).collect();
            for stack in stacks {
                // SAFETY: addresses inside the stack.
                let frames = unsafe { stack.bottom.add(page_bytes()) };
                assert!(faults(stack.bottom));
                assert!(!faults(frames));
                // SAFETY: nothing runs on it.
                unsafe { arena.free(stack) };
            }
        }
    }

    #[test]
    fn a_freed_stack_gives_its_memory_back_and_is_used_again_guarded() {
        for arena in arenas() {
            let stack = arena.allocate().unwrap();
            let (bottom, frame) = (stack.bottom, stack.length_bytes / 2);
            // SAFETY: inside the stack, above the guard page.
            unsafe { bottom.add(frame).write(1) };
            assert!(resident_pages(&stack) > 0);
            // SAFETY: nothing runs on it.
            unsafe { arena.free(stack) };

            let stack = arena.allocate().unwrap();
            assert_eq!(stack.bottom, bottom);
            assert_eq!(resident_pages(&stack), 0);
            assert!(faults(bottom));
            // SAFETY: as above.
            unsafe { arena.free(stack) };
            assert_eq!(arena.allocated(), 0);
        }
    }

    #[test]
    fn the_fallback_gives_mappings_back_with_the_stacks() {
        let arena = arena(Some(GuardKind::Mapping));
        let mut stacks: Vec<_> = (0..1000).map(|_| arena.allocate().unwrap()).collect();
        // The lowest guard page may be one mapping with what is below, such as another chunk.
        assert!(mappings_within(&stacks) >= 1998);
        for stack in stacks.drain(1..999) {
            // SAFETY: nothing runs on it.
            unsafe { arena.free(stack) };
        }
        assert!(mappings_within(&stacks) <= 4);
        // SAFETY: as above.
        stacks.into_iter().for_each(|stack| unsafe { arena.free(stack) });
    }

    #[test]
    fn the_size_is_decided_by_the_first_place_that_is_carved() {
        let arena = arena(Some(GuardKind::Marker));
        // A place whose guard has failed, as the kernel may refuse a marker.
        let mut state = arena.lock();
        let length_bytes = (64 << 10) + page_bytes();
        let place = state.carve(length_bytes).unwrap();
        state.free.push(place);
        drop(state);
        let config = |size_bytes| StackConfig { size_bytes, guard: Some(GuardKind::Mapping) };
        assert_eq!(arena.configure(config(1 << 20)), Err(StackConfigError::StacksExist));
        arena.configure(config(64 << 10)).unwrap();
        let stacks = [arena.allocate().unwrap(), arena.allocate().unwrap()];
        let [a, b] = stacks.each_ref().map(|stack| stack.bottom.addr().get());
        assert!(a.abs_diff(b) >= stacks[0].length_bytes, "they do not overlap");
        assert!(stacks.iter().all(|stack| stack.length_bytes == length_bytes));
        // SAFETY: nothing runs on them.
        stacks.into_iter().for_each(|stack| unsafe { arena.free(stack) });
    }

    #[test]
    fn few_stacks_ask_for_little_and_many_for_much_at_once() {
        let arena = arena(None);
        let step = |arena: &Arena| {
            let ahead = arena.lock().writable_bytes;
            (arena.allocate().unwrap(), ahead)
        };
        let steps: Vec<_> = (0..1000).map(|_| step(&arena)).collect();
        let ahead = |count: usize| steps[..count].iter().filter(|(_, ahead)| *ahead == 0).count();
        // 1, 1, 2, 4 and so on, until the limit.
        assert_eq!((ahead(1), ahead(2), ahead(4), ahead(16)), (1, 2, 3, 5));
        let limit = MAX_STEP_BYTES / steps[0].0.length_bytes;
        assert!(ahead(1000) <= 10 + 1000 / limit, "{}", ahead(1000));
        let most = steps.iter().map(|(_, ahead)| *ahead).max();
        assert!(most < Some(MAX_STEP_BYTES), "{most:?}");
        // SAFETY: nothing runs on them.
        steps.into_iter().for_each(|(stack, _)| unsafe { arena.free(stack) });
    }

    #[test]
    fn many_stacks_are_few_mappings() {
        let arena = arena(None);
        let stacks: Vec<_> = (0..3000).map(|_| arena.allocate().unwrap()).collect();
        if arena.guard_kind() == Some(GuardKind::Marker) {
            // Two chunks, and between them perhaps the mappings of other threads.
            assert!(mappings_within(&stacks) < 30);
        }
        // SAFETY: nothing runs on them.
        stacks.into_iter().for_each(|stack| unsafe { arena.free(stack) });
    }
}
