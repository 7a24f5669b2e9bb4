//! Runs a pipeline: its steps as child processes, their progress as durable checkpoints.
//!
//! [`session`] is one run's hold on its state and lease, usable without any steps, [`begin`] how it
//! comes to that, and [`degraded`] what it does while the store is away; [`steps`]
//! drives the steps of a pipeline through it, each [`attempt`] at one as the [`events`] come.
//! [`care`] looks after the copies of the pipeline meanwhile.
//! [`process`] starts a step under the [`supervisor`],
//! a small process that ends the step's whole process group when the runner dies.
//! [`relocation`] takes a run along to another store.
//! [`orphans`] ends what a worker left behind that died together with its supervisor.

mod attempt;
mod begin;
mod care;
mod degraded;
mod events;
mod orphans;
mod process;
mod relocation;
mod report;
mod session;
pub mod singer;
mod steps;
pub mod supervisor;

pub use degraded::Fallback;
pub use events::{Outcome, RunEvent, RunObserver, StopCause, Stopper};
pub use process::OutputStream;
pub use relocation::OpenStore;
pub use report::report;
pub use session::{Begin, Begun, Run, RunRequest, rescue_folders};
pub use steps::{Runner, RunnerParts};
