//! What `/metrics` tells of the store: read by one thread at a time, however many ask, and kept for
//! some seconds.
//!
//! Reading a slow store of many pipelines takes longer than a scraper waits. So a reading goes on
//! when nobody waits for it any more, up to a limit, and serves those who ask after it; meanwhile
//! they get the one before, which says when it was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{Call, Health};
use tokio::time::timeout;

use super::{pipelines, requests};
use crate::clock::Clock;
use crate::error::chain;
use crate::store::StateStore;
use crate::view::PipelineRow;

/// Pipelines beyond this number, by name, are not read.
const MOST_PIPELINES: usize = 500;

/// How long a reading is served before the store is read again.
const FRESH: Duration = Duration::from_secs(5);

/// How long a scrape waits for a new reading; scrapers commonly give up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How old a reading may be that is served because the new one takes its time.
const OLDEST: Duration = Duration::from_secs(120);

/// How long a reading may take. It then has what was read until then.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// What was read of a store.
#[derive(Debug)]
pub(super) struct Reading {
    /// When it began.
    pub(super) at: DateTime<Utc>,
    /// How the store is; `None` when it does not tell.
    pub(super) health: Option<Health>,
    /// How many pipelines have a state; `None` when they cannot be listed.
    pub(super) pipelines: Option<usize>,
    /// Those that were read, by name.
    pub(super) rows: Vec<PipelineRow>,
    /// Whether none was left out because the time was over.
    pub(super) is_complete: bool,
}

impl Reading {
    /// Reads a store, until the deadline of `call` or until `ended`.
    pub(super) fn take(
        store: &StateStore,
        clock: &dyn Clock,
        call: &Call,
        ended: &AtomicBool,
    ) -> Self {
        let store = store.bounded_by(call);
        let told = |error: &crate::error::Error, what| {
            tracing::warn!(target: "oxide_flow::server", error = chain(error), what);
        };
        let at = clock.now();
        let health = store.health().inspect_err(|error| told(error, "The store tells no health"));
        let names = store.pipelines();
        let names = names.inspect_err(|error| told(error, "The store lists no pipelines")).ok();
        let mut rows = Vec::new();
        let mut is_complete = names.is_some();
        for name in names.iter().flatten().take(MOST_PIPELINES) {
            let row = pipelines::row(&store, clock, name);
            if call.check().is_err() || ended.load(Ordering::Relaxed) {
                is_complete = false;
                break;
            }
            rows.extend(row);
        }
        let pipelines = names.map(|names| names.len());
        Self { at, health: health.ok(), pipelines, rows, is_complete }
    }
}

/// The latest reading, and whose turn it is to make the next one.
#[derive(Default)]
pub(super) struct Readings {
    latest: Mutex<Option<(Instant, Arc<Reading>)>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Readings {
    /// A reading of the last seconds: one that is there, or the one that `take` makes, which nobody
    /// waits for longer than `patience`; after that an older one, if there is any.
    pub(super) async fn current(
        self: &Arc<Self>,
        patience: Duration,
        take: impl FnOnce() -> Reading + Send + 'static,
    ) -> Option<Arc<Reading>> {
        match timeout(patience.min(PATIENCE), self.renew(take)).await {
            Ok(Some(reading)) => Some(reading),
            _ => self.younger_than(OLDEST),
        }
    }

    async fn renew(
        self: &Arc<Self>,
        take: impl FnOnce() -> Reading + Send + 'static,
    ) -> Option<Arc<Reading>> {
        if let Some(reading) = self.younger_than(FRESH) {
            return Some(reading);
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // Whoever had the turn before has made one.
        if let Some(reading) = self.younger_than(FRESH) {
            return Some(reading);
        }
        let readings = Arc::clone(self);
        let taken = requests::on_a_thread(move || {
            let reading = Arc::new(take());
            let latest = Some((Instant::now(), Arc::clone(&reading)));
            *readings.latest.lock().unwrap_or_else(PoisonError::into_inner) = latest;
            drop(turn);
            reading
        });
        taken.await.ok()
    }

    fn younger_than(&self, age: Duration) -> Option<Arc<Reading>> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let young = latest.as_ref().filter(|(made, _)| made.elapsed() < age);
        young.map(|(_, reading)| Arc::clone(reading))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{Sender, channel};

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::clock::SystemClock;
    use crate::store::testing::Shelf;

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    /// A reading of nothing that ends when it is told to, and the number of those that began.
    fn slow(begun: &Arc<AtomicUsize>) -> (Sender<()>, impl FnOnce() -> Reading + use<>) {
        let (end, ended) = channel();
        let begun = Arc::clone(begun);
        let take = move || {
            begun.fetch_add(1, Ordering::SeqCst);
            ended.recv().unwrap();
            let at = DateTime::UNIX_EPOCH;
            Reading { at, health: None, pipelines: None, rows: Vec::new(), is_complete: false }
        };
        (end, take)
    }

    #[test]
    fn the_store_is_read_once_for_all_who_ask_and_for_those_who_ask_soon_after() {
        let (readings, begun) = (Arc::new(Readings::default()), Arc::default());
        let runtime = runtime();
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let (readings, (end, take)) = (Arc::clone(&readings), slow(&begun));
                (end, runtime.spawn(async move { readings.current(PATIENCE, take).await }))
            })
            .collect();
        // Whichever of them reads.
        let answers = asked.into_iter().map(|(end, answer)| {
            end.send(()).unwrap_or_default();
            answer
        });
        for answer in answers.collect::<Vec<_>>() {
            assert!(runtime.block_on(answer).unwrap().is_some());
        }
        let (_end, take) = slow(&begun);
        assert!(runtime.block_on(readings.current(PATIENCE, take)).is_some());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_reading_that_nobody_waits_for_any_more_goes_on_alone_and_serves_the_next() {
        let (readings, begun) = (Arc::new(Readings::default()), Arc::default());
        let runtime = runtime();
        let (end, take) = slow(&begun);
        assert!(runtime.block_on(readings.current(Duration::ZERO, take)).is_none());
        for _ in 0..3 {
            let (_end, take) = slow(&begun);
            assert!(runtime.block_on(readings.current(Duration::ZERO, take)).is_none());
        }
        end.send(()).unwrap();
        let (_end, take) = slow(&begun);
        assert!(runtime.block_on(readings.current(PATIENCE, take)).is_some());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_reading_has_what_was_read_in_time_and_says_that_this_is_not_all() {
        let (shelf, clock) = (Shelf::leaked(), SystemClock::shared());
        let store = StateStore::over(Box::new(shelf), Arc::clone(&clock));
        store.add_pipelines(["a", "b", "c"], clock.now());
        let take = |milliseconds, ended| {
            let call = Call::within(Duration::from_millis(milliseconds));
            Reading::take(&store, &*clock, &call, &AtomicBool::new(ended))
        };
        let whole = take(60_000, false);
        assert_eq!((whole.rows.len(), whole.pipelines, whole.is_complete), (3, Some(3), true));
        assert_eq!((take(60_000, true).rows.len(), take(60_000, true).is_complete), (0, false));
        shelf.stall("state/b");
        let cut = take(3000, false);
        assert_eq!((cut.rows.len(), cut.pipelines, cut.is_complete), (1, Some(3), false));
        assert_eq!(cut.rows[0].status, "pending");
    }
}
