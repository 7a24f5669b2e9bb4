//! A point in time as a person types it.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Utc};

/// A time, or how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    At(DateTime<Utc>),
    Ago(Duration),
}

impl Moment {
    /// The time, seen from `now`; `None` when it is before the calendar.
    pub(super) fn resolve(self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::At(time) => Some(time),
            Self::Ago(ago) => {
                TimeDelta::from_std(ago).ok().and_then(|ago| now.checked_sub_signed(ago))
            }
        }
    }
}

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        // Times as this program shows them, such as `2026-01-31 10:30:05 UTC`, can be pasted.
        let time = text.strip_suffix("UTC").map_or(text, str::trim_end);
        let with_offset = [time.to_owned(), with_seconds(time)];
        let found = with_offset.iter().find_map(|time| DateTime::parse_from_rfc3339(time).ok());
        if let Some(time) = found {
            return Ok(Self::At(time.to_utc()));
        }
        for form in
            ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"]
        {
            if let Ok(time) = NaiveDateTime::parse_from_str(time, form) {
                return Ok(Self::At(time.and_utc()));
            }
        }
        NaiveDate::parse_from_str(time, "%Y-%m-%d")
            .map(|date| Self::At(date.and_time(NaiveTime::MIN).and_utc()))
            .map_err(
                |_| "expected a time such as `2026-01-31T10:30Z`, a date, or how long ago: `2h`",
            )
    }
}

/// `…T10:30Z` and `…T10:30+02:00` with the seconds that RFC 3339 wants.
fn with_seconds(time: &str) -> String {
    let at = "2026-01-31T10:30".len();
    match (time.get(..at), time.get(at..)) {
        (Some(minutes), Some(offset)) => format!("{minutes}:00{offset}"),
        _ => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_all_their_forms() {
        let half_past = "2026-01-31T10:30:00Z".parse::<DateTime<Utc>>().unwrap();
        for text in [
            "2026-01-31T10:30Z",
            "2026-01-31T10:30:00Z",
            "2026-01-31T10:30:00.000Z",
            "2026-01-31T12:30+02:00",
            "2026-01-31T12:30:00+02:00",
            "2026-01-31T10:30",
            "2026-01-31 10:30",
            "2026-01-31 10:30:00 UTC",
            " 2026-01-31 10:30:00 ",
        ] {
            assert_eq!(text.parse(), Ok(Moment::At(half_past)), "{text}");
        }
        let midnight = half_past - TimeDelta::minutes(630);
        assert_eq!("2026-01-31".parse(), Ok(Moment::At(midnight)));
    }

    #[test]
    fn a_duration_is_counted_back_from_now() {
        let now = "2026-01-31T10:30:00Z".parse::<DateTime<Utc>>().unwrap();
        let ago = "1h 30m".parse::<Moment>().unwrap();
        assert_eq!(ago, Moment::Ago(Duration::from_secs(5400)));
        assert_eq!(ago.resolve(now), Some(now - TimeDelta::minutes(90)));
        assert_eq!(Moment::Ago(Duration::MAX).resolve(now), None);
        assert_eq!(Moment::At(now).resolve(now), Some(now));
    }

    #[test]
    fn nonsense_is_no_time() {
        for text in
            ["", "latest", "10:30", "2026-02-30", "2026-01-31T25:00Z", "-5m", "é26-01-31T10:30Z"]
        {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }
}
