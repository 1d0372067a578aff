//! What is on the wire, byte by byte, and a peer that is nothing but a UDP socket.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use integration::handmade::{Handmade, PORT};
use integration::probe::bulk::{self, End};
use integration::probe::capture::{Capture, Datagram};
use integration::probe::netexec::UDP_PORT;
use integration::probe::packet;
use integration::probe::udp::{PATIENCE, Sink};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Wire};

/// Outer IPv4 and UDP headers; the tunnel adds nothing else.
const OVERHEAD: usize = 28;
/// A pod that the hand-made peer pretends to have.
const PEER_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 50, 7);

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("a datagram is the outer 28 bytes and the raw inner packet", exact_bytes)
        .check("the tunnel does not touch TTL: one hop on each node", ttl)
        .check("a plain UDP socket can be a peer, both ways", plain_peer)
        .check("a burst arrives as one datagram per packet, in order", burst)
        .check("bulk traffic never exceeds the underlay's MTU", bulk_datagrams)
        .checks()
}

/// Two nodes on a wire that cuts segments as a network card would, and the hand-made peer.
struct Lab {
    cluster: Cluster,
    peer: Handmade,
}

impl Setup for Lab {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(2).wire(Wire::Segmented).start()?;
        let peer = Handmade::plug(&mut cluster, 50)?;
        let mut nodes = cluster.manifests();
        nodes.push(peer.manifest());
        cluster.publish_only(&nodes)?;
        cluster.node("n1")?.wait_lease(&peer.name())?;
        Ok(Self { cluster, peer })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

fn exact_bytes(lab: &mut Lab, _: &Notes) -> Result<()> {
    let (from, to) = (lab.cluster.pod("n1.a")?, lab.cluster.pod("n2.a")?);
    let sink = Sink::bind(to.ns(), 9000)?;
    let inside = Capture::open(from.ns(), "eth0")?;
    let wire = Capture::open(lab.cluster.node("n1")?.ns(), "eth0")?;
    let sender = from.ns().run(|| Ok(UdpSocket::bind((from.ip(), 9001))?))?;
    for size in [0, 1, 100, 1444] {
        let payload = vec![b'p'; size];
        sender.send_to(&payload, (to.ip(), 9000))?;
        ensure!(sink.next()?.0 == payload, "{size} bytes came out changed");
        let outer = only(wire.datagrams(PORT)?)?;
        ensure!(outer.from == (Ipv4Addr::new(192, 168, 77, 1), PORT), "sent from {:?}", outer.from);
        ensure!(outer.to == (Ipv4Addr::new(192, 168, 77, 2), PORT), "sent to {:?}", outer.to);
        ensure!(outer.length == OVERHEAD + outer.payload.len(), "outer headers of another length: {outer:?}");
        ensure!(outer.ecn == 0, "flannel decapsulates without RFC 6040, so the outer header is not-ECT");
        let mut expected = ip_packet(&inside.frames()?)?;
        // The node forwards, so it takes one from TTL (byte 8) and adds it to the checksum (RFC 1624).
        expected[8] -= 1;
        let checksum = u16::from_be_bytes([expected[10], expected[11]]);
        let (sum, carry) = checksum.overflowing_add(0x0100);
        expected[10..12].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        ensure!(
            without_udp_checksum(&outer.payload) == without_udp_checksum(&expected),
            "the inner packet changed"
        );
    }
    Ok(())
}

fn ttl(lab: &mut Lab, _: &Notes) -> Result<()> {
    let (from, to) = (lab.cluster.pod("n1.a")?, lab.cluster.pod("n2.b")?);
    let sink = Sink::bind(to.ns(), 9000)?;
    let inside = Capture::open(to.ns(), "eth0")?;
    let sender = from.ns().run(|| Ok(UdpSocket::bind((from.ip(), 0))?))?;
    sender.send_to(b"ttl", (to.ip(), 9000))?;
    sink.next()?;
    let seen = only(inside.datagrams(9000)?)?;
    ensure!(seen.ttl == 62, "64 became {} over two nodes", seen.ttl);
    Ok(())
}

fn plain_peer(lab: &mut Lab, _: &Notes) -> Result<()> {
    let (node, pod) = (lab.cluster.node("n1")?, lab.cluster.pod("n1.b")?);
    let question = packet::udp((PEER_POD, 5000), (pod.ip(), UDP_PORT), b"hostname")?;
    lab.peer.send(node, &question)?;
    let (datagram, from, port) = lab.peer.receive()?;
    ensure!((from, port) == (node.address(), PORT), "answered from {from}:{port}");
    let (source, destination, payload) = inner(&datagram)?;
    ensure!(source == (pod.ip(), UDP_PORT) && destination == (PEER_POD, 5000));
    ensure!(payload == b"n1.b", "the pod said {}", String::from_utf8_lossy(&payload));

    // And the other way round: the pod asks first.
    let sender = pod.ns().run(|| Ok(UdpSocket::bind((pod.ip(), 6000))?))?;
    sender.set_read_timeout(Some(PATIENCE))?;
    sender.send_to(b"are you there", (PEER_POD, 7000))?;
    let (source, destination, payload) = inner(&lab.peer.receive()?.0)?;
    ensure!(source == (pod.ip(), 6000) && destination == (PEER_POD, 7000) && payload == b"are you there");
    let answer = packet::udp(destination, source, b"here")?;
    lab.peer.send(node, &answer)?;
    let mut buffer = [0; 64];
    let (length, from) = sender.recv_from(&mut buffer).context("the peer's answer did not arrive")?;
    ensure!(&buffer[..length] == b"here" && from.ip() == PEER_POD);
    Ok(())
}

fn burst(lab: &mut Lab, _: &Notes) -> Result<()> {
    let pod = lab.cluster.pod("n1.a")?;
    let sender = pod.ns().run(|| Ok(UdpSocket::bind((pod.ip(), 0))?))?;
    // As many at once as the peer's socket buffer of ordinary size holds.
    for round in 0..8_u32 {
        let packets: Vec<(u32, usize)> =
            (0..64).map(|number| (round * 64 + number, 4 + (number as usize * 37) % 1440)).collect();
        for (number, size) in &packets {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(*size, b'.');
            sender.send_to(&payload, (PEER_POD, 7000))?;
        }
        for (number, size) in &packets {
            let (datagram, _, _) =
                lab.peer.receive().with_context(|| format!("packet {number} is missing"))?;
            let (_, _, payload) = inner(&datagram)?;
            ensure!(
                payload.len() == *size && payload[..4] == number.to_be_bytes(),
                "instead of packet {number}"
            );
        }
    }
    Ok(())
}

fn bulk_datagrams(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let (from, to) = (lab.cluster.pod("n1.a")?, lab.cluster.pod("n2.a")?);
    let wires = [lab.cluster.node("n1")?, lab.cluster.node("n2")?].map(|node| {
        let wire = Capture::open(node.ns(), "eth0")?;
        anyhow::Ok((node.address(), wire))
    });
    let (from, to) = (End { ns: from.ns(), ip: from.ip() }, End { ns: to.ns(), ip: to.ip() });
    let done = bulk::transfer(from, to, 2_000_000, |_| {})?;
    ensure!(done.sent == done.received);
    // Where they leave, since those that arrive are shown as the kernel has merged them for the daemon.
    let mut datagrams = Vec::new();
    for wire in wires {
        let (address, wire) = wire?;
        datagrams.extend(wire.datagrams(PORT)?.into_iter().filter(|datagram| datagram.from.0 == address));
    }
    ensure!(datagrams.len() > 1000, "{} datagrams", datagrams.len());
    for datagram in &datagrams {
        ensure!(datagram.length <= 1500, "a datagram of {} bytes", datagram.length);
        let total = usize::from(u16::from_be_bytes([datagram.payload[2], datagram.payload[3]]));
        ensure!(
            total == datagram.payload.len(),
            "{} bytes carry a packet of {total}",
            datagram.payload.len()
        );
    }
    notes.add(format!("2 MB of TCP in {} datagrams, each one whole inner packet", datagrams.len()));
    Ok(())
}

fn only(mut datagrams: Vec<Datagram>) -> Result<Datagram> {
    ensure!(datagrams.len() == 1, "{} datagrams instead of one: {datagrams:?}", datagrams.len());
    datagrams.pop().context("one datagram")
}

/// The one IPv4 UDP packet among the frames, as it left the pod.
fn ip_packet(frames: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut packets = frames.iter().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
    let packet = packets.next().context("nothing left the pod")?[14..].to_vec();
    ensure!(packets.next().is_none(), "more than one packet left the pod");
    Ok(packet)
}

/// A veth leaves the inner checksum to whoever needs it, so it is still open where the packet leaves the pod.
fn without_udp_checksum(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[26..28].fill(0);
    packet
}

type Endpoint = (Ipv4Addr, u16);

/// Source, destination and payload of a raw inner packet, checksums verified.
fn inner(bytes: &[u8]) -> Result<(Endpoint, Endpoint, Vec<u8>)> {
    let packet = SlicedPacket::from_ip(bytes)?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        anyhow::bail!("not a UDP packet over IPv4: {packet:?}")
    };
    let header = ip.header();
    ensure!(usize::from(header.total_len()) == bytes.len(), "{} bytes after the inner packet", bytes.len());
    ensure!(
        header.to_header().calc_header_checksum() == header.header_checksum(),
        "bad inner header checksum"
    );
    let checksum = udp.to_header().calc_checksum_ipv4(&header.to_header(), udp.payload())?;
    ensure!(checksum == udp.checksum(), "bad inner UDP checksum");
    let from = (header.source_addr(), udp.source_port());
    Ok((from, (header.destination_addr(), udp.destination_port()), udp.payload().to_vec()))
}
