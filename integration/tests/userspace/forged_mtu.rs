//! ICMP errors that tell of a small path MTU and that anybody can forge: the tunnel does not go slower for them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket};
use integration::netns::Netns;
use integration::probe::capture::Capture;
use integration::probe::packet;
use integration::probe::{http, icmp};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Builder, Cluster, Families, Node};
use integration::wait;
use socket2::{Domain, Protocol, Socket, Type};

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("two forged ICMP errors do not make the UDP backend send fragments", udp)
        .check("nor VXLAN in user space, over either family", vxlan)
        .checks()
}

/// Each check has a cluster of its own.
struct Lab;

impl Setup for Lab {
    fn build() -> Result<Self> {
        Ok(Self)
    }

    fn explain(&self) -> String {
        String::new()
    }
}

fn udp(_: &mut Lab, notes: &Notes) -> Result<()> {
    unmoved(Cluster::builder(), 8285, notes)
}

fn vxlan(_: &mut Lab, notes: &Notes) -> Result<()> {
    let backend = r#"{"Type": "vxlan", "Mode": "userspace"}"#;
    unmoved(Cluster::builder().families(Families::Dual).backend(backend), 8472, notes)
}

/// The smallest that a kernel believes of a path of this family, or a little more.
fn small(family_of: IpAddr) -> u16 {
    if family_of.is_ipv4() { 600 } else { 1280 }
}

fn unmoved(builder: Builder, port: u16, notes: &Notes) -> Result<()> {
    let mut cluster = builder.nodes(2).pods_per_node(1).start()?;
    let stranger = cluster.plug("stranger", Ipv4Addr::new(192, 168, 77, 66))?;
    attempt(&cluster, &stranger, port, notes).map_err(|error| error.context(cluster.logs()))
}

fn attempt(cluster: &Cluster, stranger: &Netns, port: u16, notes: &Notes) -> Result<()> {
    let (n1, n2) = (cluster.node("n1")?, cluster.node("n2")?);
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    let carry = || -> Result<()> {
        let body: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 7) as u8).collect();
        for at in to.ips() {
            icmp::ping(from.ns(), at, to.mtu() as usize)?;
            ensure!(http::echo(from.ns(), at, &body)? == body, "changed on the way to {at}");
        }
        Ok(())
    };
    carry()?;
    for at in to.ips() {
        let (own, peer) = (n1.address_like(at), n2.address_like(at));
        forge(stranger, own, &packet::udp((own, port), (peer, port), b"anything")?)?;
        forge(stranger, own, &echo_reply(own, peer)?)?;
        let believed = || Ok(route(n1, peer)?.contains(&format!("mtu {}", small(peer))));
        wait::until_true("the kernel believes that the path is narrow", believed)?;
    }
    let wire = Capture::open(n1.ns(), "eth0")?;
    carry()?;
    let sent = wire.frames()?;
    let packets: Vec<_> =
        sent.iter().filter_map(|frame| SlicedPacket::from_ethernet(frame).ok()?.net).collect();
    let fragments = packets.iter().filter(|packet| is_fragment(packet)).count();
    ensure!(fragments == 0, "{fragments} of {} packets on the wire are fragments", packets.len());
    ensure!(sent.iter().any(|frame| frame.len() >= 1500), "nothing of full size was sent");
    let metrics = n1.daemon()?.metrics()?;
    for offload in ["tso", "uso", "gso", "gro", "coalesce"] {
        let active = metrics.sum("loden_offload_active", &[("offload", offload)]);
        ensure!(active == 1.0, "{offload} was given up");
    }
    notes.add(format!("port {port}: no fragment among {} packets after forged path MTUs", packets.len()));
    Ok(())
}

/// Tells `victim` that what it sent, of which `quoted` is the beginning, is too long for the path.
fn forge(stranger: &Netns, victim: IpAddr, quoted: &[u8]) -> Result<()> {
    let mtu = small(victim);
    let (domain, protocol, header) = match victim {
        IpAddr::V4(_) => {
            let narrow = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
            let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(narrow), quoted);
            (Domain::IPV4, Protocol::ICMPV4, header.to_bytes().to_vec())
        }
        // The kernel fills in the checksum.
        IpAddr::V6(_) => {
            let header = Icmpv6Header::new(Icmpv6Type::PacketTooBig { mtu: mtu.into() });
            (Domain::IPV6, Protocol::ICMPV6, header.to_bytes().to_vec())
        }
    };
    stranger.run(|| {
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("open a raw socket")?;
        socket.send_to(&[&header, quoted].concat(), &SocketAddr::new(victim, 0).into())?;
        Ok(())
    })
}

/// What no socket is asked about before the kernel believes it.
fn echo_reply(from: IpAddr, to: IpAddr) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64).icmpv4_echo_reply(1, 1);
            builder.write(&mut packet, b"anything")?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), 64).icmpv6_echo_reply(1, 1);
            builder.write(&mut packet, b"anything")?;
        }
        _ => anyhow::bail!("from {from} to {to} is no packet"),
    }
    Ok(packet)
}

/// How a node reaches an address, with what its kernel has learned of the path.
fn route(node: &Node, to: IpAddr) -> Result<String> {
    node.ns().command("ip").args(["route", "get", &to.to_string()]).run()
}

fn is_fragment(packet: &NetSlice<'_>) -> bool {
    match packet {
        NetSlice::Ipv4(ip) => ip.is_payload_fragmented(),
        NetSlice::Ipv6(ip) => ip.is_payload_fragmented(),
        NetSlice::Arp(_) => false,
    }
}
