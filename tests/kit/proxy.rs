//! A TCP proxy on the loopback device that makes the network fail when a test says so.
//!
//! Each connection has two threads, one for each direction. A thread peeks before it reads, so what
//! it does with bytes follows from the behaviour at the moment they are passed on, and bytes that
//! were never read make the kernel answer a close with a reset.
//!
//! It knows nothing of the protocol it carries. A test program takes it in with
//! `#[path = "kit/proxy.rs"] mod proxy;`.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of the kit")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::kit::wait_for;

/// What the proxy does with connections and bytes, those under way included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Passes everything on.
    Forward,
    /// Passes everything on, each piece of each direction this much later.
    Delay(Duration),
    /// Accepts connections and says nothing; bytes, and the end of them, wait until the behaviour
    /// changes.
    BlackHole,
    /// Resets a connection as soon as its client sends something.
    Reset,
    /// Passes on what clients send, and throws away what the server answers.
    SwallowReplies,
    /// Throws away the next piece that the server answers, cuts that connection, and is then
    /// [`Forward`](Self::Forward) again. Only for requests that are answered in one piece.
    LoseReply,
}

/// A proxy under way. Dropping it cuts its connections and closes its port.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy on a free loopback port in front of this port.
    pub fn to_port(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            state: Mutex::new(State {
                behaviour: Behaviour::Forward,
                planned: None,
                closed: false,
                accepted: 0,
                asked: 0,
                answered: 0,
                swallowed: 0,
                open: HashMap::new(),
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, shared }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what happens from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
        self.shared.changed.notify_all();
    }

    /// Changes what happens once so many more pieces of answers were passed on. For a request that
    /// is answered in one piece and a behaviour that throws answers away, that is the answer after
    /// so many others; it has been given by then.
    pub fn behave_after(&self, answers: u64, behaviour: Behaviour) {
        self.shared.lock().planned = Some((answers, behaviour));
    }

    /// What happens now.
    pub fn behaviour(&self) -> Behaviour {
        self.shared.lock().behaviour
    }

    /// Closes all connections, as a server does that ends, and waits until their clients can know.
    /// New ones are accepted.
    pub fn cut(&self) {
        let clients = self.shared.cut();
        wait_for("the clients to be told", || {
            clients.iter().all(|&client| self.has_told(client)).then_some(())
        });
    }

    /// Whether the end of the connection to this client has come to its side.
    fn has_told(&self, client: SocketAddr) -> bool {
        let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
        let is_open = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, state, ..] = fields[..] else { return false };
            let ports = (port(local), port(remote));
            // Open, and closed by us but not acknowledged.
            ports == (Some(self.port()), Some(client.port())) && ["01", "04"].contains(&state)
        };
        let connections = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's list");
        !connections.lines().any(is_open)
    }

    /// How many pieces of requests came from clients so far, passed on or not.
    pub fn asked(&self) -> u64 {
        self.shared.lock().asked
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// How many pieces of answers came from the server so far, passed on or not.
    pub fn answered(&self) -> u64 {
        self.shared.lock().answered
    }

    /// How many bytes of answers were thrown away so far.
    pub fn swallowed(&self) -> u64 {
        self.shared.lock().swallowed
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.cut();
        // Wakes the thread that accepts, which then sees that it is over.
        TcpStream::connect(self.address).map(drop).unwrap_or_default();
    }
}

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    behaviour: Behaviour,
    /// The next behaviour, and after how many answers.
    planned: Option<(u64, Behaviour)>,
    closed: bool,
    accepted: u64,
    asked: u64,
    answered: u64,
    swallowed: u64,
    open: HashMap<u64, Arc<Pair>>,
}

/// The two sides of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// Whether the client's side ends with a reset: by being closed with bytes unread, once both
    /// threads are done with it, and without being shut down before.
    reset: AtomicBool,
}

impl Pair {
    /// Ends both directions; either end may have done so before.
    fn shut(&self) {
        self.server.shutdown(Shutdown::Both).unwrap_or_default();
        if !self.reset.load(Ordering::SeqCst) {
            self.client.shutdown(Shutdown::Both).unwrap_or_default();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all connections, and says whose they were.
    fn cut(&self) -> Vec<SocketAddr> {
        let pairs: Vec<Arc<Pair>> = self.lock().open.drain().map(|(_, pair)| pair).collect();
        let clients = pairs.iter().filter_map(|pair| pair.client.peer_addr().ok()).collect();
        pairs.iter().for_each(|pair| pair.shut());
        self.changed.notify_all();
        clients
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().filter_map(Result::ok) {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            // Also while it is a black hole: the server's side waits in silence.
            let Ok(server) = TcpStream::connect(self.target) else { continue };
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap_or_default();
            }
            let pair = Arc::new(Pair { client, server, reset: AtomicBool::new(false) });
            state.accepted += 1;
            let id = state.accepted;
            state.open.insert(id, Arc::clone(&pair));
            for to_server in [true, false] {
                let (shared, pair) = (Arc::clone(self), Arc::clone(&pair));
                thread::spawn(move || {
                    shared.pass_on(id, &pair, to_server);
                    shared.lock().open.remove(&id);
                    pair.shut();
                });
            }
        }
    }

    /// Carries one direction of a connection until it is over.
    fn pass_on(&self, id: u64, pair: &Pair, to_server: bool) {
        let (client, server) = (&pair.client, &pair.server);
        let (mut from, mut to) = if to_server { (client, server) } else { (server, client) };
        let mut bytes = vec![0; 64 * 1024];
        loop {
            // Nothing is taken out of the kernel before it is clear what to do with it.
            let ready = from.peek(&mut bytes).unwrap_or(0);
            if ready == 0 {
                // The end waits as bytes do.
                self.behaviour_for(id);
                return;
            }
            if to_server {
                self.lock().asked += 1;
            } else {
                self.count_answer();
            }
            let Some(behaviour) = self.behaviour_for(id) else { return };
            match behaviour {
                Behaviour::Delay(pause) => thread::sleep(pause),
                Behaviour::Reset if to_server => {
                    pair.reset.store(true, Ordering::SeqCst);
                    return;
                }
                _ => {}
            }
            let Ok(length) = from.read(&mut bytes) else { return };
            if !to_server {
                let mut state = self.lock();
                match behaviour {
                    Behaviour::SwallowReplies => {
                        state.swallowed += length as u64;
                        continue;
                    }
                    Behaviour::LoseReply => {
                        state.swallowed += length as u64;
                        state.behaviour = Behaviour::Forward;
                        return;
                    }
                    _ => {}
                }
            }
            if to.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
    }

    /// Counts a piece of an answer, and does what was planned for it.
    fn count_answer(&self) {
        let mut state = self.lock();
        state.answered += 1;
        match &mut state.planned {
            Some((0, behaviour)) => {
                state.behaviour = *behaviour;
                state.planned = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
    }

    /// The behaviour, once it is no black hole; `None` when the connection was cut meanwhile.
    fn behaviour_for(&self, id: u64) -> Option<Behaviour> {
        let stay = |state: &mut State| {
            state.behaviour == Behaviour::BlackHole && state.open.contains_key(&id)
        };
        let state = self.changed.wait_while(self.lock(), stay);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.open.contains_key(&id).then_some(state.behaviour)
    }
}
