//! The store over HTTP: the storage interface for other hosts, what is known of pipelines for
//! programs, metrics and health for monitoring.
//!
//! ```text
//! socket -> listen (limits, TLS, draining) -> gate (who may, counting, log)
//!                                               -> store      bytes of the backend, compare-and-swap
//!                                               -> batch      many of these at once
//!                                               -> pipelines  documents, read-only
//!                                               -> health, metrics (from a reading), openapi
//! ```
//!
//! This is the only asynchronous part of the host, and its runtime exists only while it serves.
//! Calls of the store are synchronous, and run on threads whose number the requests' limit bounds.
//! The storage interface serves the backend below the seal: what clients seal stays sealed.

mod access;
mod batch;
mod etag;
mod gate;
mod health;
mod key;
mod listen;
mod metrics;
mod openapi;
mod pipelines;
mod problem;
mod reading;
mod reload;
mod requests;
mod routes;
mod store;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, Utc};
use tokio::sync::Semaphore;

use crate::app::App;
use crate::config::{Env, ServerSection};
use crate::error::{Error, ErrorKind, Result};

use access::Access;
use metrics::RequestMetrics;
use reading::Readings;

pub use listen::expect_end;
pub use reload::expect_reloads;

/// A server that may start: its socket is open, and its access and certificates are in order.
pub struct Server {
    settings: ServerSection,
    access: Access,
    tls: Option<Arc<tokio_rustls::rustls::ServerConfig>>,
    socket: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Checks the settings and opens the socket, or takes over the one that this process was
    /// started with: by a server that makes room for this one, or by the service manager.
    ///
    /// # Errors
    /// `Configuration` when the address is none, when anybody on the network could reach the
    /// store, or when a token, certificate or key is missing; `Io` when the address is taken.
    pub fn bind(settings: ServerSection, env: &Env<'_>) -> Result<Self> {
        let access = Access::load(&settings, env)?;
        let tls = settings.tls.as_ref().map(tls::load).transpose()?;
        let socket = match reload::inherited()? {
            Some(socket) => socket,
            None => listen::bind(&settings.listen)?,
        };
        let cannot = |error| Error::new(ErrorKind::Io, "cannot use the socket").because(error);
        let address = socket.local_addr().map_err(cannot)?;
        socket.set_nonblocking(true).map_err(cannot)?;
        check_exposure(address, &access, tls.is_some())?;
        Ok(Self { settings, access, tls, socket, address })
    }

    /// Checks everything that [`bind`](Self::bind) does, without a socket.
    ///
    /// # Errors
    /// As `bind`.
    pub fn check(settings: &ServerSection, env: &Env<'_>) -> Result<()> {
        Access::load(settings, env)?;
        settings.tls.as_ref().map(tls::load).transpose()?;
        Ok(())
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until it is told to end, by SIGTERM or SIGINT. `reload` is the command that SIGHUP
    /// replaces this process by; it must check itself and end when it is given the last argument.
    /// `ended` is what [`expect_end`] notes.
    ///
    /// # Errors
    /// `Io` when the runtime or the socket fails.
    pub fn run(self, app: App, reload: &Reload, ended: &AtomicBool) -> Result<()> {
        let cannot = |error| Error::new(ErrorKind::Io, "cannot start the server").because(error);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            // One for each request and each probe, and a few for what the server does by itself.
            .max_blocking_threads(self.settings.max_requests + requests::MOST_PROBES + 4)
            .thread_name("server")
            .enable_all()
            .build()
            .map_err(cannot)?;
        let grace = self.settings.grace_period;
        let Self { settings, access, tls, socket, .. } = self;
        let shared = Arc::new(Shared {
            requests: Arc::new(Semaphore::new(settings.max_requests)),
            probes: Arc::new(Semaphore::new(requests::MOST_PROBES)),
            readings: Arc::default(),
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            settings,
            access,
            started_at: app.clock.now(),
            app,
            metrics: RequestMetrics::default(),
            draining: AtomicBool::new(false),
        });
        let served = runtime.block_on(listen::run(shared, socket, tls, reload, ended));
        // Work of clients that have hung up may still be under way.
        runtime.shutdown_timeout(grace);
        served
    }
}

/// How a server is replaced; see [`Server::run`].
pub struct Reload {
    /// The program's file, as it was named before it was replaced.
    pub program: std::path::PathBuf,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
    /// The further argument that makes it check itself and end.
    pub check: &'static str,
}

/// What all requests share.
struct Shared {
    app: App,
    settings: ServerSection,
    access: Access,
    metrics: RequestMetrics,
    requests: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    readings: Arc<Readings>,
    connections: Arc<Semaphore>,
    started_at: DateTime<Utc>,
    /// Whether answers say that the connection ends with them.
    draining: AtomicBool,
}

/// Beyond this machine nobody may come without a token, and no token may be overheard.
fn check_exposure(address: SocketAddr, access: &Access, tls: bool) -> Result<()> {
    if address.ip().is_loopback() || (tls && access.has_tokens()) {
        return Ok(());
    }
    let missing = match (tls, access.has_tokens()) {
        (false, false) => "neither TLS nor a token is configured",
        (false, true) => "TLS is not configured",
        (true, _) => "no token is configured",
    };
    let message = format!("{address} can be reached from other machines, and {missing}");
    Err(Error::new(ErrorKind::Configuration, message).hint(
        "listen on 127.0.0.1, or give `server:` both `tls: {cert: FILE, key: FILE}` and \
         `tokens: {read_env: NAME, write_env: NAME}`",
    ))
}
