//! What a coroutine notes of its work, for a listing of what hangs.
//!
//! A note is a few plain stores in the coroutine's task, on its own thread: cheap enough for every
//! request, and read only when coroutines are listed.

use std::cell::Cell;
use std::time::Duration;

use super::Co;

/// A note as it is kept. What the numbers mean is for the layer above to say.
pub(super) struct Note {
    /// 0: nothing is noted, and the rest is old.
    tag: Cell<u64>,
    offset: Cell<u64>,
    bytes: Cell<u64>,
    since_ns: Cell<i64>,
}

impl Note {
    pub(super) const fn new() -> Note {
        let [tag, offset, bytes] = [const { Cell::new(0) }; 3];
        Note { tag, offset, bytes, since_ns: Cell::new(0) }
    }

    #[inline]
    pub(super) fn set(&self, tag: u64, offset: u64, bytes: u64, since_ns: i64) {
        self.tag.set(tag);
        self.offset.set(offset);
        self.bytes.set(bytes);
        self.since_ns.set(since_ns);
    }

    #[inline]
    pub(super) fn clear(&self) {
        self.tag.set(0);
    }

    pub(super) fn info(&self, now_ns: i64) -> Option<NoteInfo> {
        let age_ns = now_ns.saturating_sub(self.since_ns.get());
        let info = NoteInfo {
            tag: self.tag.get(),
            offset: self.offset.get(),
            bytes: self.bytes.get(),
            age: Duration::from_nanos(u64::try_from(age_ns).unwrap_or(0)),
        };
        (info.tag != 0).then_some(info)
    }
}

/// A note, as a listing tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoteInfo {
    /// What the work is and whose; not 0.
    pub tag: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub bytes: u64,
    /// For how long, by a clock that ticks every few milliseconds.
    pub age: Duration,
}

impl Co<'_> {
    /// Notes what this coroutine is about to do: `tag` says what and whose, and is not 0. It is told
    /// by [`AioContext::coroutines`](crate::AioContext::coroutines) until
    /// [`clear_note`](Self::clear_note), another note, or the coroutine's end.
    #[inline]
    pub fn note(&self, tag: u64, offset: u64, bytes: u64) {
        self.task().set_note(tag, offset, bytes);
    }

    /// That is done.
    #[inline]
    pub fn clear_note(&self) {
        self.task().clear_note();
    }
}

#[cfg(test)]
mod tests {
    use crate::AioContext;

    #[test]
    fn a_note_is_listed_until_it_is_cleared() {
        let ctx = AioContext::for_test().unwrap();
        ctx.spawn("request", |co| {
            co.note(7, 4096, 512);
            co.yield_now();
            co.clear_note();
            co.yield_now();
        });
        let note = |ctx: &AioContext| ctx.coroutines()[0].note;
        let first = note(&ctx).expect("a note");
        assert_eq!((first.tag, first.offset, first.bytes), (7, 4096, 512));
        ctx.try_poll();
        assert_eq!(note(&ctx), None);
        ctx.try_poll();
        // The next one has the same task, and not the same note.
        ctx.spawn("request", |co| {
            co.note(8, 0, 0);
            co.yield_now();
        });
        ctx.try_poll();
        ctx.spawn("another", |co| co.yield_now());
        assert_eq!(note(&ctx), None);
        ctx.try_poll();
    }
}
