//! The context every call carries: when it must be over, and which operation it belongs to.

use std::time::{Duration, Instant};

use crate::error::BackendError;

/// The deadline and the trace id of one call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    deadline: Option<Instant>,
    trace_id: [u8; 16],
}

impl Call {
    /// A call without a deadline.
    #[must_use]
    pub fn unbounded() -> Self {
        Self::default()
    }

    /// A call that must return within `timeout` from now, on the monotonic clock.
    #[must_use]
    pub fn within(timeout: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(timeout), trace_id: [0; 16] }
    }

    /// The same call under this trace id, which ties a backend's log lines to an operation.
    #[must_use]
    pub fn with_trace_id(mut self, trace_id: [u8; 16]) -> Self {
        self.trace_id = trace_id;
        self
    }

    /// When the call must have returned; `None` means whenever.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Time left, zero when the deadline has passed, `None` when there is no deadline.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The trace id, all zeros when there is none.
    #[must_use]
    pub fn trace_id(&self) -> &[u8; 16] {
        &self.trace_id
    }

    /// Fails once the deadline has passed. Call it before the step that changes anything.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) when no time is left.
    pub fn check(&self) -> Result<(), BackendError> {
        match self.remaining() {
            Some(Duration::ZERO) => {
                Err(BackendError::timeout("the deadline passed before anything was changed"))
            }
            _ => Ok(()),
        }
    }
}
