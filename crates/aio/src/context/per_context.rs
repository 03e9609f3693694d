//! [`PerContext`]: a value for each context.
//!
//! # Why a value that is not `Sync` may be shared so
//!
//! A cell is reached with the context whose number it has ([`PerContext::get`]). A context stays on its
//! thread and holds its number until it is freed, and no two live contexts have one number. So at any
//! moment one thread reaches the cell, and the next that does comes after the number was given back and
//! taken, which orders the two. A value that goes so from thread to thread has to be `Send`, and no more.
//! All cells at once are seen only where values are `Sync` ([`PerContext::iter`]).

use std::fmt;
use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use super::AioContext;
use super::number::MAX_CONTEXTS;

/// Numbers are dense, so cells are made by the chunk.
const CHUNK: usize = 8;

type Chunk<T> = [CachePadded<OnceLock<T>>; CHUNK];

/// A value for each context, made when that context first asks for it. Values of different contexts share
/// no cache line. Any thread.
///
/// A context that ends leaves its value behind. The next one with the same
/// [number](AioContext::number) finds it.
///
/// ```
/// use std::cell::Cell;
/// use coblk_aio::{AioContext, PerContext};
///
/// let requests = PerContext::<Cell<u64>>::new();
/// let ctx = AioContext::new()?;
/// let count = requests.get(&ctx);
/// count.set(count.get() + 1);
/// assert_eq!(requests.get(&ctx).get(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Values that are not `Sync` are seen by their own contexts alone:
///
/// ```compile_fail
/// let counts = coblk_aio::PerContext::<std::cell::Cell<u64>>::new();
/// counts.iter();
/// ```
pub struct PerContext<T> {
    chunks: [OnceLock<Box<Chunk<T>>>; MAX_CONTEXTS / CHUNK],
}

// SAFETY: see the head of the file: a `&T` is had by the thread of the context whose number the cell has, or,
// where `T` is `Sync`, by any. Each value is made, seen and dropped on different threads, so it is `Send`.
unsafe impl<T: Send> Sync for PerContext<T> {}

impl<T> Default for PerContext<T> {
    fn default() -> Self {
        PerContext { chunks: [const { OnceLock::new() }; MAX_CONTEXTS / CHUNK] }
    }
}

impl<T> PerContext<T> {
    /// No values yet.
    pub fn new() -> PerContext<T> {
        Self::default()
    }

    /// The value of `ctx`, which [`T::default`](Default::default) makes when it is first asked for. That
    /// allocates for the first of eight contexts.
    #[inline]
    pub fn get<'a>(&'a self, ctx: &'a AioContext) -> &'a T
    where
        T: Default,
    {
        self.get_or_init(ctx, T::default)
    }

    /// The value of `ctx`, which `make` makes when it is first asked for. It must not ask for it itself.
    #[inline]
    pub fn get_or_init<'a>(&'a self, ctx: &'a AioContext, make: impl FnOnce() -> T) -> &'a T {
        let number = ctx.number();
        let new_chunk = || Box::new([const { CachePadded::new(OnceLock::new()) }; CHUNK]);
        self.chunks[number / CHUNK].get_or_init(new_chunk)[number % CHUNK].get_or_init(make)
    }
}

impl<T: Sync> PerContext<T> {
    /// All values that were made, in the order of numbers; also those of contexts that have ended.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let chunks = self.chunks.iter().filter_map(OnceLock::get);
        chunks.flat_map(|chunk| chunk.iter()).filter_map(|cell| cell.get())
    }
}

impl<T> fmt::Debug for PerContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerContext").finish_non_exhaustive()
    }
}
