//! What is measured: latency histograms, and the figures that they and the counters give.
//!
//! A leaf that every module may use, as the clock: layers record, leases carry the figures of
//! their worker, the command line merges and shows them. Nothing here does I/O.

mod figures;
mod histogram;

pub use figures::{CacheFigures, Figures, OperationFigures, StorageFigures};
pub use histogram::{Distribution, Histogram};
