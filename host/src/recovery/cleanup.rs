//! Which states are stale: a pure decision, from what is known of each.
//!
//! Invariant: nobody's work is lost that a person did not name. A pipeline that somebody holds, a
//! run that can be resumed, and cursors that the next run starts at stay. The first holds also
//! for pipelines that are named.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::model::PipelineState;

/// What is known of a state.
#[derive(Clone, Copy, Debug)]
pub struct StateFacts<'a> {
    /// The state.
    pub state: &'a PipelineState,
    /// Whether a worker holds the pipeline, or a person has locked it.
    pub is_held: bool,
    /// Whether the next run would start at cursors of this state.
    pub needs_cursors: bool,
    /// Whether the person named this pipeline.
    pub is_named: bool,
}

/// What is to become of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is stale.
    Remove,
    /// It was saved too recently.
    Young,
    /// A worker holds it, or a person has locked it.
    Held,
    /// Its run can be resumed.
    Unfinished,
    /// The next run starts at its cursors.
    Cursors,
}

impl Verdict {
    /// Why a state stays, or that it goes, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remove => "stale",
            Self::Young => "saved too recently",
            Self::Held => "held by a worker or locked",
            Self::Unfinished => "can be resumed",
            Self::Cursors => "the next run starts at its cursors",
        }
    }
}

/// Decides about a state. A stale one has ended and was last saved longer ago than `older_than`.
#[must_use]
pub fn judge(facts: &StateFacts<'_>, older_than: Option<Duration>, now: DateTime<Utc>) -> Verdict {
    let state = facts.state;
    let is_old = older_than.is_none_or(|age| {
        let limit = TimeDelta::from_std(age).ok().and_then(|age| now.checked_sub_signed(age));
        limit.is_some_and(|limit| state.last_heartbeat < limit)
    });
    if facts.is_held {
        Verdict::Held
    } else if !is_old {
        Verdict::Young
    } else if facts.is_named {
        Verdict::Remove
    } else if state.can_resume() {
        Verdict::Unfinished
    } else if facts.needs_cursors {
        Verdict::Cursors
    } else {
        Verdict::Remove
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PipelineStatus;

    fn verdict(
        status: PipelineStatus,
        [is_held, needs_cursors, is_named]: [bool; 3],
        older_than: Option<Duration>,
    ) -> Verdict {
        let saved = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut state = PipelineState::new(&"p".parse().unwrap(), "run", [], saved);
        state.status = status;
        let facts = StateFacts { state: &state, is_held, needs_cursors, is_named };
        judge(&facts, older_than, saved + TimeDelta::hours(1))
    }

    const HOUR: Duration = Duration::from_secs(3600);
    use PipelineStatus::{Completed, Failed, Paused, Pending, Running};

    #[test]
    fn only_what_has_ended_is_stale_unless_it_is_named() {
        for status in [Pending, Completed] {
            assert_eq!(verdict(status, [false; 3], None), Verdict::Remove);
        }
        for status in [Running, Paused, Failed] {
            assert_eq!(verdict(status, [false; 3], None), Verdict::Unfinished);
            assert_eq!(verdict(status, [false, false, true], None), Verdict::Remove);
        }
    }

    #[test]
    fn what_is_held_stays_also_when_it_is_named() {
        for status in [Pending, Running, Paused, Completed, Failed] {
            assert_eq!(verdict(status, [true, false, true], None), Verdict::Held);
        }
    }

    #[test]
    fn cursors_that_the_next_run_needs_stay() {
        assert_eq!(verdict(Completed, [false, true, false], None), Verdict::Cursors);
        assert_eq!(verdict(Completed, [false, true, true], None), Verdict::Remove);
    }

    #[test]
    fn what_is_not_older_than_asked_for_stays() {
        assert_eq!(verdict(Completed, [false; 3], Some(HOUR)), Verdict::Young);
        assert_eq!(verdict(Completed, [false; 3], Some(HOUR * 2)), Verdict::Young);
        assert_eq!(verdict(Completed, [false; 3], Some(HOUR / 2)), Verdict::Remove);
        assert_eq!(verdict(Completed, [false, false, true], Some(HOUR)), Verdict::Young);
        assert_eq!(verdict(Completed, [false; 3], Some(Duration::MAX)), Verdict::Young);
    }
}
