//! Numbers that look random and are the same on every machine.

/// The splitmix64 generator (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014): one add and one mix a number, and any seed will do. Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts at a point of its own for unit `unit` of round `round`, so that a unit's
    /// numbers do not depend on which CPU runs it, nor when.
    #[must_use]
    pub const fn for_unit(seed: u64, round: u64, unit: u64) -> Self {
        Self(mix(seed ^ mix(round ^ mix(unit))))
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0; as good as evenly spread while `bound` is
    /// far below 2^64.
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// splitmix64's finisher: every bit of the input changes half of the output's.
const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::Random;

    /// The first numbers from seed 1234567, as published with the reference code.
    #[test]
    fn numbers_are_the_published_ones() {
        let mut random = Random::new(1_234_567);
        let numbers = [(); 3].map(|()| random.next());
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
