//! Reproducible randomness, and values that describe themselves.
//!
//! A value made here states its own length and id and fills the rest with bytes that follow from
//! both, so that a value put together from two writes, or cut short, is recognised as such.

/// A small reproducible random number generator (xorshift64*, Vigna 2016), not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // The state must not be zero; a round of splitmix64 also spreads seeds that are close.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// A generator of its own, for a thread.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.number())
    }
}

/// The smallest value that [`value`] makes, in bytes.
pub(super) const SMALLEST: usize = 16;

/// A value of `size` bytes (at least [`SMALLEST`]) with this id.
pub(super) fn value(id: u64, size: usize) -> Vec<u8> {
    let size = size.max(SMALLEST);
    let mut bytes = Vec::with_capacity(size + 8);
    bytes.extend_from_slice(&(size as u64).to_le_bytes());
    bytes.extend_from_slice(&id.to_le_bytes());
    let mut random = Random::new(id ^ (size as u64).rotate_left(32));
    while bytes.len() < size {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// The id of a value that [`value`] made.
///
/// # Errors
/// What is wrong with it, when it is not whole.
pub(super) fn id(bytes: &[u8]) -> Result<u64, String> {
    let number = |range| {
        let bytes: Option<&[u8]> = bytes.get(range);
        bytes.and_then(|bytes| bytes.try_into().ok())
    };
    let (Some(size), Some(id)) = (number(0..8), number(8..16)) else {
        return Err(format!("a value of {} bytes, shorter than any that was written", bytes.len()));
    };
    let (size, id) = (u64::from_le_bytes(size), u64::from_le_bytes(id));
    if size != bytes.len() as u64 {
        return Err(format!("a value of {} bytes that was written with {size} bytes", bytes.len()));
    }
    let whole = value(id, bytes.len());
    match whole.iter().zip(bytes).position(|(wanted, found)| wanted != found) {
        None => Ok(id),
        Some(at) => Err(format!("a value of {size} bytes that is not its own from byte {at} on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_value_says_its_id_and_a_torn_one_does_not() {
        for size in [16, 17, 100, 4096] {
            assert_eq!(id(&value(7, size)), Ok(7));
        }
        let (one, two) = (value(1, 100), value(2, 100));
        assert!(id(&one[..60]).is_err());
        assert!(id(&one[..3]).is_err());
        assert!(id(&[&one[..60], &two[60..]].concat()).is_err());
        assert!(id(&[&one[..], &two[..5]].concat()).is_err());
    }

    #[test]
    fn the_same_seed_makes_the_same_numbers() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [random.number(), random.number(), random.number()]
        };
        assert_eq!(numbers(0), numbers(0));
        assert_ne!(numbers(0), numbers(1));
    }
}
