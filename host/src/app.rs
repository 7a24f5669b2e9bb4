//! The composition root: from a configuration to a store that is ready to use.
//!
//! config → plugin → backend → layers → store, in this order, and nowhere else.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oxiflow_plugin_api::{BackendError, Capabilities, Storage};

use crate::clock::{Clock, SystemClock};
use crate::config::{
    Config, EncryptionSection, Env, Isolation, KeyPlace, Pipeline, PluginTrust, RepairSection,
};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{self, KeySource, Keyring, Records};
use crate::lease::{person, safe_time, this_process};
use crate::model::PipelineName;
use crate::plugin::{
    self, OptionProblem, POLICY_VARIABLE, Plugin, Policy, SearchPath, Trust, TrustLevel,
};
use crate::recovery::{AutoRepair, Spool, Upkeep, auto_repair};
use crate::runner::{Fallback, RunRequest};
use crate::store::StateStore;

/// The backend that keeps state for one process only; used when `state.enabled` is false.
const MEMORY: &str = "memory";

/// How long attempts to open the store may begin: enough for as many as a call gets from a store that
/// refuses at once, and too short to multiply the patience of a backend that waits by itself.
const OPENING_PATIENCE: Duration = Duration::from_secs(3);

/// The name of the program's file.
const PROGRAM: &str = "oxide_flow";

/// The variable that names the program for those that embed the library.
const PROGRAM_VARIABLE: &str = "OXIFLOW_PROGRAM";

/// A project with its state store opened.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// Where state is kept.
    pub store: StateStore,
    /// The backend itself, below everything that the store puts on top of it: what is sealed
    /// there stays sealed here.
    pub backend: Arc<dyn Storage>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The plugin behind the store.
    pub plugin: Plugin,
}

impl App {
    /// Loads the configured backend's plugin and opens the store.
    ///
    /// # Errors
    /// `Configuration` when the plugin is missing, refused, or given wrong options; otherwise as
    /// the backend fails.
    pub fn open(config: Config, env: &Env<'_>) -> Result<Self> {
        Self::open_or(config, env, |config, plugin, error, _| {
            Err(cannot_open(config, plugin, error))
        })
    }

    /// As [`open`](Self::open), for commands that show what is spooled on this machine when the
    /// backend is away: then every call on the store says so.
    ///
    /// # Errors
    /// As [`open`](Self::open), except that the backend is away.
    pub fn open_for_reading(config: Config, env: &Env<'_>) -> Result<Self> {
        Self::open_or(config, env, |config, plugin, error, clock| {
            match Error::from(error.clone()).is_outage() {
                true => Ok(layer::away(&error, Arc::clone(clock))),
                false => Err(cannot_open(config, plugin, error)),
            }
        })
    }

    fn open_or(
        config: Config,
        env: &Env<'_>,
        otherwise: impl FnOnce(
            &Config,
            &Plugin,
            BackendError,
            &Arc<dyn Clock>,
        ) -> Result<(Arc<dyn Storage>, Records)>,
    ) -> Result<Self> {
        let clock = SystemClock::shared();
        let search = search_path(&config, env)?;
        let empty = serde_json::Map::new();
        let (backend, options) = if config.state.enabled {
            (config.state.backend.as_str(), &config.state.backend_config)
        } else {
            (MEMORY, &empty)
        };
        let trust = plugin_trust(&config, env)?;
        let plugin = match config.plugins.isolation {
            Isolation::None => Plugin::find(backend, &search, &trust)?,
            Isolation::Process => Plugin::find_apart(backend, &search, &trust, &program(env)?)?,
        };
        check_options(&config, &plugin, &plugin.problems(options))?;
        let open = || plugin.open(options, &config.project_dir);
        let (storage, mut records) = match layer::opened(OPENING_PATIENCE, open) {
            Ok(storage) => {
                let storage: Arc<dyn Storage> = storage.into();
                let shared = Box::new(Arc::clone(&storage));
                let cache_size = config.state.cache_size;
                (storage, layer::stack(shared, backend, cache_size, Arc::clone(&clock)))
            }
            Err(error) => otherwise(&config, &plugin, error, &clock)?,
        };
        records = records.written_as(config.state.record_format);
        if let Some(encryption) = &config.state.encryption {
            records = records.encrypted(keyring(encryption, env)?);
        }
        let store = StateStore::new(records);
        Ok(Self { config, store, backend: storage, clock, plugin })
    }

    /// Ends the processes of isolated plugins, before this process becomes another program. The
    /// next call on the store starts one again.
    pub fn close_plugin_processes() {
        plugin::close_all();
    }

    /// Why state kept by this backend is lost or invisible, in words; `None` for a backend that
    /// is durable and shared.
    #[must_use]
    pub fn reservation(&self) -> Option<String> {
        let capabilities = self.store.capabilities();
        let name = &self.plugin.description().name;
        if !self.config.state.enabled {
            Some("`state.enabled` is false: nothing is kept, and a run cannot be resumed".into())
        } else if !capabilities.contains(Capabilities::MULTI_PROCESS) {
            Some(format!(
                "the `{name}` backend keeps state inside one process: other commands do not see \
                 it, and it is gone when the process ends"
            ))
        } else if !capabilities.contains(Capabilities::DURABLE) {
            Some(format!(
                "the `{name}` backend is not durable as it is configured: a power loss may lose \
                 what it acknowledged"
            ))
        } else {
            None
        }
    }

    /// Repairs the state of a pipeline before it is run, if it is damaged and the configuration
    /// allows it.
    ///
    /// # Errors
    /// As the store fails.
    pub fn repair_before_run(&self, pipeline: &PipelineName) -> Result<AutoRepair> {
        let RepairSection { enabled, automatic, max_attempts } = self.config.state.repair;
        if !(enabled && automatic) {
            return Ok(AutoRepair::NotNeeded);
        }
        // The spooled save is newer, and fits only what was stored when it was made.
        if self.spool().newest(&self.store, pipeline)?.is_some() {
            return Ok(AutoRepair::NotNeeded);
        }
        let keep = self.config.state.history_keep;
        auto_repair(&self.store, &self.clock, pipeline, max_attempts, &person(), keep)
    }

    /// What a run of this pipeline needs to begin.
    ///
    /// # Errors
    /// `Usage` when the pipeline's name is none.
    pub fn run_request(
        &self,
        pipeline: &Pipeline,
        fresh: bool,
        wait: Duration,
    ) -> Result<RunRequest> {
        let name: PipelineName = pipeline.name.parse()?;
        let steps = pipeline.steps.iter();
        let incremental = steps.clone().filter(|step| step.incremental);
        Ok(RunRequest {
            pipeline: name,
            holder: this_process()?,
            steps: steps.clone().map(|step| (step.id.clone(), step.name.clone())).collect(),
            incremental: incremental.map(|step| step.id.clone()).collect(),
            fresh,
            backup: self.config.state.backup_enabled,
            upkeep: Upkeep::from(&self.config.state),
            lease_ttl: self.config.state.lease_ttl,
            heartbeat_interval: self.config.state.heartbeat_interval,
            wait,
            fallback: self.fallback(),
        })
    }

    /// What runs of this project do while the store is away.
    #[must_use]
    pub fn fallback(&self) -> Fallback {
        let section = &self.config.state.fallback;
        Fallback { spool: self.spool(), enabled: section.enabled, limit: section.degraded_limit }
    }

    /// The states that runs of this project spooled on local disk.
    #[must_use]
    pub fn spool(&self) -> Spool {
        Spool::new(self.config.state.fallback.spool_dir.clone())
    }

    /// What a person should know of how long runs go on without their lease; `None` when they
    /// end before anybody can have taken over.
    #[must_use]
    pub fn unfenced_limit(&self) -> Option<String> {
        let state = &self.config.state;
        let safe = safe_time(state.lease_ttl);
        let limit = state.fallback.degraded_limit.filter(|_| state.fallback.enabled)?;
        let shown = |time: Duration| humantime::format_duration(time).to_string();
        (limit > safe).then(|| {
            format!(
                "`state.fallback.degraded_limit` is {}, and a lease is safe for {}: while the store \
                 is away, steps go on though another machine may have taken the pipeline over, and \
                 both may write",
                shown(limit),
                shown(safe)
            )
        })
    }
}

/// Where the plugins of this project are looked for.
///
/// # Errors
/// `Configuration` when `OXIFLOW_PLUGIN_PATH` names a relative folder.
pub fn search_path(config: &Config, env: &Env<'_>) -> Result<SearchPath> {
    let executable = std::env::current_exe().ok();
    let (variable, home) = (env("OXIFLOW_PLUGIN_PATH"), env("HOME"));
    let configured = &config.plugins.path;
    SearchPath::new(configured, variable.as_deref(), home.as_deref(), executable.as_deref())
}

/// What the machine and this project ask of a plugin before it is loaded.
///
/// # Errors
/// `Configuration` when a policy, a key or a lock is not as it must be.
pub fn plugin_trust(config: &Config, env: &Env<'_>) -> Result<Trust> {
    let level = match config.plugins.trust {
        PluginTrust::Any => TrustLevel::Any,
        PluginTrust::Pinned => TrustLevel::Pinned,
        PluginTrust::Signed => TrustLevel::Signed,
    };
    let file = config.shown(config.file.as_deref().unwrap_or(&config.project_dir));
    let keys = &config.plugins.trusted_keys;
    let project = Policy::of_project(&file, &config.project_dir, level, keys)?;
    Trust::of_machine(env(POLICY_VARIABLE).as_deref())?.and(project)
}

/// The program that isolated plugins run in: this one, also after its file was replaced. A program
/// that embeds the library has to name it.
fn program(env: &Env<'_>) -> Result<PathBuf> {
    if let Some(named) = env(PROGRAM_VARIABLE) {
        return Ok(named.into());
    }
    let name = std::env::current_exe().ok();
    // The system adds ` (deleted)` to the name of a file that was replaced.
    let ours = name.as_deref().and_then(Path::file_name).and_then(OsStr::to_str);
    if ours.is_some_and(|name| name.trim_end_matches(" (deleted)") == PROGRAM) {
        return Ok("/proc/self/exe".into());
    }
    let message = "`plugins.isolation` is `process`, and this program is not oxide_flow";
    Err(Error::new(ErrorKind::Configuration, message)
        .hint(format!("set `{PROGRAM_VARIABLE}` to the path of the program `{PROGRAM}`")))
}

/// The keys that the configuration names.
fn keyring(section: &EncryptionSection, env: &Env<'_>) -> Result<Keyring> {
    let source = |place: &KeyPlace| match place {
        KeyPlace::File(path) => Ok(KeySource::File(path.clone())),
        KeyPlace::PassphraseVariable(variable) => {
            let passphrase = env(variable).ok_or_else(|| {
                let message = format!("the passphrase of the state is in `{variable}`, not set");
                Error::new(ErrorKind::Configuration, message)
                    .hint(format!("set `{variable}`, or change `state.encryption`"))
            })?;
            Ok(KeySource::Passphrase { variable: variable.clone(), passphrase: passphrase.into() })
        }
    };
    let fallback = section.fallback.iter().map(source).collect::<Result<_>>()?;
    Keyring::load(source(&section.current)?, fallback, section.enforced)
}

/// A backend that does not open; a wrong option is told with its place in the file.
fn cannot_open(config: &Config, plugin: &Plugin, error: BackendError) -> Error {
    let message = format!("cannot open the `{}` backend", plugin.description().name);
    let options = config.state.backend_config.keys();
    let named = options.filter(|option| error.message().contains(&format!("`{option}`")));
    let line = named.filter_map(|option| config.line_of_backend_option(option)).next();
    let place = match (&config.file, line) {
        (Some(file), Some(line)) => format!("{}:{line}: ", config.shown(file).display()),
        _ => String::new(),
    };
    Error::new(error.kind().into(), format!("{place}{message}")).because(error)
}

/// Turns what the plugin's schema objects to into an error with the place in the file.
fn check_options(config: &Config, plugin: &Plugin, problems: &[OptionProblem]) -> Result<()> {
    let Some(first) = problems.first() else {
        return Ok(());
    };
    let place = |problem: &OptionProblem| {
        let file = config.file.as_deref().map(|file| config.shown(file));
        let file = file.as_deref().unwrap_or(Path::new("backend_config")).display().to_string();
        match config.line_of_backend_option(&problem.option) {
            Some(line) => format!("{file}:{line}"),
            None => file,
        }
    };
    let told: Vec<_> = problems
        .iter()
        .map(|problem| match problem.option.as_str() {
            "" => format!("{}: {}", place(problem), problem.problem),
            option => format!("{}: option `{option}`: {}", place(problem), problem.problem),
        })
        .collect();
    let name = &plugin.description().name;
    let error = Error::new(
        ErrorKind::Configuration,
        format!("`backend_config` does not fit the `{name}` backend"),
    )
    .because(told.join("; "));
    Err(match &first.suggestion {
        Some(suggestion) if first.option.is_empty() => error.hint(suggestion.clone()),
        Some(suggestion) => error.hint(format!("`{}`: {suggestion}", first.option)),
        None => error,
    })
}
