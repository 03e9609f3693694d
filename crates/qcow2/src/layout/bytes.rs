//! Big-endian integers in bytes.

/// The bytes end before what is read: more are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooShort;

/// The `N` bytes at `at`.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> Result<u16, TooShort> {
    array(bytes, at).map(u16::from_be_bytes).ok_or(TooShort)
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> Result<u32, TooShort> {
    array(bytes, at).map(u32::from_be_bytes).ok_or(TooShort)
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> Result<u64, TooShort> {
    array(bytes, at).map(u64::from_be_bytes).ok_or(TooShort)
}

/// The `len` bytes at `at`.
pub(crate) fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], TooShort> {
    at.checked_add(len).and_then(|end| bytes.get(at..end)).ok_or(TooShort)
}
