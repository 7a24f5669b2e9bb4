//! A port of the loopback device for a server of another program.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port that is kept from everybody who asks the system for a free one, also while its server is
/// down: it is bound here, and nobody listens. The server may bind it too, since both say that the
/// address may be used again.
pub struct Port {
    number: u16,
    _bound: TcpSocket,
}

impl Port {
    /// A port that is free now.
    pub fn reserve() -> Self {
        let bound = TcpSocket::new_v4().expect("a socket");
        bound.set_reuseaddr(true).expect("an option");
        bound.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        Self { number: bound.local_addr().expect("an address").port(), _bound: bound }
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}
