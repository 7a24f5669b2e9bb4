//! What can be typed. Values are parsed here as far as they can be without looking at anything.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::PipelineName;

/// Durable state for data pipelines: checkpoints, leases, recovery.
#[derive(Debug, Parser)]
#[command(name = "oxide_flow", version, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// The project: a folder with an oxiflow.yaml [default: the nearest one upwards]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) project: Option<PathBuf>,
    /// Log what happens to standard error; twice for more. RUST_LOG overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// The form of log lines
    #[arg(long, global = true, value_enum, default_value_t, env = "OXIFLOW_LOG_FORMAT")]
    pub(super) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a pipeline, or resume it where its last checkpoint was
    #[command(after_help = "Examples:
  oxide_flow run orders              run or resume the pipeline `orders`
  oxide_flow run orders --fresh      start over, whatever was reached
  oxide_flow run orders --wait 30s   wait for another worker to finish first")]
    Run(RunArgs),
    /// Make a new project
    Init(InitArgs),
    /// Report progress from inside a step
    #[command(after_help = "Example, in a step:
  oxide_flow progress --records 100 --last-id 42")]
    Progress(ProgressArgs),
    /// Look at pipeline files
    #[command(subcommand)]
    Pipeline(PipelineCommand),
    /// Look at and change the state of pipelines
    #[command(subcommand)]
    State(StateCommand),
    /// Look at and stop workers
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Look at backend plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Remove what is kept beyond its bounds, once; for cron
    Maintain(MaintainArgs),
    /// Check that the store can be opened, written and read
    #[command(after_help = "Exit code 0 when it is healthy, 1 when it is not.")]
    Health {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The pipeline [default: the only one, or `pipeline`]
    pub(super) pipeline: Option<PipelineName>,
    /// Start over instead of resuming; an unfinished state is backed up first
    #[arg(long)]
    pub(super) fresh: bool,
    /// How long to wait for another worker to finish, such as 30s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(super) wait: Duration,
    /// Print the final state as JSON; the output of steps goes to standard error
    #[arg(long)]
    pub(super) json: bool,
    /// Do not show the output of steps
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The name of the project [default: the name of the folder]
    #[arg(value_name = "NAME", conflicts_with = "name_option")]
    pub(super) name: Option<String>,
    /// The name of the project, as an option
    #[arg(long = "name", short = 'n', id = "name_option", value_name = "NAME")]
    pub(super) name_option: Option<String>,
    /// The folder to make it in [default: NAME, or here without a name]
    #[arg(long, short, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ProgressArgs {
    /// Records processed since the last report
    #[arg(long, default_value_t)]
    pub(super) records: u64,
    /// Records that failed since the last report, not counted in --records
    #[arg(long, default_value_t)]
    pub(super) failed: u64,
    /// Bytes processed since the last report
    #[arg(long, default_value_t)]
    pub(super) bytes: u64,
    /// The cursor that resume starts after
    #[arg(long, value_name = "ID")]
    pub(super) last_id: Option<String>,
    /// The number of the batch just finished [default: counted]
    #[arg(long)]
    pub(super) batch: Option<u64>,
    /// How many records the step expects in all
    #[arg(long)]
    pub(super) total: Option<u64>,
    /// A line for people
    #[arg(long, value_name = "TEXT")]
    pub(super) message: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PipelineCommand {
    /// List the pipelines of the project
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check pipeline files without running anything
    Check {
        /// The pipeline [default: all]
        #[arg(allow_hyphen_values = true)]
        pipeline: Option<PipelineName>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Show the state of a pipeline
    Show {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the states of all pipelines
    List(StateListArgs),
    /// Write the state of a pipeline to a file or to standard output
    #[command(after_help = "Examples:
  oxide_flow state export orders --format json --output orders.json
  oxide_flow state export orders --format yaml")]
    Export {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// The format
        #[arg(long, value_enum, default_value_t)]
        format: ExportFormat,
        /// The file [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Replace the state of a pipeline by one from a file
    #[command(
        after_help = "An existing state is backed up first. Off a terminal, replacing one needs --yes.

Example:
  oxide_flow state import orders --file orders.json"
    )]
    Import {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// The file, JSON or YAML; `-` for standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// How long to wait for a live worker to finish
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
        wait: Duration,
    },
    /// Release the lease of a pipeline whose worker is gone
    Unlock {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// Release it also from a worker that may be alive; that worker is fenced
        #[arg(long)]
        force: bool,
    },
    /// Rewrite states of an older schema in the current one
    #[command(
        after_help = "Reading an older state needs no upgrade, and the next run rewrites it anyway.

Examples:
  oxide_flow state upgrade --check    say which states are old; exit code 1 when any is
  oxide_flow state upgrade --all      rewrite them, each backed up first"
    )]
    Upgrade(UpgradeArgs),
    /// List the runs of a pipeline that ended and what was done to its state, newest first
    History {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// How many records are shown
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what differs between two states, field by field
    #[command(
        after_help = "A state is PIPELINE, FILE, PIPELINE@HISTORY_ID, or PIPELINE@-1 for the last one before now.

Examples:
  oxide_flow state diff orders@-1 orders       what changed since the last recorded state
  oxide_flow state diff orders ./orders.json   what an import would change"
    )]
    Diff {
        /// The first state
        #[arg(value_name = "A")]
        before: String,
        /// The second state
        #[arg(value_name = "B")]
        after: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to a state that the history kept
    #[command(after_help = "The present state is backed up first. Off a terminal it needs --yes.

Examples:
  oxide_flow state rollback orders --to -1 --dry-run   what would change
  oxide_flow state rollback orders --to -1 --yes       undo what happened last")]
    Rollback {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// The history record, or -1 for the last one before now, -2 for the one before that
        #[arg(long, value_name = "HISTORY_ID", allow_hyphen_values = true)]
        to: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// How long to wait for a live worker to finish
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
        wait: Duration,
    },
    /// Keep runs off a pipeline while you work on it
    #[command(after_help = "The lock outlives this command: until `state unlock`, or for --ttl.

Example:
  oxide_flow state lock orders --reason 'moving the warehouse' --ttl 2h")]
    Lock(LockArgs),
    /// Show what live workers measured, beside the targets, and how full the store is
    #[command(after_help = "With --verbose: each backend, operation and worker for itself.")]
    Diagnostics {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Measure how fast the backend is, with records that are removed again
    Benchmark(BenchmarkArgs),
    /// Ask running workers to forget the records they keep in memory
    ClearCache {
        /// Only the worker of this pipeline [default: all]
        #[arg(allow_hyphen_values = true)]
        pipeline: Option<PipelineName>,
        /// How long to wait for answers [default: as long as the workers' leases last]
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Seal all records again with the current key, after the keys have changed
    #[command(after_help = "It can be repeated at any time: what is done stays done.

Example, with the new key under `state.encryption` and the old one as its `fallback`:
  oxide_flow state rekey --dry-run
  oxide_flow state rekey --yes")]
    Rekey(RekeyArgs),
    /// Put back a state that could not be saved, from the file it was rescued to
    #[command(after_help = "A run that cannot save its state names the file.

Example:
  oxide_flow state push .oxiflow/rescue/orders-20261123T065034Z-fzz1x1.oxiflow")]
    Push(PushArgs),
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["pipeline", "all", "check"])))]
pub(super) struct UpgradeArgs {
    /// The pipeline
    #[arg(conflicts_with = "all")]
    pub(super) pipeline: Option<PipelineName>,
    /// All pipelines
    #[arg(long)]
    pub(super) all: bool,
    /// Only say which states are old
    #[arg(long)]
    pub(super) check: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(super) wait: Duration,
}

#[derive(Debug, Args)]
pub(super) struct MaintainArgs {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LockArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(super) pipeline: PipelineName,
    /// Why; shown to everybody who is kept out
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
    /// How long the lock lasts
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1h")]
    pub(super) ttl: Duration,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(super) wait: Duration,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct BenchmarkArgs {
    /// How many records to write, read and swap
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) operations: u32,
    /// Size of a record's body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..=16_000_000))]
    pub(super) size: u32,
    /// How many threads work at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Replace also a state that the rescued one does not follow, after a backup; does not ask
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct RekeyArgs {
    /// Only list the records that would be rewritten
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct StateListArgs {
    /// Only pipelines that a worker runs now
    #[arg(long)]
    pub(super) active: bool,
    /// Only pipelines whose last run failed
    #[arg(long)]
    pub(super) failed: bool,
    /// Only pipelines whose last run ended well
    #[arg(long)]
    pub(super) completed: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum ExportFormat {
    #[default]
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(super) enum WorkerCommand {
    /// List the workers that hold a pipeline
    List {
        /// Only the worker of this pipeline
        #[arg(long, allow_hyphen_values = true)]
        pipeline: Option<PipelineName>,
        /// Also workers that have released their pipeline
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a worker
    Show {
        /// The worker's id
        worker: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask a worker to checkpoint, end its step and release, or release what a dead one holds
    Stop {
        /// The worker's id
        worker: String,
        /// How long to wait until it has stopped; 0s does not wait
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "60s")]
        wait: Duration,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PluginCommand {
    /// List the backend plugins that are found, in order of precedence
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check a plugin and show what it is; it is loaded in a process of its own
    Inspect {
        /// The library
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Load it in this process
        #[arg(long, hide = true)]
        in_process: bool,
    },
}
