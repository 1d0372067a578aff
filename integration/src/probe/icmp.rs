//! ICMP echo over the kernel's ping sockets: no privilege, no one else's replies (icmp(7), ping_group_range).

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::sockopt::{dont_fragment, report_icmp_errors};
use super::udp::PATIENCE;
use crate::netns::Netns;

const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;
/// Type, code, checksum, identifier, sequence (RFC 792, RFC 4443).
const ICMP_HEADER: usize = 8;

/// One echo of an IP packet `length` bytes long (headers included) that must not be fragmented.
///
/// # Errors
/// When the kernel refuses to send it (too long for the path), or no reply comes within [`PATIENCE`].
pub fn ping(from: &Netns, to: impl Into<IpAddr>, length: usize) -> Result<Duration> {
    Pinger::new(from, to)?.ping(length, PATIENCE)
}

/// A ping socket in one namespace, aimed at one address.
pub struct Pinger {
    socket: Socket,
    to: IpAddr,
    sequence: u16,
}

impl Pinger {
    /// Opens the socket in `from`, with fragmentation forbidden.
    ///
    /// # Errors
    /// When there is no route to `to`.
    pub fn new(from: &Netns, to: impl Into<IpAddr>) -> Result<Self> {
        let to = to.into();
        let socket = from.run(|| {
            let (domain, protocol) = match to {
                IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
                IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
            };
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).context("open a ping socket")?;
            if to.is_ipv4() {
                dont_fragment(&socket)?;
                report_icmp_errors(&socket)?;
            }
            socket.connect(&SocketAddr::new(to, 0).into()).with_context(|| format!("no route to {to}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket, to, sequence: 0 })
    }

    /// One echo of `length` bytes, IP header included.
    ///
    /// # Errors
    /// What the kernel or a router answered instead of the reply, or that nothing came.
    pub fn ping(&mut self, length: usize, patience: Duration) -> Result<Duration> {
        self.socket.set_read_timeout(Some(patience))?;
        // Before the send: between namespaces of one machine the reply is often here when send returns.
        let start = Instant::now();
        self.send(length)?;
        loop {
            let mut buffer = [0; ICMP_HEADER];
            match (&self.socket).read(&mut buffer) {
                Ok(_) if sequence_of(&buffer) == Some(self.sequence) => return Ok(start.elapsed()),
                // A late reply to an earlier echo.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    bail!("no reply from {} to an echo of {length} bytes within {patience:?}", self.to)
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("echo of {length} bytes to {}", self.to));
                }
            }
        }
    }

    fn send(&mut self, length: usize) -> Result<()> {
        let (kind, ip_header) = if self.to.is_ipv4() { (ECHO_V4, 20) } else { (ECHO_V6, 40) };
        self.sequence = self.sequence.wrapping_add(1);
        // The kernel fills in the identifier and the checksum.
        let mut message = vec![kind, 0, 0, 0, 0, 0];
        message.extend(self.sequence.to_be_bytes());
        message.resize(length.saturating_sub(ip_header).max(ICMP_HEADER), b'.');
        self.socket
            .send(&message)
            .with_context(|| format!("send an echo of {length} bytes to {}", self.to))?;
        Ok(())
    }
}

/// The sequence number, if the message is an echo reply.
fn sequence_of(message: &[u8; ICMP_HEADER]) -> Option<u16> {
    (message[0] == 0 || message[0] == 129).then(|| u16::from_be_bytes([message[6], message[7]]))
}
