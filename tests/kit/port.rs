//! Ports for servers that are told theirs, and for addresses where nobody listens.
//!
//! A port that the kernel hands out and that is given back may be somebody else's before a server
//! binds it, or while that is down: another test's, or the source of any connection of this machine,
//! even of one that looks for the server. So these come from below the kernel's range, where nobody
//! gets one by chance, and a UDP socket of the same number keeps other tests away.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// The lowest number that is tried.
const LOWEST: u16 = 15_000;

/// A port on the loopback device that no other test has while this lives, whether somebody listens
/// there or not.
pub struct Port {
    number: u16,
    _kept: UdpSocket,
}

impl Port {
    /// One that nobody listens on.
    pub fn reserve() -> Self {
        static TRIED: AtomicU16 = AtomicU16::new(0);
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let range = range.expect("the kernel's range of ports");
        let end: u16 = range.split_whitespace().next().expect("a number").parse().expect("a port");
        let numbers: Vec<u16> = (LOWEST..end).collect();
        // Each program begins elsewhere, which saves it from trying what others have.
        let begin = std::process::id() as usize * 61;
        let found = numbers.iter().find_map(|_| {
            let tried = TRIED.fetch_add(1, Ordering::Relaxed);
            let number = numbers[(begin + usize::from(tried)) % numbers.len()];
            let kept = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
            Some(Self { number, _kept: kept })
        });
        found.expect("a free port")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}
