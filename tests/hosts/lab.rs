//! A server, hosts that use it, and what the steps on them do, in the order in which they do it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tempfile::TempDir;

use crate::host::{Host, Program, SERVER, in_a_private_network};
use crate::kit::{Project, Ran, wait_for};
use crate::{postgres, redis};

/// Which server keeps the state.
#[derive(Clone, Copy)]
pub enum Kind {
    Redis,
    Postgres,
}

/// How long the leases last that are to run out, and not before that.
pub const SHORT: Duration = Duration::from_secs(10);
/// How long those last that are not, however busy the machine is.
pub const LONG: Duration = Duration::from_secs(60);

/// Each host's offset from the true time, in seconds.
pub const AHEAD: i64 = 300;
pub const BEHIND: i64 = -180;

/// What `/proc/uptime` does not tell apart.
pub const TICK: Duration = Duration::from_millis(20);

/// Counts on after its cursor until it may end. It says what it does in a file that all hosts see,
/// with the time of the one clock that is never set.
const COUNTING: &str = r#"
pipeline:
  - name: count
    run: |
      say() { read -r up idle < /proc/uptime; echo "$up $OXIFLOW_WORKER_ID $*" >> SHARED/beats; }
      n="${OXIFLOW_LAST_PROCESSED_ID:-0}"
      say begin "$n"
      until [ -e SHARED/go ]; do
        n=$((n + 1))
        say beat "$n"
        echo "{\"records\":1,\"last_id\":\"$n\"}" >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.02
      done
      say end "$n"
"#;

/// Ends at once, with the cursor that a file has.
const QUICK: &str = r#"
pipeline:
  - name: read
    run: echo "{\"records\":1,\"last_id\":\"$(cat SHARED/cursor)\"}" >&"$OXIFLOW_PROGRESS_FD"
"#;

/// A server of one of the kinds.
pub enum Server {
    Redis(redis::Server),
    Postgres(
        postgres::Server,
        #[expect(dead_code, reason = "the folder of the file that says who may connect")] TempDir,
    ),
}

impl Server {
    fn start(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Redis => {
                let open = ["--bind", "0.0.0.0", "--protected-mode", "no"];
                Some(Self::Redis(redis::Server::start(&[redis::DURABLE, &open].concat())?))
            }
            Kind::Postgres => {
                let folder = TempDir::with_prefix("oxiflow-access-").expect("a folder");
                let access = folder.path().join("hba");
                fs::write(&access, "host all all all scram-sha-256\n").expect("a file");
                // The server may be another user.
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(folder.path(), mode).expect("a mode");
                let access = format!("hba_file={}", access.display());
                let server = postgres::Server::start(&["listen_addresses=*", &access])?;
                Some(Self::Postgres(server, folder))
            }
        }
    }

    fn configuration(&self) -> String {
        match self {
            Self::Redis(server) => {
                let url = format!("redis://{SERVER}:{}/0", server.port());
                format!("backend: redis\n  backend_config: {{url: \"{url}\"}}")
            }
            Self::Postgres(server, _) => {
                let (user, port) = (postgres::USER, server.port());
                let dsn = format!("postgres://{user}@{SERVER}:{port}/postgres");
                let password = postgres::PASSWORD;
                format!(
                    "backend: postgres\n  backend_config: {{dsn: \"{dsn}\", password: {password}}}"
                )
            }
        }
    }
}

/// A server and what is common to its hosts.
pub struct Lab {
    pub server: Server,
    shared: TempDir,
    ttl: Duration,
}

impl Lab {
    /// Gives a test of this full name a server of this kind, if there is one, with leases that last
    /// this long.
    #[track_caller]
    pub fn with(test: &str, kind: Kind, ttl: Duration, body: impl FnOnce(&mut Self)) {
        in_a_private_network(test, || {
            let Some(server) = Server::start(kind) else { return };
            let shared = TempDir::with_prefix("oxiflow-shared-").expect("a folder");
            body(&mut Self { server, shared, ttl });
        });
    }

    /// Turns on a host that has the project on its own disk, with the pipelines `p`, which counts
    /// until [`let_go`](Self::let_go), and `q`, which takes its cursor from
    /// [`set_cursor`](Self::set_cursor).
    pub fn machine(&self, name: &str, number: u8, clock: i64) -> Machine {
        let (backend, ttl) = (self.server.configuration(), self.ttl.as_secs());
        let project = Project::new(&format!(
            "project: {{name: test}}\nstate:\n  {backend}\n  heartbeat_interval: 200ms\n  \
             checkpoint_interval: 50ms\n  lease_ttl: {ttl}s\n  backup_keep: 2\n"
        ));
        let shared = self.shared.path().display().to_string();
        project.write("pipelines/p.yaml", &COUNTING.replace("SHARED", &shared));
        project.write("pipelines/q.yaml", &QUICK.replace("SHARED", &shared));
        let host = Host::start(name, number);
        host.set_clock(clock);
        Machine { host, project }
    }

    /// Lets the steps of `p` end.
    pub fn let_go(&self) {
        fs::write(self.shared.path().join("go"), "").expect("a file");
    }

    /// What the next run of `q` reports.
    pub fn set_cursor(&self, cursor: &str) {
        fs::write(self.shared.path().join("cursor"), cursor).expect("a file");
    }

    /// What the steps of `p` did so far.
    pub fn beats(&self) -> Vec<Beat> {
        let text = fs::read_to_string(self.shared.path().join("beats")).unwrap_or_default();
        let parse = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [at, worker, does, number] = words[..] else { panic!("{line}") };
            let number = number.parse().expect("a number");
            Beat { at: seconds(at), worker: worker.to_owned(), does: does.to_owned(), number }
        };
        text.lines().map(parse).collect()
    }

    /// Waits until this many workers have been at work, and the last of them has counted on; returns
    /// the id of the last one.
    pub fn counted_by(&self, workers: usize) -> String {
        let seen = self.beats().len();
        wait_for("a step to count on", || {
            let beats = self.beats();
            let turns = turns(&beats);
            assert!(turns.len() <= workers, "steps of two workers overlap: {turns:?}");
            let last = turns.last()?;
            let new = beats[seen..].iter().filter(|beat| beat.worker == *last).count();
            (turns.len() == workers && new > 20).then(|| last.clone())
        })
    }

    /// Fails unless the steps of these workers ran one after the other, and returns what each did.
    pub fn turns_of(&self, workers: &[&str]) -> Vec<Vec<Beat>> {
        let beats = self.beats();
        assert_eq!(turns(&beats), workers, "steps of two workers overlap");
        beats.chunk_by(|a, b| a.worker == b.worker).map(<[Beat]>::to_vec).collect()
    }
}

/// The workers in the order of their turns.
fn turns(beats: &[Beat]) -> Vec<String> {
    let mut turns: Vec<String> = beats.iter().map(|beat| beat.worker.clone()).collect();
    turns.dedup();
    turns
}

/// Something that a step did.
#[derive(Clone, Debug)]
pub struct Beat {
    /// When, by [`uptime`].
    pub at: Duration,
    pub worker: String,
    /// `begin`, `beat` or `end`.
    pub does: String,
    /// How far it had counted.
    pub number: u64,
}

/// The clock that all hosts have in common.
pub fn uptime() -> Duration {
    let text = fs::read_to_string("/proc/uptime").expect("/proc");
    seconds(text.split(' ').next().expect("a number"))
}

/// That clock and the true time at the same instant, though the machine may be busy in between.
fn both_clocks() -> (Duration, DateTime<Utc>) {
    wait_for("two clocks to be read at once", || {
        let (before, now) = (uptime(), Utc::now());
        (uptime() - before < TICK).then_some((before, now))
    })
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().expect("seconds"))
}

/// A host and the project on its disk.
pub struct Machine {
    pub host: Host,
    pub project: Project,
}

impl Machine {
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let ran = self.host.run(&self.project, arguments);
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran
    }

    pub fn start(&self, arguments: &[&str]) -> Program {
        self.host.start_program(&self.project, arguments)
    }

    /// What a command prints with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--json"]].concat()).expect(0);
        let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        document["data"].clone()
    }

    /// The state of a pipeline.
    pub fn state(&self, pipeline: &str) -> Value {
        self.json(&["state", "show", pipeline])["state"].clone()
    }

    /// The rows of `worker list`.
    pub fn workers(&self) -> Vec<Value> {
        self.json(&["worker", "list"]).as_array().expect("rows").clone()
    }

    /// When the worker of `p` began its last renewal, by [`uptime`]; `clock` is the offset of its
    /// host's clock.
    pub fn renewed(&self, clock: i64) -> Duration {
        let workers = self.workers();
        let mut leases = workers.iter().map(|worker| &worker["lease"]);
        let lease = leases.find(|lease| lease["pipeline_id"] == "p").expect("a worker");
        let shown = lease["renewed_at"].as_str().expect("a time");
        let renewed: DateTime<Utc> = shown.parse().expect("a time");
        let (uptime, now) = both_clocks();
        let ago = now - (renewed - TimeDelta::seconds(clock));
        uptime - ago.to_std().expect("it is past")
    }
}
