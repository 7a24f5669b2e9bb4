//! Time, passed in so that tests own it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};

/// A source of time.
pub trait Clock: Send + Sync {
    /// The wall clock, for timestamps that people read. Never used to measure.
    fn now(&self) -> DateTime<Utc>;

    /// Time since some fixed instant, on a clock that never goes back.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// The system's clocks, ready to share.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { origin: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        // Microseconds are what JSON consumers commonly keep; more would be cut on their side.
        Utc::now().trunc_subsecs(6)
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}
