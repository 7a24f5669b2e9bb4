//! Runs a pipeline: its steps as child processes, their progress as durable checkpoints.
//!
//! [`session`] is one run's hold on its state and lease, usable without any steps; [`steps`]
//! drives the steps of a pipeline through it. [`process`] starts a step under the [`supervisor`],
//! a small process that ends the step's whole process group when the runner dies.
//! [`orphans`] ends what a worker left behind that died together with its supervisor.

mod orphans;
mod process;
mod session;
mod steps;
pub mod supervisor;

pub use process::OutputStream;
pub use session::{Begin, Begun, Run, RunRequest};
pub use steps::{Outcome, RunEvent, RunObserver, Runner, RunnerParts, StopCause, Stopper};
