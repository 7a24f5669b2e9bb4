//! What can be typed after `oxide_flow state`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use crate::cli::moment::Moment;
use crate::format::{self, Format};
use crate::model::PipelineName;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum StateCommand {
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
  oxide_flow state export orders --format yaml
  oxide_flow state export orders --quarantined ID --output damaged.bin")]
    Export {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// The format
        #[arg(
            long,
            value_name = "FORMAT",
            value_parser = PossibleValuesParser::new(format::names()).try_map(|name| Format::named(&name)),
            default_value = "json"
        )]
        format: Format,
        /// The file [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Instead of the state, the bytes of a damaged record that was replaced, as they were
        #[arg(long, value_name = "ID", conflicts_with = "format")]
        quarantined: Option<String>,
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
        /// The file, in any format of `state export`; `-` for standard input
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Import it although it breaks rules, of the pipeline's file or of `state validate`
        #[arg(long)]
        ignore_rules: bool,
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
    /// Say whether a state is valid, and what is wrong with it
    #[command(after_help = "Exit code 3 when there are errors; warnings alone are no failure.

Examples:
  oxide_flow state validate orders
  oxide_flow state validate --all --json")]
    Validate(ValidateArgs),
    /// Read every record of the store, and say which are damaged
    #[command(after_help = "States, leases, backups, history and quarantine. Nothing is changed.

Example:
  oxide_flow state verify-integrity || oxide_flow state verify-integrity --json > damage.json")]
    VerifyIntegrity {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Mend a state that is damaged or not valid
    #[command(
        after_help = "What is replaced is backed up or quarantined first. A valid state is left alone. Off a
terminal, a repair needs --yes.

Examples:
  oxide_flow state repair orders --dry-run   what would change, and what would be lost
  oxide_flow state repair orders --yes"
    )]
    Repair(RepairArgs),
    /// Put back a state that could not be saved, from the file it was rescued to
    #[command(after_help = "A run that cannot save its state names the file.

Example:
  oxide_flow state push .oxiflow/rescue/orders-20261123T065034Z-fzz1x1.oxiflow")]
    Push(PushArgs),
    /// Keep a copy of the state of a pipeline, now
    #[command(
        after_help = "It works while a worker runs: it copies what was saved last. Of a damaged state it keeps the
bytes, and ends with code 3.

Examples:
  oxide_flow state backup orders
  oxide_flow state backup orders --reason 'before the migration' --verify"
    )]
    Backup(BackupArgs),
    /// List the backups of a pipeline, newest first, each read and verified
    ListBackups {
        /// The pipeline
        #[arg(allow_hyphen_values = true)]
        pipeline: PipelineName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that a backup can be restored
    #[command(after_help = "Exit code 0 when it can, 3 when it is damaged.

Examples:
  oxide_flow state validate-backup orders --backup latest
  oxide_flow state validate-backup orders 20261123T065034.679Z-fzz1x1")]
    ValidateBackup(ValidateBackupArgs),
    /// Go back to a backup, or to what was kept at some time
    #[command(after_help = "The present state is backed up first. Off a terminal it needs --yes.

TIME is `2026-01-31T10:30Z`, with or without seconds and offset (then UTC), a date (its beginning),
or how long ago: `2h`. --at also looks at the states that the history kept.

Examples:
  oxide_flow state restore orders --backup latest --dry-run   what would change
  oxide_flow state restore orders --backup latest --yes
  oxide_flow state restore orders --at 2026-01-31T10:30Z --yes")]
    Restore(RestoreArgs),
    /// Delete the state of a pipeline
    #[command(after_help = "The state is backed up first. Off a terminal it needs --yes.

Examples:
  oxide_flow state delete orders --yes             `state restore orders --backup latest` brings it back
  oxide_flow state delete orders --backups --yes   nothing brings it back")]
    Delete(DeleteArgs),
    /// Remove stale states and old copies
    #[command(
        after_help = "A state is stale when its run has ended, nobody holds the pipeline, and no step of it is
`incremental`; one that can be resumed is removed only if --pipeline names it. Each is backed up
first. With --backups and without --stale, only copies are removed.

Examples:
  oxide_flow state cleanup --stale --dry-run             what would be removed
  oxide_flow state cleanup --older-than 7d --yes         stale states that were last saved 7 days ago
  oxide_flow state cleanup --backups --older-than 3d     copies that are older"
    )]
    Cleanup(CleanupArgs),
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["pipeline", "all", "check"])))]
pub(in crate::cli) struct UpgradeArgs {
    /// The pipeline
    #[arg(conflicts_with = "all")]
    pub(in crate::cli) pipeline: Option<PipelineName>,
    /// All pipelines
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Only say which states are old
    #[arg(long)]
    pub(in crate::cli) check: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LockArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// Why; shown to everybody who is kept out
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) reason: String,
    /// How long the lock lasts
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "1h")]
    pub(in crate::cli) ttl: Duration,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BenchmarkArgs {
    /// How many records to write, read and swap
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(in crate::cli) operations: u32,
    /// Size of a record's body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..=16_000_000))]
    pub(in crate::cli) size: u32,
    /// How many threads work at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(in crate::cli) threads: u16,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["pipeline", "all"])))]
pub(in crate::cli) struct ValidateArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: Option<PipelineName>,
    /// All pipelines
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RepairArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Keep also what fails its checksum, when there is no copy; any field of it may be wrong
    #[arg(long)]
    pub(in crate::cli) accept_unverified: bool,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PushArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Replace also a state that the rescued one does not follow, after a backup; does not ask
    #[arg(long)]
    pub(in crate::cli) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RekeyArgs {
    /// Only list the records that would be rewritten
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct BackupArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// Why; shown in the list of backups
    #[arg(long, value_name = "TEXT", default_value = "manual")]
    pub(in crate::cli) reason: String,
    /// Read the backup again and compare it with the state
    #[arg(long)]
    pub(in crate::cli) verify: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["id", "backup"])))]
pub(in crate::cli) struct ValidateBackupArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// The backup's id, or `latest`
    #[arg(value_name = "BACKUP")]
    pub(in crate::cli) id: Option<String>,
    /// The same as an option
    #[arg(long, value_name = "BACKUP")]
    pub(in crate::cli) backup: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["backup", "at"])))]
pub(in crate::cli) struct RestoreArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// The backup's id, or `latest` for the newest one that verifies
    #[arg(long, value_name = "BACKUP")]
    pub(in crate::cli) backup: Option<String>,
    /// The newest copy that was made at this time or before
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) at: Option<Moment>,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// The pipeline
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: PipelineName,
    /// Delete also all backups, quarantined bytes and history of the pipeline, and make no backup
    #[arg(long)]
    pub(in crate::cli) backups: bool,
    /// Make no backup; needed when the store is full
    #[arg(long)]
    pub(in crate::cli) no_backup: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// How long to wait for a live worker to finish
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(in crate::cli) wait: Duration,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["stale", "older_than", "backups"])))]
pub(in crate::cli) struct CleanupArgs {
    /// Remove stale states
    #[arg(long)]
    pub(in crate::cli) stale: bool,
    /// Only what is older: states since their last save, copies since they were made
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(in crate::cli) older_than: Option<Duration>,
    /// Remove copies beyond `backup_retention` and `backup_keep`; with --older-than also history
    #[arg(long)]
    pub(in crate::cli) backups: bool,
    /// Only these pipelines, and of these also states that could be resumed
    #[arg(long, value_name = "PIPELINE", allow_hyphen_values = true)]
    pub(in crate::cli) pipeline: Vec<PipelineName>,
    /// Make no backups; needed when the store is full
    #[arg(long)]
    pub(in crate::cli) no_backup: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StateListArgs {
    /// Only pipelines that a worker runs now
    #[arg(long)]
    pub(in crate::cli) active: bool,
    /// Only pipelines whose last run failed
    #[arg(long)]
    pub(in crate::cli) failed: bool,
    /// Only pipelines whose last run ended well
    #[arg(long)]
    pub(in crate::cli) completed: bool,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}
