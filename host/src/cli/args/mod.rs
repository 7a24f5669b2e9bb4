//! What can be typed. Values are parsed here as far as they can be without looking at anything.

mod plugin;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::PipelineName;

pub(super) use plugin::{
    InstallArgs, ManifestArgs, OutdatedArgs, RemoveArgs, RollbackArgs, VerifyArgs,
};
pub(super) use state::{
    BackupArgs, BenchmarkArgs, CleanupArgs, DeleteArgs, LockArgs, PushArgs, RekeyArgs, RepairArgs,
    RestoreArgs, StateCommand, StateListArgs, UpgradeArgs, ValidateArgs, ValidateBackupArgs,
};

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
    /// Look at, install and verify backend plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Serve the store over HTTP: for other hosts, for programs, for monitoring
    #[command(after_help = "Examples:
  oxide_flow serve                             on 127.0.0.1:7311
  oxide_flow serve --listen 127.0.0.1:0 --json on a free port, which is printed
  kill -HUP PID                                change to a newly installed program or plugin")]
    Serve(ServeArgs),
    /// Make the backups that are due and remove what need not be kept, once; for cron
    Maintain(MaintainArgs),
    /// Move all pipelines to another store
    #[command(
        after_help = "Each pipeline lives in exactly one store at any time. A migration that was killed \
is finished with --resume or taken back with --undo.

Examples:
  oxide_flow migrate --to postgres.yaml --dry-run   say what there is to move, and what is in the way
  oxide_flow migrate --to postgres.yaml --live      move, taking running workers along
  oxide_flow migrate --to postgres.yaml --verify    compare both stores, record by record"
    )]
    Migrate(MigrateArgs),
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

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port [default: `server.listen`, or 127.0.0.1:7311]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Option<String>,
    /// The environment variable with the token to read and write with
    #[arg(long, value_name = "NAME")]
    pub(super) token_env: Option<String>,
    /// Print the address as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Open everything but the socket, and end
    #[arg(long, hide = true)]
    pub(super) check: bool,
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// The configuration file that names the other store
    #[arg(long, value_name = "FILE")]
    pub(super) to: PathBuf,
    /// Say what there is to move and what is in the way, and change nothing
    #[arg(long, conflicts_with_all = ["resume", "undo"])]
    pub(super) dry_run: bool,
    /// Compare all records of both stores, after moving if that is not done yet
    #[arg(long)]
    pub(super) verify: bool,
    /// Have live workers take their pipelines along while they run
    #[arg(long)]
    pub(super) live: bool,
    /// Finish a migration that was begun
    #[arg(long, conflicts_with = "undo")]
    pub(super) resume: bool,
    /// Move everything back, also after the migration is done
    #[arg(long)]
    pub(super) undo: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// How long to wait for each live worker: to take its pipeline along with --live, otherwise
    /// to finish [default: 60s with --live, otherwise 0s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) wait: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct MaintainArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
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
    /// Make the crate of a new backend, in Rust, which builds and keeps the contract as it is
    #[command(after_help = "Example:
  oxide_flow plugin new shelf --api-path oxide_flow/plugin-api
  cd shelf && cargo test && cargo build --release
  oxide_flow plugin certify target/release/liboxiflow_backend_shelf.so")]
    New(NewPluginArgs),
    /// Prove that a plugin keeps the contract, clause by clause, each test in a process of its own
    #[command(
        after_help = "The store that it opens lies in a temporary folder, unless its options lead elsewhere;
there every test works under keys of its own and removes them.

Examples:
  oxide_flow plugin certify ./liboxiflow_backend_shelf.so
  oxide_flow plugin certify ./liboxiflow_backend_redis.so --option url=redis://127.0.0.1:6379/9
  oxide_flow plugin certify ./liboxiflow_backend_shelf.so --quick --only C5 --seed 7

Exit code 0 when no test fails, 1 when one does, 2 when the plugin cannot be loaded or opened."
    )]
    Certify(CertifyArgs),
    /// Check a plugin and show what it is; it is loaded in a process of its own
    Inspect {
        /// A library, or the backend whose library is found
        #[arg(value_name = "FILE|NAME")]
        plugin: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Load it in this process
        #[arg(long, hide = true)]
        in_process: bool,
    },
    /// Install plugins, or the next version of one, and pin them
    #[command(
        after_help = "Processes that run keep the library they loaded; the next ones load the new one. The
version before is kept for `plugin rollback`.

Examples:
  oxide_flow plugin install ./liboxiflow_backend_shelf.so
  oxide_flow plugin install shelf-1.2/ --to /opt/oxiflow/backends
  oxide_flow plugin install /tmp/liboxiflow_backend_shelf.so --sha256 9f86d081884c7d65…"
    )]
    Install(InstallArgs),
    /// Go back to the version of a plugin that was installed before
    Rollback(RollbackArgs),
    /// Remove a plugin that was installed, and its pin
    Remove(RemoveArgs),
    /// Check installed plugins against their manifests, pins and signatures, and run none of them
    #[command(after_help = "Exit code 0 when all may be loaded, 2 when one may not.")]
    Verify(VerifyArgs),
    /// Compare installed plugins with other versions of them that are found
    Outdated(OutdatedArgs),
    /// Write the manifest of a plugin, for its author to ship beside it
    #[command(after_help = "Example:
  oxide_flow plugin manifest liboxiflow_backend_shelf.so --licence MIT >liboxiflow_backend_shelf.toml")]
    Manifest(ManifestArgs),
}

#[derive(Debug, Args)]
pub(super) struct NewPluginArgs {
    /// The name of the backend: lowercase letters, digits and `_`
    pub(super) name: String,
    /// The folder to make [default: NAME]
    #[arg(long, short, value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
    /// The folder of the package `oxiflow-plugin-api` [default: the version of this program, from
    /// the registry]
    #[arg(long, value_name = "DIR")]
    pub(super) api_path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct CertifyArgs {
    /// A library, or the backend whose library is found
    #[arg(value_name = "FILE|NAME")]
    pub(super) plugin: PathBuf,
    /// An option of the backend; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub(super) option: Vec<(String, String)>,
    /// Take `backend_config` from this configuration file
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where the random choices come from, to repeat a run [default: random]
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Only these tests: a clause such as C3, or a part of their names; may be repeated
    #[arg(long, value_name = "TESTS")]
    pub(super) only: Vec<String>,
    /// Fewer repetitions, for while you write; gives no certificate
    #[arg(long)]
    pub(super) quick: bool,
    /// How long one test may take
    #[arg(long, value_name = "DURATION", value_parser = some_time, default_value = "1h")]
    pub(super) limit: Duration,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `NAME=VALUE`.
fn some_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be more than nothing".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}
