//! Latencies in buckets of a fixed logarithmic scale.
//!
//! Recording is three relaxed atomic operations: no lock, no allocation. Each doubling of the
//! time is eight buckets, so that a percentile is never below the true one and at most an eighth
//! above it; that is the scheme of HdrHistogram with three significant bits. Distributions of the
//! same scale add up, which averages and percentiles of several workers do not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything below 2^10 ns, about a microsecond, is one bucket.
const LOWEST_OCTAVE: u32 = 10;
/// Everything from 2^37 ns, about 137 seconds, is one bucket.
const OCTAVES: u32 = 27;
const SUB_BITS: u32 = 3;
const SUB_BUCKETS: u32 = 1 << SUB_BITS;
const BUCKETS: usize = (OCTAVES * SUB_BUCKETS) as usize + 2;

/// A histogram that threads record into.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
        self.max_ns.fetch_max(nanos, Ordering::Relaxed);
    }

    /// What was recorded so far.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(u16, u64)> =
            (0u16..).zip(counts).filter(|(_, count)| *count > 0).collect();
        Distribution {
            buckets,
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            max_ns: self.max_ns.load(Ordering::Relaxed),
        }
    }
}

/// Durations as counted: how many were in which bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distribution {
    /// Number of a bucket and how many durations are in it, ascending, empty ones left out.
    pub buckets: Vec<(u16, u64)>,
    /// Sum of all durations, in nanoseconds.
    pub sum_ns: u64,
    /// The longest duration, in nanoseconds.
    pub max_ns: u64,
}

impl Distribution {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The sum of all durations.
    #[must_use]
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The mean; `None` when nothing was counted.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        self.sum_ns.checked_div(self.count()).map(Duration::from_nanos)
    }

    /// The longest; `None` when nothing was counted.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_nanos(self.max_ns))
    }

    /// The time that `percent` of the durations are not above; at most an eighth too high. `None`
    /// when nothing was counted.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = u128::from(count) * u128::from(percent.min(100));
        let rank = u64::try_from(rank.div_ceil(100)).unwrap_or(u64::MAX).max(1);
        let mut below = 0u64;
        for (bucket, count) in &self.buckets {
            below = below.saturating_add(*count);
            if below >= rank {
                return Some(Duration::from_nanos(upper_bound(*bucket).min(self.max_ns)));
            }
        }
        self.max()
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        for (bucket, count) in &other.buckets {
            match self.buckets.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
                Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(*count),
                Err(at) => self.buckets.insert(at, (*bucket, *count)),
            }
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

fn bucket_of(nanos: u64) -> usize {
    let octave = nanos.checked_ilog2().unwrap_or(0);
    if octave < LOWEST_OCTAVE {
        return 0;
    }
    if octave >= LOWEST_OCTAVE + OCTAVES {
        return BUCKETS - 1;
    }
    // The bits after the leading one say which part of the octave it is.
    let sub = (nanos >> (octave - SUB_BITS)) as usize & (SUB_BUCKETS as usize - 1);
    1 + ((octave - LOWEST_OCTAVE) * SUB_BUCKETS) as usize + sub
}

/// The longest time that falls in a bucket, in nanoseconds.
fn upper_bound(bucket: u16) -> u64 {
    let bucket = u32::from(bucket);
    match bucket.checked_sub(1) {
        None => (1 << LOWEST_OCTAVE) - 1,
        // Also a bucket that a damaged or newer record made up.
        Some(index) if index >= OCTAVES * SUB_BUCKETS => u64::MAX,
        Some(index) => {
            let (octave, sub) = (LOWEST_OCTAVE + index / SUB_BUCKETS, index % SUB_BUCKETS);
            (u64::from(SUB_BUCKETS + sub + 1) << (octave - SUB_BITS)) - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_whose_bounds_hold_it() {
        let times =
            (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) - 1, (1 << bit) + (1 << bit) / 3]);
        for nanos in times.chain([u64::MAX, 1_000_000, 123_456_789]) {
            let bucket = u16::try_from(bucket_of(nanos)).unwrap();
            assert!(nanos <= upper_bound(bucket), "{nanos} is above bucket {bucket}");
            assert!(bucket == 0 || nanos > upper_bound(bucket - 1), "{nanos} is below {bucket}");
            let highest = nanos.saturating_add(nanos / 8);
            let last = usize::from(bucket) == BUCKETS - 1;
            assert!(last || bucket == 0 || upper_bound(bucket) <= highest, "{nanos}: too wide");
        }
    }

    #[test]
    fn percentiles_are_never_below_the_true_ones_and_at_most_an_eighth_above() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|n| histogram.record(Duration::from_micros(n * 10)));
        let seen = histogram.distribution();
        assert_eq!((seen.count(), seen.mean()), (1000, Some(Duration::from_nanos(5_005_000))));
        for (percent, micros) in [(50, 5000u64), (95, 9500), (99, 9900)] {
            let found = seen.percentile(percent).unwrap();
            let (low, high) =
                (Duration::from_micros(micros), Duration::from_micros(micros * 9 / 8));
            assert!(low <= found && found <= high, "p{percent} is {found:?}");
        }
        assert_eq!(seen.percentile(100), Some(Duration::from_millis(10)));
        assert_eq!(seen.max(), Some(Duration::from_millis(10)));
    }

    #[test]
    fn nothing_counted_gives_no_figures() {
        let none = Distribution::default();
        assert_eq!((none.mean(), none.percentile(99), none.max()), (None, None, None));
    }

    #[test]
    fn distributions_of_two_workers_add_up_to_that_of_both() {
        let (one, other, both) = <(Histogram, Histogram, Histogram)>::default();
        for n in 0..500u64 {
            let time = Duration::from_nanos(n * n * 97);
            if n % 3 == 0 { &one } else { &other }.record(time);
            both.record(time);
        }
        let mut sum = one.distribution();
        sum.add(&other.distribution());
        assert_eq!(sum, both.distribution());
    }

    #[test]
    fn a_bucket_that_does_not_exist_is_the_last_one() {
        let strange = Distribution { buckets: vec![(60_000, u64::MAX)], sum_ns: 9, max_ns: 9 };
        assert_eq!(strange.percentile(50), Some(Duration::from_nanos(9)));
    }
}
