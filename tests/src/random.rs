//! Numbers from a seed: one seed replays a whole test.

use std::ops::Range;

/// A small generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..end`. `end` is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// The seeds a test runs: `COBLK_SEED=n` asks for that one alone, `COBLK_SEEDS=n` for `0..n`, and
/// without either it is `0..usual`, or `COBLK_SEEDS_TIMES` as many. With `COBLK_SEEDS_FROM=n` those before
/// `n` are left out.
pub fn seeds(usual: u64) -> Range<u64> {
    if let Some(seed) = option("COBLK_SEED") {
        return seed..seed + 1;
    }
    let times = option("COBLK_SEEDS_TIMES").unwrap_or(1);
    let count = option("COBLK_SEEDS").unwrap_or(usual * times);
    let from = option("COBLK_SEEDS_FROM").unwrap_or(0);
    assert!(from < count, "no seeds would test nothing");
    from..count
}

/// The number that a variable of the environment holds, if it is set.
pub fn option(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}='{text}' is not a number")))
}
