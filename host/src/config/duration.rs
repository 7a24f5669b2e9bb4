//! Durations as people write them: `30s`, `1h 30m`, `7d`.
//!
//! A number without a unit is refused rather than guessed: the same `10` meant seconds
//! here and milliseconds there in earlier formats.

use std::time::Duration;

/// What right durations look like; goes into hints.
pub(super) const EXAMPLES: &str = "a number and a unit, such as \"30s\", \"5m\" or \"7d\"";

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadDuration {
    NoUnit,
    Zero,
    Unreadable,
}

/// Parses a duration longer than zero.
pub(super) fn parse(text: &str) -> Result<Duration, BadDuration> {
    let text = text.trim();
    if text.parse::<f64>().is_ok() {
        return Err(BadDuration::NoUnit);
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err(BadDuration::Zero),
        Ok(duration) => Ok(duration),
        Err(_) => Err(BadDuration::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_of_the_manual_are_read() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse(" 1h 30m "), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(7 * 86_400)));
    }

    #[test]
    fn bare_numbers_zero_and_nonsense_are_told_apart() {
        assert_eq!(parse("10"), Err(BadDuration::NoUnit));
        assert_eq!(parse("0"), Err(BadDuration::NoUnit));
        assert_eq!(parse("0s"), Err(BadDuration::Zero));
        assert_eq!(parse("-5s"), Err(BadDuration::Unreadable));
        assert_eq!(parse("soon"), Err(BadDuration::Unreadable));
        assert_eq!(parse(""), Err(BadDuration::Unreadable));
        assert_eq!(parse("99999999999999999999d"), Err(BadDuration::Unreadable));
    }
}
