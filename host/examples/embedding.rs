//! Processes records exactly once, over crashes, with the state kept by the project's backend.

use std::path::Path;

use oxide_flow::manager::StateManager;
use oxide_flow::model::Progress;

fn main() -> Result<(), oxide_flow::error::Error> {
    process(Path::new("."), &["ann", "ben", "cat"], &mut |record| println!("hello {record}"))
}

/// Hands each record that has not been processed yet to `work`.
pub fn process(
    project: &Path,
    records: &[&str],
    work: &mut dyn FnMut(&str),
) -> Result<(), oxide_flow::error::Error> {
    let manager = StateManager::open(project)?;
    let mut run = manager.start_run("greetings", &["greet"])?;
    let done = run.state().step_states["greet"].records_processed as usize;
    for (index, record) in records.iter().enumerate().skip(done) {
        if run.stop_requested() {
            return run.pause().map(drop);
        }
        work(record);
        let progress =
            Progress { records: 1, last_id: Some(index.to_string()), ..Progress::default() };
        // When this returns, the record is behind us for good.
        run.checkpoint(|state| state.record_progress("greet", &progress, chrono::Utc::now()))?;
    }
    run.complete().map(drop)
}
