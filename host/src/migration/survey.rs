//! Looking at what a migration would move, and at what is in its way, without changing anything.

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::lease::Worker;
use crate::model::PipelineName;
use crate::store::StateStore;

/// What is there to move.
#[derive(Debug, Default)]
pub struct Survey {
    /// The pipelines, by name.
    pub pipelines: Vec<Surveyed>,
    /// How many records they have together, without their leases.
    pub records: usize,
    /// The size of those, in bytes.
    pub bytes: u64,
}

/// A pipeline that is there to move.
#[derive(Debug)]
pub struct Surveyed {
    /// Its name.
    pub pipeline: PipelineName,
    /// The live worker on it, which must end or take it along.
    pub worker: Option<String>,
    /// Keys of records that cannot be read, and why. A state or lease among them must be repaired
    /// before the pipeline can move.
    pub unreadable: Vec<(String, Error)>,
}

/// Reads everything that a migration out of this store would move. `on_done` is called after each
/// pipeline.
///
/// # Errors
/// As the store fails to list.
pub fn survey(
    store: &StateStore,
    clock: &dyn Clock,
    on_done: &mut dyn FnMut(&PipelineName),
) -> Result<Survey> {
    let mut survey = Survey::default();
    for pipeline in store.known_pipelines()? {
        let mut unreadable = Vec::new();
        for key in store.keys_of(&pipeline)? {
            match store.load_sealed(&key) {
                Ok(Some(record)) => {
                    survey.records += 1;
                    survey.bytes += record.size() as u64;
                }
                Ok(None) => {}
                Err(error) => unreadable.push((key, error)),
            }
        }
        let worker = match store.load_lease(&pipeline) {
            Ok(lease) => lease.map(|lease| Worker::of(lease.value, clock.now())),
            Err(error) => {
                unreadable.push((format!("lease/{pipeline}"), error));
                None
            }
        };
        let live = worker.filter(|worker| worker.status.may_live());
        let worker = live.map(|worker| worker.lease.holder.worker_id);
        on_done(&pipeline);
        survey.pipelines.push(Surveyed { pipeline, worker, unreadable });
    }
    Ok(survey)
}
