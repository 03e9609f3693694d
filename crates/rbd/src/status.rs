//! [`Status`]: which ranges of an image have data, by the difference of the image from nothing.
//!
//! librbd tells that by objects, which it looks at one by one, or by a table that an image with the feature
//! `fast-diff` has. Either way it is asked for a window of objects at once, and what it says is kept for the
//! next questions, which come in order as a rule: until something is written, and for a second at most, as
//! other clients may write.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coblk_aio::{Co, PoolShare};
use coblk_block::Extent;

use crate::ffi::Image;

/// Objects of a window: each costs a message, unless there is a table of them.
const WINDOW_OBJECTS: u64 = 64;
const WINDOW_OBJECTS_BY_TABLE: u64 = 16 << 10;
/// Most ranges that are kept of a window. What follows is data then, as far as is known.
const MAX_RANGES: usize = 4096;
/// How long an answer is kept.
const MAX_AGE: Duration = Duration::from_secs(1);

/// What is known of an image.
pub struct Status {
    object_bytes: u64,
    whole_objects: bool,
    /// Whether there is a window, or is about to be: else a change has nothing to forget.
    is_kept: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Changes of the image that came while something was kept.
    changes: u64,
    window: Option<Window>,
}

/// A part of the image, in order: ranges with data, and holes between them.
struct Window {
    range: Range<u64>,
    data: Vec<Range<u64>>,
    asked: Instant,
}

impl Status {
    pub fn new(object_bytes: u64, whole_objects: bool) -> Status {
        Status {
            object_bytes,
            whole_objects,
            is_kept: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image has changed. To be called after the change, and before its client is told.
    ///
    /// Either this sees that something is kept, or about to be, and has it forgotten; or what is asked
    /// afterwards finds the change.
    #[inline]
    pub fn changed(&self) {
        if self.is_kept.load(Ordering::SeqCst) {
            self.forget();
        }
    }

    #[cold]
    fn forget(&self) {
        let mut kept = self.kept();
        kept.changes += 1;
        kept.window = None;
        self.is_kept.store(false, Ordering::SeqCst);
    }

    /// The first bytes of a range, which is not empty, of an image of `length` bytes.
    ///
    /// # Errors
    /// Those of librbd.
    pub fn co_extent(
        &self,
        co: &Co<'_>,
        share: &PoolShare,
        image: &Image,
        range: Range<u64>,
        length: u64,
    ) -> io::Result<Extent> {
        let known = self.kept().window.as_ref().and_then(|window| window.extent(&range));
        if let Some(extent) = known {
            return Ok(extent);
        }
        let window = self.window(&range, length);
        let before = {
            let kept = self.kept();
            self.is_kept.store(true, Ordering::SeqCst);
            kept.changes
        };
        let asked = Instant::now();
        let data = share.submit_co(co, || data_of(image, &window, self.whole_objects));
        let new = Window { range: window, data: data?, asked };
        let extent = new.extent(&range).unwrap_or(Extent::data(range.end - range.start));
        let mut kept = self.kept();
        if kept.changes == before {
            kept.window = Some(new);
            self.is_kept.store(true, Ordering::SeqCst);
        }
        Ok(extent)
    }

    /// Whole objects, as some versions of librbd give wrong offsets for others.
    fn window(&self, range: &Range<u64>, length: u64) -> Range<u64> {
        let start = range.start / self.object_bytes * self.object_bytes;
        let objects = if self.whole_objects { WINDOW_OBJECTS_BY_TABLE } else { WINDOW_OBJECTS };
        let end = start.saturating_add(self.object_bytes.saturating_mul(objects));
        start..end.min(length.max(range.end))
    }
}

impl Window {
    /// What it says of the first bytes of a range; `None` if that is not in it, or it is too old.
    fn extent(&self, range: &Range<u64>) -> Option<Extent> {
        if !self.range.contains(&range.start) || self.asked.elapsed() > MAX_AGE {
            return None;
        }
        let end = range.end.min(self.range.end);
        let next = self.data.partition_point(|data| data.end <= range.start);
        let extent = match self.data.get(next) {
            Some(data) if data.start <= range.start => {
                Extent::data(data.end.min(end) - range.start)
            }
            Some(data) => Extent::hole(data.start.min(end) - range.start),
            None => Extent::hole(end - range.start),
        };
        Some(extent.stored_at(None, range.start))
    }
}

/// The ranges of a window with data, in order. Blocks.
fn data_of(image: &Image, window: &Range<u64>, whole_objects: bool) -> io::Result<Vec<Range<u64>>> {
    let mut data: Vec<Range<u64>> = Vec::new();
    image.allocated(window.clone(), whole_objects, |offset, bytes, exists| {
        add(&mut data, window, (offset, bytes, exists))
    })?;
    Ok(data)
}

/// Adds a range that librbd has told of. False if nothing more is kept.
fn add(data: &mut Vec<Range<u64>>, window: &Range<u64>, told: (u64, u64, bool)) -> bool {
    let (offset, bytes, exists) = told;
    let range = offset.max(window.start)..offset.saturating_add(bytes).min(window.end);
    if !exists || range.is_empty() {
        return true;
    }
    let is_full = data.len() >= MAX_RANGES;
    match data.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ if !is_full => data.push(range),
        _ => {
            // Data from here on, as far as is known.
            data.push(range.start..window.end);
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(data: &[Range<u64>]) -> Window {
        Window { range: 100..200, data: data.to_vec(), asked: Instant::now() }
    }

    #[test]
    fn what_lies_between_ranges_is_a_hole() {
        let window = window(&[100..110, 150..160]);
        let ask = |range| window.extent(&range).map(|it| (it.bytes, it.data, it.zero));
        assert_eq!(ask(100..200), Some((10, true, false)));
        assert_eq!(ask(105..107), Some((2, true, false)));
        assert_eq!(ask(110..200), Some((40, false, true)));
        assert_eq!(ask(155..400), Some((5, true, false)));
        assert_eq!(ask(160..400), Some((40, false, true)));
        assert_eq!((ask(99..200), ask(200..300)), (None, None));
    }

    #[test]
    fn an_old_answer_is_none() {
        let mut window = window(&[]);
        window.asked = Instant::now().checked_sub(MAX_AGE + Duration::from_millis(1)).unwrap();
        assert!(window.extent(&(100..200)).is_none());
    }

    #[test]
    fn ranges_are_joined_cut_and_bounded() {
        let (mut data, window) = (Vec::new(), 100..200);
        for told in [(90, 20, true), (110, 5, true), (120, 10, false), (190, 50, true)] {
            assert!(add(&mut data, &window, told));
        }
        assert_eq!(data, [100..115, 190..200]);
        let (mut data, window) = (Vec::new(), 0..1 << 30);
        let added =
            (0..1 << 20).take_while(|at| add(&mut data, &window, (at * 2, 1, true))).count();
        assert_eq!((added, data.len()), (MAX_RANGES, MAX_RANGES + 1));
        assert_eq!(data.last(), Some(&(MAX_RANGES as u64 * 2..1 << 30)));
    }

    #[test]
    fn a_change_is_seen_by_what_was_asked_before() {
        let status = Status::new(4, true);
        status.is_kept.store(true, Ordering::SeqCst);
        status.kept().window = Some(window(&[]));
        status.changed();
        assert!(status.kept().window.is_none());
        assert_eq!(status.kept().changes, 1);
        // Nothing is kept: nothing is counted.
        status.changed();
        assert_eq!(status.kept().changes, 1);
    }
}
