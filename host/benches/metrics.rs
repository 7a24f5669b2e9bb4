//! What counting costs, and what a hit of the cache saves. `cargo bench -p oxide_flow --bench metrics`.
//!
//! Medians over rounds that are interleaved, so that the ratios hold although figures drift.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up fails")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use oxide_flow::layer::{Cache, OperationCounters, seal, unseal};
use oxide_flow::metrics::Histogram;
use oxide_flow::model::{PipelineName, PipelineState};
use oxiflow_plugin_api::{BackendError, Version};

const ROUNDS: usize = 200;
const CALLS: u32 = 2000;

fn main() {
    let (histogram, counters) = (Histogram::default(), OperationCounters::default());
    let steps: Vec<String> = (0..8).map(|n| format!("step-{n}")).collect();
    let state = PipelineState::new(
        &"bench".parse::<PipelineName>().expect("a name"),
        "run",
        steps.iter().map(|step| (step.as_str(), step.as_str())),
        chrono::Utc::now(),
    );
    let body = serde_json::to_vec(&state).expect("JSON");
    let record = seal("state/bench", 2, &body, chrono::Utc::now()).expect("a record");
    let (cache, version) = (Cache::new(10), Version::from(1));
    cache.insert("state/bench", version, std::sync::Arc::new(state));

    let work = || black_box(Ok::<usize, BackendError>(black_box(7)));
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..ROUNDS {
        times[0].push(per_call(|| drop(work())));
        times[1]
            .push(per_call(|| black_box(&histogram).record(black_box(Duration::from_micros(170)))));
        times[2].push(per_call(|| drop(black_box(&counters).observe(work, |bytes| *bytes))));
        times[3].push(per_call(|| {
            let (_, body) = unseal("state/bench", &record).expect("a record");
            drop(serde_json::from_slice::<PipelineState>(body).expect("a state"));
        }));
        times[4].push(per_call(|| {
            drop(cache.get::<PipelineState>("state/bench", &version).expect("a hit"));
        }));
    }
    let names = [
        "an empty call".to_owned(),
        "recording a duration".to_owned(),
        "a counted call (two clocks, three counters)".to_owned(),
        format!("check and parse of a state of {} bytes", body.len()),
        "the same from the cache".to_owned(),
    ];
    for (name, times) in names.iter().zip(&mut times) {
        times.sort_unstable();
        println!("{name:48} {:>9} ns", times[times.len() / 2].as_nanos());
    }
}

fn per_call(mut call: impl FnMut()) -> Duration {
    let started = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    started.elapsed() / CALLS
}
