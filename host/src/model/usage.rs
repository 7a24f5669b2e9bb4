//! How much a store held at points of time, for telling how fast it grows.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::Extra;

/// How far back measurements are kept.
const KEPT: TimeDelta = TimeDelta::days(7);

/// How far apart measurements are, and over how long a time growth is told.
const APART: TimeDelta = TimeDelta::hours(1);

/// The record under `usage/store`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Oldest first; about one an hour, of the last seven days.
    pub samples: Vec<UsageSample>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a store held once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSample {
    /// When it was measured.
    pub at: DateTime<Utc>,
    /// What the backend said that is used, in bytes.
    pub bytes: u64,
}

/// How fast a store grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// Bytes a day; negative when it shrinks.
    pub bytes_per_day: f64,
    /// The time that it was measured over.
    pub over: TimeDelta,
}

impl Usage {
    /// Whether the last measurement is old enough for another one.
    #[must_use]
    pub fn is_due(&self, now: DateTime<Utc>) -> bool {
        // One from the future was made by a clock that was wrong, and counts for nothing.
        self.samples.iter().all(|sample| now - sample.at >= APART || sample.at > now)
    }

    /// Notes a measurement, and forgets those that are too old or from the future.
    pub fn note(&mut self, sample: UsageSample) {
        self.samples.retain(|old| old.at < sample.at && sample.at - old.at <= KEPT);
        self.samples.push(sample);
    }

    /// How much the store has grown until `now`; `None` when no measurement is old enough.
    #[must_use]
    pub fn growth(&self, now: UsageSample) -> Option<Growth> {
        let ages = self.samples.iter().map(|sample| (now.at - sample.at, sample.bytes));
        let (over, bytes) =
            ages.filter(|(age, _)| (APART..=KEPT).contains(age)).max_by_key(|(age, _)| *age)?;
        let days = over.as_seconds_f64() / TimeDelta::days(1).as_seconds_f64();
        Some(Growth { bytes_per_day: (now.bytes as f64 - bytes as f64) / days, over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64, bytes: u64) -> UsageSample {
        UsageSample { at: DateTime::UNIX_EPOCH + TimeDelta::hours(hours), bytes }
    }

    #[test]
    fn growth_is_told_from_the_oldest_measurement_of_a_week() {
        let mut usage = Usage::default();
        assert!(usage.is_due(at(0, 0).at));
        for hour in 0..400 {
            usage.note(at(hour, 1000 + 10 * hour as u64));
        }
        assert_eq!(usage.samples.len(), 169);
        let growth = usage.growth(at(400, 5000)).unwrap();
        assert_eq!((growth.bytes_per_day, growth.over), (240.0, TimeDelta::days(7)));
        let shrunk = usage.growth(at(400, 0)).unwrap();
        assert!(shrunk.bytes_per_day < 0.0, "{shrunk:?}");
    }

    #[test]
    fn measurements_that_are_too_young_or_of_a_wrong_clock_tell_nothing() {
        let mut usage = Usage::default();
        usage.note(at(10, 1));
        let soon = UsageSample { at: at(10, 0).at + TimeDelta::minutes(59), bytes: 5 };
        assert_eq!((usage.growth(soon), usage.is_due(soon.at)), (None, false));
        assert!(usage.is_due(at(11, 0).at));
        // The clock went back: what is from the future goes.
        assert_eq!((usage.growth(at(9, 5)), usage.is_due(at(9, 0).at)), (None, true));
        usage.note(at(9, 1));
        assert_eq!(usage.samples, [at(9, 1)]);
    }
}
