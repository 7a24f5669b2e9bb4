//! Machines with a way to a store that all share, which can be cut, and a disk of their own.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oxide_flow::clock::{Clock, SystemClock};
use oxide_flow::config::StateSection;
use oxide_flow::error::Result;
use oxide_flow::layer::{Cache, Keyring, Metrics, Records};
use oxide_flow::lease::this_process;
use oxide_flow::model::{PipelineName, PipelineState};
use oxide_flow::recovery::{Spool, Upkeep};
use oxide_flow::runner::{Begun, Fallback, Run, RunRequest};
use oxide_flow::store::StateStore;
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, ErrorKind as BackendErrorKind, Expected, Health,
    Listed, Storage, Version,
};

/// What is stored, and the last version that was given out.
pub type Shared = Arc<Mutex<(u64, BTreeMap<String, Entry>)>>;

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Reachable,
    /// A write happens at once, and is answered this much later.
    AnswersLate(Duration),
    Away,
    /// Every call waits in vain for its answer, until its deadline.
    Hangs,
    /// Every call waits in vain for its answer for as long as this lasts, whatever its deadline.
    HangsOn,
    /// Every call to read does.
    HangsOnReading,
    /// The next call to read is answered this much later.
    ReadsLateOnce(Duration),
    /// The next write of a key that begins like this happens, its answer is lost, and the store goes
    /// away.
    LosesAnswer(&'static str),
}

/// One machine's way to a store that all share.
#[derive(Clone)]
pub struct Way {
    pub shared: Shared,
    mode: Arc<Mutex<Mode>>,
    changed: Arc<Condvar>,
    /// The calls that hung, or do: their keys, and how long they were allowed to take.
    hung: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Way {
    fn to(shared: &Shared) -> Self {
        let (shared, mode) = (Arc::clone(shared), Arc::new(Mutex::new(Mode::Reachable)));
        Self { shared, mode, changed: Arc::default(), hung: Arc::default() }
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
        self.changed.notify_all();
    }

    /// How long each call that hung was allowed to take, of those about this key.
    pub fn hung(&self, key: &str) -> Vec<Duration> {
        let hung = self.hung.lock().unwrap();
        hung.iter().filter(|(about, _)| about == key).map(|(_, allowed)| *allowed).collect()
    }

    fn check(&self, call: &Call, key: &str) -> Result<(), BackendError> {
        let mode = *self.mode.lock().unwrap();
        match mode {
            Mode::Hangs | Mode::HangsOn => Err(self.hang(call, key)),
            Mode::Away => Err(BackendError::unavailable("no route")),
            Mode::HangsOnReading
            | Mode::ReadsLateOnce(_)
            | Mode::Reachable
            | Mode::AnswersLate(_)
            | Mode::LosesAnswer(_) => Ok(()),
        }
    }

    fn hang(&self, call: &Call, key: &str) -> BackendError {
        let left = call.deadline().map(|at| at.saturating_duration_since(Instant::now())).unwrap();
        self.hung.lock().unwrap().push((key.to_owned(), left));
        let mode = self.mode.lock().unwrap();
        if *mode == Mode::HangsOn {
            drop(self.changed.wait_while(mode, |mode| *mode == Mode::HangsOn).unwrap());
        } else {
            drop(mode);
            std::thread::sleep(left);
        }
        BackendError::new(BackendErrorKind::Timeout, "no answer")
    }
}

impl Storage for Way {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        self.check(call, key)?;
        if *self.mode.lock().unwrap() == Mode::HangsOnReading {
            return Err(self.hang(call, key));
        }
        let mode = *self.mode.lock().unwrap();
        if let Mode::ReadsLateOnce(pause) = mode {
            self.set(Mode::Reachable);
            std::thread::sleep(pause);
        }
        Ok(self.shared.lock().unwrap().1.get(key).cloned())
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.check(call, key)?;
        let mut shared = self.shared.lock().unwrap();
        expected.check(shared.1.get(key).map(|entry| &entry.version))?;
        shared.0 += 1;
        let version = Version::from(shared.0);
        shared.1.insert(key.to_owned(), Entry { value: value.to_vec(), version });
        let mut mode = self.mode.lock().unwrap();
        if let Mode::LosesAnswer(prefix) = *mode
            && key.starts_with(prefix)
        {
            *mode = Mode::Away;
            return Err(BackendError::outcome_unknown("the connection was reset"));
        }
        if let Mode::AnswersLate(pause) = *mode {
            drop((shared, mode));
            std::thread::sleep(pause);
        }
        Ok(version)
    }

    fn delete(&self, call: &Call, key: &str, _: &Expected) -> Result<bool, BackendError> {
        self.check(call, key)?;
        Ok(self.shared.lock().unwrap().1.remove(key).is_some())
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.check(call, prefix)?;
        let shared = self.shared.lock().unwrap();
        let found = shared.1.iter().filter(|(key, _)| key.starts_with(prefix));
        let found = found.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
        let row = |(key, entry): (&String, &Entry)| {
            Listed::new(key, entry.version, entry.value.len() as u64)
        };
        Ok(found.take(limit).map(row).collect())
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        Ok(Health::default())
    }
}

/// A clock that goes on while nothing else does, as when the process is suspended, and stands still
/// however slow the machine is.
#[derive(Default)]
pub struct Jumping(AtomicU64);

impl Jumping {
    pub fn jump(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for Jumping {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// A machine: its way to the store, its clock, and its disk.
pub struct Machine {
    pub way: Way,
    pub store: StateStore,
    pub clock: Arc<dyn Clock>,
    pub disk: tempfile::TempDir,
    pub ttl: Duration,
    /// How often the lease is renewed.
    pub interval: Duration,
    pub enabled: bool,
    pub fresh: bool,
    pub limit: Option<Duration>,
}

impl Machine {
    pub fn new(shared: &Shared) -> Self {
        Self::with_keys(shared, None)
    }

    pub fn with_keys(shared: &Shared, keyring: Option<Keyring>) -> Self {
        let way = Way::to(shared);
        let clock = SystemClock::shared();
        let (cache, metrics) = (Arc::new(Cache::new(0)), Arc::new(Metrics::new(Vec::new())));
        // Without retries, which would only make the tests slow.
        let records = Records::new(Arc::new(way.clone()), Arc::clone(&clock), cache, metrics);
        let records = match keyring {
            Some(keyring) => records.encrypted(keyring),
            None => records,
        };
        let (store, disk) = (StateStore::new(records), tempfile::tempdir().unwrap());
        let ttl = Duration::from_secs(60);
        let interval = Duration::from_millis(20);
        Self { way, store, clock, disk, ttl, interval, enabled: true, fresh: false, limit: None }
    }

    pub fn spool(&self) -> Spool {
        Spool::new(self.disk.path().join("spool"))
    }

    /// The files in the spool of the pipeline, by name.
    pub fn spooled(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.spool().folder(&name())).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// The one file in the spool of the pipeline.
    pub fn entry(&self) -> PathBuf {
        let files = self.spooled();
        assert_eq!(files.len(), 1, "{files:?}");
        self.spool().folder(&name()).join(&files[0])
    }

    pub fn begin(&self) -> Result<Begun> {
        // A holder that the next one finds dead at once, as after a crash on this machine.
        let mut holder = this_process().unwrap();
        holder.pid_start_time += 1;
        let request = RunRequest {
            pipeline: name(),
            holder,
            steps: vec![("a".into(), "a".into()), ("b".into(), "b".into())],
            incremental: HashSet::new(),
            fresh: self.fresh,
            backup: true,
            upkeep: Upkeep::from(&StateSection::default()),
            lease_ttl: self.ttl,
            heartbeat_interval: self.interval,
            wait: Duration::ZERO,
            fallback: Fallback { spool: self.spool(), enabled: self.enabled, limit: self.limit },
        };
        let mut begun =
            Run::begin(&self.store, &self.clock, &request, &mut |_| {}, &|_| {}, |_| {})?;
        begun.run.rescue_into(vec![self.disk.path().join("rescue")]);
        Ok(begun)
    }

    pub fn start(&self) -> Run {
        self.begin().unwrap().run
    }

    /// What the store has, whether this machine reaches it or not.
    pub fn stored(&self) -> PipelineState {
        let other = Self::new(&self.way.shared);
        other.store.load_state(&name()).unwrap().unwrap().value
    }
}

pub fn name() -> PipelineName {
    "p".parse().unwrap()
}
