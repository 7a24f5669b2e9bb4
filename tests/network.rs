//! The program over servers while the network between them is slow, cut, silent, or loses answers
//! to what the server has done.
//!
//! Whatever the network does, nothing is applied twice, no command says that it succeeded without
//! knowing it, and each ends by itself. What the backends do on their own is in `backend_*.rs` and
//! `server/plugin.rs`; here the same tests run over each of them that a network leads to.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/proxy.rs"]
mod proxy;
#[path = "kit/redis.rs"]
mod redis;

/// Each of these functions is a test over each backend.
macro_rules! over_each_backend {
    ($($test:ident),+ $(,)?) => {
        over_each_backend!(@ redis, $($test),+);
        over_each_backend!(@ postgres, $($test),+);
        over_each_backend!(@ http, $($test),+);
    };
    (@ $backend:ident, $($test:ident),+) => {
        mod $backend {
            $(
                #[test]
                fn $test() {
                    let Some(store) = crate::Store::$backend() else { return };
                    super::$test(&store);
                }
            )+
        }
    };
}

#[path = "network/commands.rs"]
mod commands;
#[path = "network/runs.rs"]
mod runs;

use std::any::Any;

use kit::{Project, QUICK, Served, quick_with_lease};
use proxy::Proxy;

/// A pipeline that counts on after its cursor until a condition of the shell holds, of `$n` say.
fn counting(condition: &str) -> String {
    format!(
        r#"
pipeline:
  - name: count
    run: |
      n="${{OXIFLOW_LAST_PROCESSED_ID:-0}}"
      until {condition}; do
        n=$((n + 1))
        echo "$n" >> counted
        echo "{{\"records\":1,\"last_id\":\"$n\"}}" >&"$OXIFLOW_PROGRESS_FD"
        sleep 0.02
      done
"#
    )
}

/// A server that keeps the state.
struct Store {
    backend: &'static str,
    port: u16,
    /// Its options, but for the port in their first place.
    options: fn(u16) -> String,
    /// Ends with this.
    _server: Box<dyn Any + Send + Sync>,
}

impl Store {
    fn redis() -> Option<Self> {
        let server = redis::Server::start(redis::DURABLE)?;
        let (backend, port) = ("redis", server.port());
        let options = |port| format!("url: \"redis://127.0.0.1:{port}/0\"");
        Some(Self { backend, port, options, _server: Box::new(server) })
    }

    fn postgres() -> Option<Self> {
        let server = postgres::Server::start(&[])?;
        let (backend, port) = ("postgres", server.port());
        let options = |port| {
            let (dsn, password) = (postgres::dsn(port), postgres::PASSWORD);
            format!("dsn: \"{dsn}\", password: {password}")
        };
        Some(Self { backend, port, options, _server: Box::new(server) })
    }

    fn http() -> Option<Self> {
        let project = Project::new(QUICK);
        let served = Served::start(&project, &[]);
        let (_, port) = served.address().rsplit_once(':').expect("a port");
        let (backend, port) = ("http", port.parse().expect("a number"));
        let options = |port| format!("url: \"http://127.0.0.1:{port}\"");
        Some(Self { backend, port, options, _server: Box::new((served, project)) })
    }

    /// A project with its state here, reached over this port. No lease runs out because the machine
    /// is busy, and a save that hangs is given up after some seconds.
    fn project(&self, port: u16) -> Project {
        let (backend, options) = (self.backend, (self.options)(port));
        let backend = format!("backend: {backend}\n  backend_config: {{{options}}}");
        let configuration = quick_with_lease("20s")
            .replace("backend: file", &backend)
            .replace("checkpoint_interval: 50ms", "checkpoint_interval: 10ms");
        Project::new(&configuration)
    }

    /// A project with this pipeline and its state here, a proxy between them, and a look at the
    /// store that the proxy has no part in.
    fn behind_proxy(&self, pipeline: &str, text: &str) -> Lane {
        let proxy = Proxy::to_port(self.port);
        let project = self.project(proxy.port());
        project.write(&format!("pipelines/{pipeline}.yaml"), text);
        Lane { pipeline: pipeline.to_owned(), project, proxy, direct: self.project(self.port) }
    }
}

/// One pipeline on its way to the store.
struct Lane {
    pipeline: String,
    project: Project,
    proxy: Proxy,
    /// Sees the store without the proxy, and nothing of what is spooled for it.
    direct: Project,
}

impl Lane {
    /// The numbers that the step counted, in order.
    fn counted(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.project.path().join("counted")).unwrap_or_default();
        text.split_terminator('\n').map(|number| number.parse().expect("a number")).collect()
    }

    /// Fails unless the store has a completed run, of all that the step counted, each once.
    #[track_caller]
    fn assert_complete(&self, context: &str) {
        let counted = self.counted();
        let last = u64::try_from(counted.len()).expect("a length");
        let once: Vec<u64> = (1..=last).collect();
        assert_eq!(counted, once, "{context}: each number is counted once");
        let state = self.direct.state(&self.pipeline).expect("a state");
        assert_eq!(state["status"], "completed", "{context}");
        assert_eq!(state["records_processed"], last, "{context}");
        assert_eq!(state["last_processed_id"], last.to_string(), "{context}");
    }
}
