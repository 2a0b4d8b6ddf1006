//! The only source of chance in a run.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Chance that follows from a seed.
#[derive(Debug)]
pub struct Random(StdRng);

impl Random {
    /// The same seed gives the same run.
    pub fn new(seed: u64) -> Self {
        Random(StdRng::seed_from_u64(seed))
    }

    /// 64 random bits, never 0.
    pub fn id(&mut self) -> u64 {
        self.0.next_u64().max(1)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.0.next_u64() % 100 < percent
    }
}
