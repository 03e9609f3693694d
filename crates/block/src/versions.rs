//! [`Versions`]: a value that seldom changes, and is read by every request.

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One of at most `N` values, all of which stay until the end, so that whoever reads one needs
/// neither a lock nor a count. For values of which there are few different ones.
#[derive(Debug)]
pub(crate) struct Versions<T, const N: usize> {
    first: T,
    later: [OnceLock<Box<T>>; N],
    /// 0 is the first.
    current: AtomicUsize,
}

/// Which of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(usize);

impl<T: PartialEq, const N: usize> Versions<T, N> {
    pub(crate) fn new(first: T) -> Versions<T, N> {
        let later = array::from_fn(|_| OnceLock::new());
        Versions { first, later, current: AtomicUsize::new(0) }
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        match self.current.load(Ordering::Acquire) {
            0 => &self.first,
            later => self.later(later),
        }
    }

    #[inline(never)]
    fn later(&self, index: usize) -> &T {
        self.later[index - 1].get().expect("what was selected is there")
    }

    /// Makes a value ready to be selected. `None` if there were too many different ones.
    pub(crate) fn add(&self, value: T) -> Option<Version> {
        if self.first == value {
            return Some(Version(0));
        }
        let mut value = Box::new(value);
        for (index, place) in self.later.iter().enumerate() {
            // Whoever comes first has the place; it may be for the same value.
            match place.set(value) {
                Ok(()) => return Some(Version(index + 1)),
                Err(back) => value = back,
            }
            if place.get() == Some(&value) {
                return Some(Version(index + 1));
            }
        }
        None
    }

    /// Makes an added value the current one; returns the one before.
    pub(crate) fn select(&self, version: Version) -> Version {
        Version(self.current.swap(version.0, Ordering::AcqRel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_found_again() {
        let versions: Versions<&str, 2> = Versions::new("a");
        let [a, b, c] = ["a", "b", "c"].map(|value| versions.add(value).unwrap());
        assert_eq!((versions.add("d"), versions.add("b")), (None, Some(b)));
        assert_eq!(*versions.get(), "a");
        assert_eq!(versions.select(c), a);
        assert_eq!(*versions.get(), "c");
        assert_eq!(versions.select(b), c);
        assert_eq!(*versions.get(), "b");
        assert_eq!(versions.select(a), b);
        assert_eq!(*versions.get(), "a");
    }
}
