//! ICMP errors as the sender gets them: who complains, of what, and about which of its packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};

use super::capture::Capture;
use super::sockopt;
use crate::netns::Netns;
use crate::wait;

/// What is the matter with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// It has been through as many hops as it may.
    TimeExceeded,
    /// Nobody listens there.
    Port,
    /// There is no such host.
    Host,
    /// It is too large for the next hop, which takes so many bytes.
    TooBig(u32),
    /// Anything else.
    Other,
}

/// An ICMP error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complaint {
    /// Who sends it.
    pub from: IpAddr,
    /// What it says.
    pub about: About,
    /// Source and destination of the packet whose start it quotes, as they stood there.
    pub quoted: (SocketAddr, SocketAddr),
}

/// A sender of datagrams in a namespace, and whatever is said of them.
pub struct Sender {
    socket: UdpSocket,
    wire: Capture,
}

impl Sender {
    /// Opens a socket that forbids fragmentation, aimed at `to`, and listens on `eth0`.
    ///
    /// # Errors
    /// When there is no route to `to`, or no `eth0`.
    pub fn new(from: &Netns, to: SocketAddr) -> Result<Self> {
        let wire = Capture::open(from, "eth0")?;
        let socket = from.run(|| {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
            let socket = UdpSocket::bind(any)?;
            sockopt::dont_fragment(&socket)?;
            socket.connect(to).with_context(|| format!("no route to {to}"))?;
            Ok(socket)
        })?;
        Ok(Self { socket, wire })
    }

    /// Sends `size` bytes that pass at most `hops` routers less one.
    ///
    /// # Errors
    /// When the kernel refuses, for one because it knows that they are too many.
    pub fn send(&self, hops: u8, size: usize) -> Result<()> {
        sockopt::hops(&self.socket, hops)?;
        match self.socket.send(&vec![b'.'; size]) {
            // What an earlier packet met, told once.
            Err(error) if is_complaint(&error) => self.socket.send(&vec![b'.'; size]).map(drop),
            sent => sent.map(drop),
        }
        .with_context(|| format!("send {size} bytes"))
    }

    /// What has been said since the last look of anything that this namespace sent.
    ///
    /// # Errors
    /// When the tap fails.
    pub fn overheard(&self) -> Result<Vec<Complaint>> {
        let frames = self.wire.frames()?;
        let all = frames.iter().filter_map(|frame| complaint(&SlicedPacket::from_ethernet(frame).ok()?));
        Ok(all.collect())
    }

    /// What of it is about what this socket sent.
    ///
    /// # Errors
    /// When the tap fails.
    pub fn complaints(&self) -> Result<Vec<Complaint>> {
        let ends = (self.socket.local_addr()?, self.socket.peer_addr()?);
        Ok(self.overheard()?.into_iter().filter(|complaint| complaint.quoted == ends).collect())
    }

    /// Waits for the next complaint.
    ///
    /// # Errors
    /// When there is none within the deadline.
    pub fn complaint(&self) -> Result<Complaint> {
        let what = format!("an ICMP error about what was sent to {}", self.socket.peer_addr()?);
        Ok(wait::until(&what, || Ok(self.complaints()?.first().copied()))?.0)
    }
}

fn is_complaint(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH))
}

fn complaint(packet: &SlicedPacket<'_>) -> Option<Complaint> {
    let (from, about, quote) = match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
            let about = match icmp.icmp_type() {
                Icmpv4Type::TimeExceeded(_) => About::TimeExceeded,
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port) => About::Port,
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host) => About::Host,
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu,
                }) => About::TooBig(next_hop_mtu.into()),
                Icmpv4Type::DestinationUnreachable(_) => About::Other,
                _ => return None,
            };
            (IpAddr::V4(ip.header().source_addr()), about, quoted_v4(icmp.payload())?)
        }
        (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
            let about = match icmp.icmp_type() {
                Icmpv6Type::TimeExceeded(_) => About::TimeExceeded,
                Icmpv6Type::PacketTooBig { mtu } => About::TooBig(mtu),
                Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port) => About::Port,
                Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address) => About::Host,
                Icmpv6Type::DestinationUnreachable(_) => About::Other,
                _ => return None,
            };
            (IpAddr::V6(ip.header().source_addr()), about, quoted_v6(icmp.payload())?)
        }
        _ => return None,
    };
    Some(Complaint { from, about, quoted: quote })
}

/// Only the start of a packet is quoted, so its lengths lead beyond the end and no parser takes it.
fn quoted_v4(quote: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let header = usize::from(quote.first()? & 0x0f) * 4;
    let address =
        |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(quote.get(at..at + 4)?).ok()?)));
    ports(quote.get(header..)?, address(12)?, address(16)?)
}

fn quoted_v6(quote: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let address =
        |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(quote.get(at..at + 16)?).ok()?)));
    ports(quote.get(40..)?, address(8)?, address(24)?)
}

fn ports(udp: &[u8], from: IpAddr, to: IpAddr) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    Some((SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)))
}
