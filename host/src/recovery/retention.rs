//! Which copies are kept and which go: a pure decision, from their ids and times.
//!
//! Invariant: the newest backup that verifies is never among those that go, neither for its age
//! nor because there are too many. Applying the decision is for [`super::upkeep`].

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::StateSection;

/// How many copies are kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Copies older than this go.
    pub max_age: Duration,
    /// How many of the newest backups of a pipeline stay; 0 sets no bound.
    pub keep: usize,
}

impl From<&StateSection> for Retention {
    fn from(state: &StateSection) -> Self {
        Self { max_age: state.backup_retention, keep: state.backup_keep }
    }
}

/// A copy of which is to be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// When it was made; absent when neither its id nor the storage tells. Such a copy has no age.
    pub at: Option<DateTime<Utc>>,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// Why a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It is older than copies are kept.
    Age,
    /// There are more than are kept, and this is one of the oldest.
    Count,
}

impl Expiry {
    /// The word that is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Count => "count",
        }
    }
}

/// A copy that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Its id.
    pub id: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Why it goes; for both reasons it is its age.
    pub why: Expiry,
}

/// Decides about the copies of one pipeline, which come oldest first. `newest_verified` is the id
/// of the newest backup that verifies; it stays.
#[must_use]
pub fn plan_retention(
    copies: &[Candidate],
    newest_verified: Option<&str>,
    retention: Retention,
    now: DateTime<Utc>,
) -> Vec<Expired> {
    let too_many = match retention.keep {
        0 => 0,
        keep => copies.len().saturating_sub(keep),
    };
    // An age that no calendar has is never reached.
    let oldest = TimeDelta::from_std(retention.max_age)
        .ok()
        .and_then(|max_age| now.checked_sub_signed(max_age));
    let expired = copies.iter().enumerate().filter_map(|(index, copy)| {
        if newest_verified == Some(copy.id.as_str()) {
            return None;
        }
        let too_old = copy.at.zip(oldest).is_some_and(|(at, oldest)| at < oldest);
        let why = match (too_old, index < too_many) {
            (true, _) => Expiry::Age,
            (false, true) => Expiry::Count,
            (false, false) => return None,
        };
        Some(Expired { id: copy.id.clone(), bytes: copy.bytes, why })
    });
    expired.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(hours_ago: i64) -> DateTime<Utc> {
        now() - TimeDelta::hours(hours_ago)
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// Copies of these ages in hours, oldest first; each is named by its age.
    fn copies(ages: &[i64]) -> Vec<Candidate> {
        let copy = |age: &i64| Candidate { id: age.to_string(), at: Some(at(*age)), bytes: 1 };
        ages.iter().map(copy).collect()
    }

    fn gone(ages: &[i64], verified: Option<&str>, keep: usize) -> Vec<(String, Expiry)> {
        let retention = Retention { max_age: 7 * DAY, keep };
        let expired = plan_retention(&copies(ages), verified, retention, now());
        expired.into_iter().map(|copy| (copy.id, copy.why)).collect()
    }

    fn named(ids: &[(&str, Expiry)]) -> Vec<(String, Expiry)> {
        ids.iter().map(|(id, why)| ((*id).to_owned(), *why)).collect()
    }

    #[test]
    fn copies_go_for_their_age_or_their_number() {
        assert_eq!(gone(&[], None, 3), []);
        assert_eq!(gone(&[200, 169, 168, 1], None, 0), {
            named(&[("200", Expiry::Age), ("169", Expiry::Age)])
        });
        assert_eq!(gone(&[200, 100, 50, 1], None, 2), {
            named(&[("200", Expiry::Age), ("100", Expiry::Count)])
        });
        assert_eq!(gone(&[100, 50, 1], None, 3), []);
    }

    #[test]
    fn the_newest_one_that_verifies_stays_however_old_and_however_many_come_after_it() {
        assert_eq!(gone(&[900, 800], Some("800"), 0), named(&[("900", Expiry::Age)]));
        assert_eq!(gone(&[900, 4, 3, 2], Some("900"), 2), named(&[("4", Expiry::Count)]));
    }

    #[test]
    fn a_copy_without_a_time_or_from_the_future_has_no_age() {
        let mut copies = copies(&[900, -5]);
        copies[0].at = None;
        let retention = Retention { max_age: DAY, keep: 0 };
        assert_eq!(plan_retention(&copies, None, retention, now()), []);
        let forever = Retention { max_age: Duration::MAX, keep: 0 };
        assert_eq!(plan_retention(&copies, None, forever, now()), []);
    }

    proptest! {
        #[test]
        fn what_stays_is_young_and_within_the_number_or_the_newest_that_verifies(
            mut ages in proptest::collection::vec(-10_i64..400, 0..60),
            keep in 0_usize..40,
            max_age in 1_i64..400,
            verified in proptest::option::of(0_usize..60),
        ) {
            ages.sort_unstable_by(|a, b| b.cmp(a));
            let copies: Vec<_> = ages
                .iter()
                .enumerate()
                .map(|(index, age)| Candidate { id: index.to_string(), at: Some(at(*age)), bytes: 7 })
                .collect();
            let verified = verified.filter(|index| *index < copies.len());
            let id = verified.map(|index| index.to_string());
            let max_age_hours = Duration::from_secs(max_age.unsigned_abs() * 3600);
            let retention = Retention { max_age: max_age_hours, keep };
            let expired = plan_retention(&copies, id.as_deref(), retention, now());
            let is_gone = |index: usize| expired.iter().any(|copy| copy.id == index.to_string());
            for (index, age) in ages.iter().enumerate() {
                let newer = ages.len() - 1 - index;
                let should_go = *age > max_age || (keep > 0 && newer >= keep);
                prop_assert_eq!(is_gone(index), should_go && verified != Some(index));
            }
            // Applying it again to what stays takes nothing more, except that the one that is
            // protected counts as one of those that are kept.
            let stay: Vec<_> = copies
                .iter()
                .enumerate()
                .filter(|(index, _)| !is_gone(*index))
                .map(|(_, copy)| copy.clone())
                .collect();
            let again = plan_retention(&stay, id.as_deref(), retention, now());
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }
}
