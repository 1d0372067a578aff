//! What really went over a wire: an AF_PACKET socket, read after the fact.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};

use crate::netns::Netns;

/// Room for a burst between two reads.
const BUFFER: usize = 4 << 20;

/// A tap on one device. The kernel collects from the moment it is opened.
pub struct Capture {
    socket: OwnedFd,
    device: usize,
}

/// A UDP datagram seen on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Source address and port.
    pub from: (Ipv4Addr, u16),
    /// Destination address and port.
    pub to: (Ipv4Addr, u16),
    /// Total length of the IP packet, bytes, as its header says.
    pub length: usize,
    /// Whether the don't-fragment bit is set.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// The two ECN bits.
    pub ecn: u8,
    /// What the datagram carries.
    pub payload: Vec<u8>,
}

impl Capture {
    /// Opens a tap on `device` in `ns`.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn open(ns: &Netns, device: &str) -> Result<Self> {
        ns.run(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .context("open a packet socket")?;
            setsockopt(&socket, RcvBuf, &BUFFER)?;
            let device = if_nametoindex(device).with_context(|| format!("no device {device}"))?;
            Ok(Self { socket, device: usize::try_from(device)? })
        })
    }

    /// All frames collected since the last call.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((length, Some(from))) if from.ifindex() == self.device => {
                    frames.push(buffer[..length].to_vec());
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error).context("read the packet socket"),
            }
        }
    }

    /// The UDP datagrams among [`Capture::frames`] that go to or come from `port`.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn datagrams(&self, port: u16) -> Result<Vec<Datagram>> {
        let found = self.frames()?;
        Ok(found
            .iter()
            .filter_map(|frame| datagram(&SlicedPacket::from_ethernet(frame).ok()?))
            .filter(|datagram| datagram.from.1 == port || datagram.to.1 == port)
            .collect())
    }
}

fn datagram(packet: &SlicedPacket<'_>) -> Option<Datagram> {
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let ip = ip.header();
    Some(Datagram {
        from: (ip.source_addr(), udp.source_port()),
        to: (ip.destination_addr(), udp.destination_port()),
        length: usize::from(ip.total_len()),
        dont_fragment: ip.dont_fragment(),
        ttl: ip.ttl(),
        ecn: ip.ecn().value(),
        payload: udp.payload().to_vec(),
    })
}
