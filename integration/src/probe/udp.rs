//! Datagrams of any size, with fragmentation allowed or forbidden.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::netexec::UDP_PORT;
use super::sockopt::{dont_fragment, report_icmp_errors};
use crate::netns::Netns;

/// How long one answer may take. Generous: a lost packet is what the caller wants to hear about, not a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Sends one request to a [`super::netexec`] server and returns its answer.
///
/// # Errors
/// When nothing comes back within [`PATIENCE`].
pub fn ask(from: &Netns, to: impl Into<IpAddr>, request: &[u8]) -> Result<Vec<u8>> {
    Ok(Asker::new(from, to)?.ask(request, PATIENCE)?.0)
}

/// Echoes `size` bytes of UDP payload and checks that they come back unchanged.
///
/// # Errors
/// When the answer is missing or differs.
pub fn echo(from: &Netns, to: impl Into<IpAddr>, size: usize) -> Result<Duration> {
    Asker::new(from, to)?.echo(size, PATIENCE)
}

/// A socket in one namespace, aimed at one server.
pub struct Asker {
    socket: UdpSocket,
    serial: u8,
}

impl Asker {
    /// Opens a socket in `from`.
    ///
    /// # Errors
    /// When there is no route to `to`.
    pub fn new(from: &Netns, to: impl Into<IpAddr>) -> Result<Self> {
        let to: IpAddr = to.into();
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = from.run(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect((to, UDP_PORT)).with_context(|| format!("no route to {to}"))?;
            report_icmp_errors(&socket)?;
            Ok(socket)
        })?;
        Ok(Self { socket, serial: 0 })
    }

    /// Forbids fragmentation from now on.
    ///
    /// # Errors
    /// When the kernel refuses the option.
    pub fn dont_fragment(self) -> Result<Self> {
        dont_fragment(&self.socket)?;
        Ok(self)
    }

    /// One request, one answer, and the round trip.
    ///
    /// # Errors
    /// When nothing comes back within `patience`.
    pub fn ask(&self, request: &[u8], patience: Duration) -> Result<(Vec<u8>, Duration)> {
        let mut buffer = vec![0; 1 << 16];
        let start = Instant::now();
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.send(request).context("send")?;
        let length = self.socket.recv(&mut buffer).context("no answer")?;
        buffer.truncate(length);
        Ok((buffer, start.elapsed()))
    }

    /// Echoes `size` bytes that differ from the last call's, so that a late answer to that one cannot pass for this.
    ///
    /// # Errors
    /// When the answer is missing or differs.
    pub fn echo(&mut self, size: usize, patience: Duration) -> Result<Duration> {
        self.serial = self.serial.wrapping_add(1);
        let mut request = b"echo ".to_vec();
        request.extend(
            (0..size.saturating_sub(request.len())).map(|at| self.serial.wrapping_add(at.to_le_bytes()[0])),
        );
        let (answer, took) = self.ask(&request, patience)?;
        ensure!(answer == request["echo ".len()..], "the echo of {size} bytes came back changed");
        Ok(took)
    }
}

/// A socket that takes what others send to `port`, for tests that must see that nothing arrives.
pub struct Sink {
    socket: UdpSocket,
}

impl Sink {
    /// Binds `port` on all IPv4 addresses of the namespace.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(ns: &Netns, port: u16) -> Result<Self> {
        let socket = ns.run(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
        Ok(Self { socket })
    }

    /// Binds `port` on all IPv6 addresses of the namespace.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind6(ns: &Netns, port: u16) -> Result<Self> {
        let socket = ns.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
            socket.set_only_v6(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            Ok(socket.into())
        })?;
        Ok(Self { socket })
    }

    /// Waits for one datagram.
    ///
    /// # Errors
    /// When none comes within [`PATIENCE`].
    pub fn next(&self) -> Result<(Vec<u8>, SocketAddr)> {
        self.socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; 1 << 16];
        let (length, from) = self.socket.recv_from(&mut buffer).context("no datagram came")?;
        buffer.truncate(length);
        Ok((buffer, from))
    }

    /// What has arrived already, without waiting.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn arrived(&self) -> Result<Vec<(Vec<u8>, IpAddr)>> {
        self.socket.set_nonblocking(true)?;
        let mut buffer = vec![0; 1 << 16];
        let mut all = Vec::new();
        while let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
            all.push((buffer[..length].to_vec(), from.ip()));
        }
        self.socket.set_nonblocking(false)?;
        Ok(all)
    }
}
