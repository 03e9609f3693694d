//! [`Ranges`]: a set of numbers that come in ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers, kept as ranges that do not touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Starts, and ends.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    pub(super) fn insert(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // All that it overlaps or touches become one with it.
        while let Some((start, end)) = self.ranges.range(..=range.end).next_back()
            && *end >= range.start
        {
            let start = *start;
            range = range.start.min(start)..range.end.max(*end);
            self.ranges.remove(&start);
        }
        self.ranges.insert(range.start, range.end);
    }

    pub(super) fn remove(&mut self, range: &Range<u64>) {
        while let Some(found) = self.first_in(range) {
            // The range that it is a part of, whole.
            let Some((start, end)) = self.ranges.range(..=found.start).next_back() else { return };
            let (start, end) = (*start, *end);
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
        }
    }

    /// The first numbers of the set within `range` that follow each other.
    pub(super) fn first_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let before = self.ranges.range(..=range.start).next_back();
        let before = before.filter(|(_, end)| **end > range.start);
        let (start, end) = before.or_else(|| self.ranges.range(range.clone()).next())?;
        let found = (*start).max(range.start)..(*end).min(range.end);
        (!found.is_empty()).then_some(found)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_are_the_set_of_their_numbers() {
        let mut random = fastrand::Rng::with_seed(2);
        let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
        for _ in 0..20_000 {
            let start = random.u64(..100);
            let range = start..start + random.u64(..10);
            match random.u32(..3) {
                0 => {
                    ranges.insert(range.clone());
                    model.extend(range);
                }
                1 => {
                    ranges.remove(&range);
                    model.retain(|it| !range.contains(it));
                }
                _ => {
                    let first = model.range(range.clone()).next().copied();
                    let end = first.map(|first| {
                        (first..range.end).find(|it| !model.contains(it)).unwrap_or(range.end)
                    });
                    let expected = first.zip(end).map(|(first, end)| first..end);
                    assert_eq!(ranges.first_in(&range), expected);
                }
            }
            assert!(ranges.iter().flatten().eq(model.iter().copied()));
            let all: Vec<_> = ranges.iter().collect();
            assert!(all.windows(2).all(|two| two[0].end < two[1].start), "{all:?}");
            assert_eq!((ranges.len(), ranges.is_empty()), (all.len(), all.is_empty()));
        }
    }
}
