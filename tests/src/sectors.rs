//! Sectors that say what they are: whose, which, and the how-many-eth version. One that is torn, or
//! at the wrong place, shows.

use crate::random::Random;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// Fills whole sectors with version `version`; `first` is the number of the first one.
pub fn fill(sectors: &mut [u8], run: u64, first: u64, version: u64) {
    for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR_BYTES)) {
        for (word, value) in [run, number, version].into_iter().enumerate() {
            sector[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        Random::new(run ^ number << 40 ^ version << 20).fill(&mut sector[24..]);
    }
}

/// The version of a sector; 0 if it was never written.
///
/// # Errors
/// Says what is wrong with a sector that is not whole, or not this one.
pub fn version(sector: &[u8], run: u64, number: u64) -> Result<u64, String> {
    if sector.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let version = u64::from_le_bytes(sector[16..24].try_into().expect("8 bytes"));
    let mut expected = [0; SECTOR_BYTES];
    fill(&mut expected, run, number, version);
    match sector.iter().zip(&expected).position(|(is, should)| is != should) {
        None => Ok(version),
        Some(at) => Err(format!("sector {number} is torn: version {version} up to byte {at}")),
    }
}

/// Every sector of an image is whole, and at least the version it must be.
///
/// # Errors
/// Names the first that is not.
pub fn verify(image: &[u8], run: u64, required: &[u64]) -> Result<(), String> {
    if image.len() != required.len() * SECTOR_BYTES {
        return Err(format!("{} bytes, {} sectors", image.len(), required.len()));
    }
    for ((number, sector), required) in (0..).zip(image.chunks_exact(SECTOR_BYTES)).zip(required) {
        let version = version(sector, run, number)?;
        if version < *required {
            return Err(format!("sector {number} is version {version}, acknowledged {required}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_torn_and_misplaced_sectors_show() {
        let mut image = vec![0; 4 * SECTOR_BYTES];
        fill(&mut image[..2 * SECTOR_BYTES], 7, 0, 3);
        assert_eq!(verify(&image, 7, &[3, 3, 0, 0]), Ok(()));
        assert_eq!(verify(&image, 7, &[2, 0, 0, 0]), Ok(()));
        assert!(verify(&image, 7, &[3, 4, 0, 0]).is_err(), "an old version");
        assert!(verify(&image, 7, &[3, 3, 1, 0]).is_err(), "never written");
        assert!(verify(&image, 8, &[3, 3, 0, 0]).is_err(), "another run's");
        let mut torn = image.clone();
        fill(&mut image[..SECTOR_BYTES], 7, 0, 4);
        torn[256..512].copy_from_slice(&image[256..512]);
        assert!(verify(&torn, 7, &[3, 3, 0, 0]).is_err(), "half of each");
        image.copy_within(0..512, 512);
        assert!(verify(&image, 7, &[3, 3, 0, 0]).is_err(), "at the wrong place");
    }
}
