//! One connection to the server, whose reads and writes end at a deadline.
//!
//! Requests are encoded and answers parsed by the `redis` crate. Its own connections have a timeout
//! for each read, so an answer that comes in many pieces may take many times that; and they do not
//! say whether a request that failed had been sent. Both matter here, so the bytes go through
//! [`Timed`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Parser, Value};
use rustix::net::{RecvFlags, recv};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::failure::Failure;

/// Answers are read in pieces of this size.
const PIECE_BYTES: usize = 64 * 1024;

/// One connection, used by one thread at a time.
pub(crate) struct Link {
    stream: BufReader<Stream>,
    parser: Parser,
}

impl Link {
    /// A connection over this socket, encrypted if there is a name that the server must prove.
    ///
    /// # Errors
    /// When rustls does not start.
    pub(crate) fn new(
        socket: Socket,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Self, rustls::Error> {
        let timed = Timed { socket, until: Instant::now() };
        let stream = match tls {
            None => Stream::Plain(timed),
            Some((config, name)) => {
                let client = ClientConnection::new(config, name)?;
                Stream::Encrypted(Box::new(StreamOwned::new(client, timed)))
            }
        };
        let stream = BufReader::with_capacity(PIECE_BYTES, stream);
        Ok(Self { stream, parser: Parser::new() })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub(crate) fn ask(&mut self, request: &Cmd, until: Instant) -> Result<Value, Failure> {
        self.send(&request.get_packed_command(), until)?;
        match self.receive()? {
            Value::ServerError(error) => Err(Failure::Refused(error)),
            value => Ok(value),
        }
    }

    /// Sends several requests at once and waits for all answers, errors among them.
    ///
    /// # Errors
    /// As [`Failure`] says, but for `Refused`.
    pub(crate) fn ask_all(
        &mut self,
        requests: &[Cmd],
        until: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut packed = Vec::new();
        requests.iter().for_each(|request| request.write_packed_command(&mut packed));
        self.send(&packed, until)?;
        requests.iter().map(|_| self.receive()).collect()
    }

    /// Whether the server has not closed the connection, nor said anything that nobody asked for.
    pub(crate) fn is_alive(&self) -> bool {
        let socket = &self.stream.get_ref().timed().socket;
        let mut byte = [0];
        let nothing_there = recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .is_err_and(|error| error == rustix::io::Errno::AGAIN);
        nothing_there && self.stream.buffer().is_empty()
    }

    /// Sends requests and waits for the first bytes of an answer.
    fn send(&mut self, bytes: &[u8], until: Instant) -> Result<(), Failure> {
        let stream = self.stream.get_mut();
        stream.timed_mut().until = until;
        stream.write_all(bytes).and_then(|()| stream.flush()).map_err(Failure::Unsent)?;
        // The parser tells only the text of an error; the first is worth knowing as it is, since
        // it may be what TLS has against a certificate.
        match self.stream.fill_buf() {
            Ok([]) => Err(Failure::Lost(io::Error::other("the server closed the connection"))),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Lost(error)),
        }
    }

    fn receive(&mut self) -> Result<Value, Failure> {
        self.parser.parse_value(&mut self.stream).map_err(|error| {
            if error.is_timeout() {
                Failure::Lost(io::ErrorKind::TimedOut.into())
            } else if error.is_io_error() {
                Failure::Lost(io::Error::other(error))
            } else {
                Failure::Garbled("it is not in the server's protocol")
            }
        })
    }
}

enum Stream {
    Plain(Timed),
    Encrypted(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    fn timed(&self) -> &Timed {
        match self {
            Self::Plain(timed) => timed,
            Self::Encrypted(stream) => stream.get_ref(),
        }
    }

    fn timed_mut(&mut self) -> &mut Timed {
        match self {
            Self::Plain(timed) => timed,
            Self::Encrypted(stream) => stream.get_mut(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(bytes),
            Self::Encrypted(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(bytes),
            Self::Encrypted(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(timed) => timed.flush(),
            Self::Encrypted(stream) => stream.flush(),
        }
    }
}

/// A socket whose reads and writes fail with `TimedOut` at a given time.
struct Timed {
    socket: Socket,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// The kernel says "try again" when the time is over.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        match &mut self.socket {
            Socket::Tcp(socket) => {
                socket.set_read_timeout(Some(left))?;
                socket.read(bytes)
            }
            Socket::Unix(socket) => {
                socket.set_read_timeout(Some(left))?;
                socket.read(bytes)
            }
        }
        .map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match &mut self.socket {
            Socket::Tcp(socket) => {
                socket.set_write_timeout(Some(left))?;
                socket.write(bytes)
            }
            Socket::Unix(socket) => {
                socket.set_write_timeout(Some(left))?;
                socket.write(bytes)
            }
        }
        .map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connected socket of either kind.
pub(crate) enum Socket {
    /// To another machine, or this one.
    Tcp(TcpStream),
    /// To this machine.
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}
