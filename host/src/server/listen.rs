//! The socket: accepting within limits, TLS, draining, signals.
//!
//! No client holds anything for longer than the settings say: the head of a request, an idle
//! connection and an answer that nobody takes are each cut off after `idle_timeout`. Connections
//! beyond the limit wait in the socket's queue. Whoever is refused in the middle of a request gets to
//! read why.
//!
//! Draining goes in two steps. First every answer says that its connection ends, so that busy
//! clients leave by themselves and none meets a closed connection; then what is idle is closed, and
//! what is under way may end.

use std::net::ToSocketAddrs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::{Reload, Shared, reload, routes};
use crate::app::App;
use crate::error::{Error, ErrorKind, Result, chain};

/// How long busy clients have to take their leave before idle connections are closed.
const LEAVE: Duration = Duration::from_millis(500);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long accepting rests when the system has no descriptor for a connection.
const REST: Duration = Duration::from_millis(100);
/// Much for the head of a request, whose largest part is a key.
const LARGEST_HEAD: usize = 64 * 1024;
const MOST_HEADERS: usize = 64;
/// How long a client that was answered already may go on to send.
const HEAR_OUT: Duration = Duration::from_secs(2);

/// Opens the socket.
///
/// # Errors
/// `Configuration` when `listen` is no address, `Io` when it is taken.
pub(super) fn bind(listen: &str) -> Result<std::net::TcpListener> {
    let addresses = listen.to_socket_addrs().map_err(|error| {
        Error::new(ErrorKind::Configuration, format!("`{listen}` is no address to listen on"))
            .because(error)
            .hint("write an address and a port, such as 127.0.0.1:7311")
    })?;
    let addresses: Vec<_> = addresses.collect();
    std::net::TcpListener::bind(&*addresses).map_err(|error| {
        Error::new(ErrorKind::Io, format!("cannot listen on {listen}"))
            .because(error)
            .hint("another process may have the port: `ss -ltnp` shows which")
    })
}

/// Notes SIGTERM and SIGINT from here on, until the server listens for them itself: for whoever has
/// told somebody that it serves. Process 1 of a container would miss them, and any other would not
/// end in order.
///
/// # Errors
/// `Io` when the handlers cannot be installed.
pub fn expect_end() -> Result<Arc<AtomicBool>> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(|error| {
            Error::new(ErrorKind::Io, "cannot install a signal handler").because(error)
        })?;
    }
    Ok(ended)
}

/// Serves until a signal ends it, or at once when one has, as `ended` notes.
///
/// # Errors
/// `Io` when the socket or a signal handler cannot be used.
pub(super) async fn run(
    server: Arc<Shared>,
    socket: std::net::TcpListener,
    tls: Option<Arc<ServerConfig>>,
    reload: &Reload,
    ended: &AtomicBool,
) -> Result<()> {
    let cannot = |error| Error::new(ErrorKind::Io, "cannot use the socket").because(error);
    let mut signals = Signals::new()?;
    if ended.load(Ordering::SeqCst) {
        return Ok(());
    }
    let tls = tls.map(TlsAcceptor::from);
    loop {
        let (closing, closed) = watch::channel(false);
        // A copy accepts; the original stays open for the process that comes after.
        let copy = socket.try_clone().and_then(TcpListener::from_std).map_err(cannot)?;
        let accepting = tokio::spawn(accept(Arc::clone(&server), copy, tls.clone(), closed));
        let wanted = signals.serve_until(reload).await;
        accepting.abort();
        drain(&server, &closing, wanted, &mut signals).await;
        if wanted == Signalled::End {
            return Ok(());
        }
        // They would be this process's children still, and nobody would know of them. If it comes
        // to nothing, the next call starts one again.
        App::close_plugin_processes();
        let error = reload::replace(reload, socket.as_fd());
        tracing::error!(target: "oxide_flow::server", error = chain(&error), "Not reloaded");
        server.draining.store(false, Ordering::Relaxed);
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signalled {
    End,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let handler = |kind| {
            signal(kind).map_err(|error| {
                Error::new(ErrorKind::Io, "cannot install a signal handler").because(error)
            })
        };
        Ok(Self {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
            hang_up: handler(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for a signal to end, or for one to reload that the new program can follow.
    async fn serve_until(&mut self, reload: &Reload) -> Signalled {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Signalled::End,
                _ = self.interrupt.recv() => return Signalled::End,
                _ = self.hang_up.recv() => {}
            }
            // While it checks itself, requests are served as before.
            let checked = tokio::select! {
                checked = reload::check(reload) => checked,
                () = self.end() => return Signalled::End,
            };
            match checked {
                Ok(()) => return Signalled::Reload,
                Err(error) => tracing::error!(
                    target: "oxide_flow::server", error = chain(&error),
                    "Not reloaded; serving on as before"
                ),
            }
        }
    }
}

/// Lets requests under way end, for the grace period at most. A second signal ends the wait.
async fn drain(
    server: &Shared,
    closing: &watch::Sender<bool>,
    wanted: Signalled,
    signals: &mut Signals,
) {
    tracing::info!(target: "oxide_flow::server", "Draining connections");
    server.draining.store(true, Ordering::Relaxed);
    let settings = &server.settings;
    let leave = if wanted == Signalled::Reload { LEAVE } else { Duration::ZERO };
    let gone = all(&server.connections, settings.max_connections);
    if timeout(leave, gone).await.is_ok() {
        return;
    }
    closing.send_replace(true);
    let done = async {
        all(&server.connections, settings.max_connections).await;
        // Also work whose client has hung up.
        all(&server.requests, settings.max_requests).await;
    };
    tokio::select! {
        result = timeout(settings.grace_period, done) => {
            if result.is_err() {
                tracing::warn!(target: "oxide_flow::server", "Requests did not end in time");
            }
        }
        () = signals.end() => {}
    }
}

/// Waits until every permit is free.
async fn all(permits: &Semaphore, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    // It is never closed.
    permits.acquire_many(count).await.map(drop).unwrap_or_default();
}

async fn accept(
    server: Arc<Shared>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    closed: watch::Receiver<bool>,
) {
    let router = routes::router(Arc::clone(&server));
    loop {
        let Ok(permit) = Arc::clone(&server.connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(target: "oxide_flow::server", %error, "Cannot accept");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let connection = Connection {
            router: router.clone(),
            idle: server.settings.idle_timeout,
            closed: closed.clone(),
            permit,
        };
        connection.start(stream, tls.clone());
    }
}

/// One connection from its first byte to its last.
struct Connection {
    router: axum::Router,
    idle: Duration,
    closed: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    fn start(self, stream: TcpStream, tls: Option<TlsAcceptor>) -> JoinHandle<()> {
        tokio::spawn(async move {
            // Answers are small; waiting to fill a packet would only delay them.
            stream.set_nodelay(true).unwrap_or_default();
            let Some(tls) = tls else {
                return self.serve(stream).await;
            };
            match timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve(stream).await,
                Ok(Err(error)) => {
                    tracing::debug!(target: "oxide_flow::server", %error, "No TLS handshake");
                }
                Err(_) => tracing::debug!(target: "oxide_flow::server", "TLS handshake too slow"),
            }
        })
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send) {
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.idle));
        let mut stream = Box::pin(stream);
        let mut closed = self.closed;
        let closing = async move {
            // Whoever could say it is gone only together with the server.
            closed.wait_for(|closed| *closed).await.map(drop).unwrap_or_default();
        };
        let ended = {
            let io = TokioIo::new(stream.as_mut());
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.idle)
                .max_headers(MOST_HEADERS)
                .max_header_size(LARGEST_HEAD)
                .serve_connection(io, TowerToHyperService::new(self.router));
            let mut serving = std::pin::pin!(serving);
            tokio::select! {
                ended = serving.as_mut() => ended,
                () = closing => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        };
        let is_refused = ended.as_ref().is_err_and(hyper::Error::is_parse);
        if let Err(error) = ended {
            tracing::debug!(target: "oxide_flow::server", %error, "Connection broke off");
        }
        let hear_out = hear_out(stream, is_refused);
        timeout(HEAR_OUT, hear_out).await.unwrap_or_default();
        drop(self.permit);
    }
}

/// Takes what a client goes on to send that was answered before it had sent all: closed on that, the
/// connection would be reset, and the client might never see the answer. One whose request was not
/// even understood is waited for, another only if it is sending.
async fn hear_out(mut stream: impl AsyncRead + AsyncWrite + Unpin, is_refused: bool) {
    // What there was to say has been said; the other side may be gone.
    stream.shutdown().await.unwrap_or_default();
    let mut bytes = vec![0; 16 * 1024];
    if !is_refused {
        match timeout(Duration::ZERO, stream.read(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            _ => return,
        }
    }
    while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
}
