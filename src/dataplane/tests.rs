//! Two data paths and a wire in memory: what goes in at one node comes out at the other.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use encap::{DropReason, Fib, MacAddr, NextHop, Owner, PeerCaps, PeerId, SourceCheck};
use etherparse::PacketBuilder;

use super::*;
use crate::ports::{Batch, PacketIo, Received, Transmit, Wake};

pub(super) const PORT: u16 = 8285;

/// One side of a data path, fed and emptied by a test.
#[derive(Default)]
pub(super) struct Side {
    inbox: VecDeque<(Vec<u8>, Option<SocketAddr>)>,
    pub(super) outbox: Vec<(Vec<u8>, Option<IpAddr>)>,
    refuse: Option<DropReason>,
    broken: bool,
    /// The mark on what comes in.
    ecn: u8,
    waits: Cell<usize>,
}

impl PacketIo for Side {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        if self.broken {
            return Err(io::Error::from_raw_os_error(77));
        }
        for slot in 0..batch.capacity() {
            let Some((packet, from)) = self.inbox.pop_front() else { break };
            batch.slot_mut(slot)[..packet.len()].copy_from_slice(&packet);
            batch.push(Received { len: packet.len(), from, truncated: false, segment: None, ecn: self.ecn });
        }
        Ok(())
    }

    fn send(
        &mut self,
        batch: &Batch,
        packets: &[Transmit],
        mut outcome: impl FnMut(&Transmit, Result<(), DropReason>),
    ) {
        for packet in packets {
            match self.refuse {
                Some(reason) => outcome(packet, Err(reason)),
                None => {
                    self.outbox.push((batch.packet(packet.slot)[..packet.len].to_vec(), packet.to));
                    outcome(packet, Ok(()));
                }
            }
        }
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.waits.set(self.waits.get() + 1);
        Ok(if self.inbox.is_empty() { Wake::Stop } else { Wake::Ready })
    }
}

pub(super) fn node(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 77, n))
}

/// Address of a node's VXLAN device.
pub(super) fn vtep(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub(super) fn pod(n: u8, host: u8) -> [u8; 4] {
    [10, 244, n, host]
}

/// The table of node `own` in a cluster of three. The third takes all that Loden nodes do, the others are as flannel.
fn table(own: u8) -> Fib {
    let mut fib = Fib::builder();
    fib.network("10.244.0.0/16".parse().unwrap());
    for n in 1..=3 {
        let prefix = format!("10.244.{n}.0/24").parse().unwrap();
        if n == own {
            fib.route(prefix, Owner::Local);
            continue;
        }
        let peer = PeerId(u32::from(n));
        let caps =
            PeerCaps { ecn: n == 3, partial_checksum: n == 3, flow_ports: n == 3, ..PeerCaps::default() };
        let hop = NextHop { peer, addr: node(n), mtu: 1472, caps, mac: Some(vtep(n)) };
        fib.route(prefix, Owner::Peer(hop)).sender(node(n), peer);
    }
    fib.build()
}

pub(super) fn shared(own: u8) -> Arc<Shared> {
    let shared = Shared::new(SourceCheck::Enforce, PORT, 1);
    shared.publish(table(own));
    shared
}

pub(super) fn udp_packet(from: [u8; 4], to: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from, to, 64).udp(4000, 5000);
    builder.write(&mut packet, &vec![0x5a; payload]).unwrap();
    packet
}

fn send(shared: &Shared, packets: &[Vec<u8>]) -> (Side, Side) {
    let inbox = packets.iter().map(|packet| (packet.clone(), None)).collect();
    let (mut tun, mut udp) = (Side { inbox, ..Side::default() }, Side::default());
    encapsulate(shared, &mut tun, &mut udp, || 0).unwrap();
    (tun, udp)
}

pub(super) fn receive(shared: &Shared, from: IpAddr, datagrams: Vec<Vec<u8>>) -> Side {
    receive_from(shared, SocketAddr::new(from, PORT), datagrams)
}

fn receive_from(shared: &Shared, from: SocketAddr, datagrams: Vec<Vec<u8>>) -> Side {
    let inbox = datagrams.into_iter().map(|datagram| (datagram, Some(from))).collect();
    let (mut udp, mut tun) = (Side { inbox, ..Side::default() }, Side::default());
    decapsulate(shared, 0, &mut udp, &mut tun).unwrap();
    tun
}

#[test]
fn a_packet_crosses_two_nodes_unchanged_and_is_counted_on_both() {
    let (a, b) = (shared(1), shared(2));
    let packet = udp_packet(pod(1, 3), pod(2, 5), 100);
    let (tun, udp) = send(&a, std::slice::from_ref(&packet));
    assert!(tun.outbox.is_empty());
    assert_eq!(udp.outbox, [(packet.clone(), Some(node(2)))]);

    let delivered = receive(&b, node(1), vec![packet.clone()]);
    assert_eq!(delivered.outbox, [(packet.clone(), None)]);

    let bytes = packet.len() as u64;
    assert_eq!((a.tx.packets(), a.tx.bytes()), (1, bytes));
    assert_eq!(a.tx.peer(PeerId(2)), PeerTotals { packets: 1, bytes });
    assert_eq!(b.rx.peer(PeerId(1)), PeerTotals { packets: 1, bytes });
    assert_eq!(a.tx.peer(PeerId(3)), PeerTotals::default());
}

#[test]
fn order_is_kept_over_many_batches() {
    let a = shared(1);
    let packets: Vec<_> =
        (0..1000).map(|n| udp_packet(pod(1, 3), pod(2 + (n % 2) as u8, 5), 1 + n % 700)).collect();
    let (_, udp) = send(&a, &packets);
    let sent: Vec<_> = udp.outbox.into_iter().map(|(packet, _)| packet).collect();
    assert_eq!(sent, packets);
    assert_eq!(a.tx.received(), 1000);
    // 15 full batches of 64 and one of 40.
    assert_eq!(a.tx.batches(), [0, 0, 0, 0, 0, 0, 16, 0, 0]);
}

#[test]
fn a_destination_without_a_lease_is_answered_and_counted() {
    let a = shared(1);
    let (tun, udp) = send(&a, &[udp_packet(pod(1, 3), pod(9, 9), 10)]);
    assert!(udp.outbox.is_empty());
    assert_eq!(a.tx.drops(DropReason::NoRoute), 1);
    // Not from an address of this machine: the kernel would not take that from the tunnel.
    let [(answer, None)] = tun.outbox.as_slice() else { panic!("one answer expected: {:?}", tun.outbox) };
    let answer = etherparse::SlicedPacket::from_ip(answer).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &answer.net else { panic!("no IPv4") };
    assert_eq!(ip.header().source(), pod(9, 9));
    assert_eq!(ip.header().destination(), pod(1, 3));
    let Some(etherparse::TransportSlice::Icmpv4(icmp)) = answer.transport else { panic!("no ICMP") };
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 0));
    assert_eq!(a.tx.answers(), 1);
}

#[test]
fn answers_are_limited_and_drops_are_counted_all_the_same() {
    let a = shared(1);
    let (tun, _) = send(&a, &vec![udp_packet(pod(1, 3), pod(9, 9), 10); 500]);
    assert_eq!(a.tx.drops(DropReason::NoRoute), 500);
    assert!(!tun.outbox.is_empty() && tun.outbox.len() < 100, "{} answers", tun.outbox.len());
    assert_eq!(a.tx.answers(), tun.outbox.len() as u64);
}

#[test]
fn strangers_and_impostors_are_dropped() {
    let b = shared(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 10);
    let spoofed = udp_packet(pod(3, 3), pod(2, 5), 10);
    let outside = udp_packet([198, 51, 100, 7], pod(2, 5), 10);
    let from_stranger = receive(&b, IpAddr::from([192, 0, 2, 66]), vec![honest.clone(), outside.clone()]);
    assert!(from_stranger.outbox.is_empty());
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 2);
    assert_eq!(b.rx.last_refused(), Some(IpAddr::from([192, 0, 2, 66])));
    let from_peer = receive(&b, node(1), vec![spoofed, honest, outside, b"garbage".to_vec()]);
    assert_eq!(from_peer.outbox.len(), 2);
    assert_eq!(b.rx.drops(DropReason::SpoofedSource), 1);
    assert_eq!(b.rx.drops(DropReason::BadPacket) + b.rx.drops(DropReason::Truncated), 1);
}

#[test]
fn a_pod_behind_its_nodes_masquerading_is_a_stranger() {
    let b = shared(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 10);
    assert!(receive_from(&b, SocketAddr::new(node(1), 40_123), vec![honest]).outbox.is_empty());
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 1);
    assert_eq!(b.rx.last_refused(), Some(node(1)));
}

#[test]
fn a_node_sends_from_the_ports_of_its_daemon_only() {
    let b = shared(2);
    let arrived = |port| {
        let packet = udp_packet(pod(1, 3), pod(2, 5), 10);
        receive_from(&b, SocketAddr::new(node(1), port), vec![packet]).outbox.len()
    };
    assert_eq!([PORT - 1, PORT, PORT + 15, PORT + 16].map(arrived), [0, 1, 1, 0]);
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 2);
}

#[test]
fn count_mode_delivers_and_flags() {
    let b = Shared::new(SourceCheck::Count, PORT, 1);
    b.publish(table(2));
    let tun = receive(&b, node(1), vec![udp_packet(pod(3, 3), pod(2, 5), 10)]);
    assert_eq!(tun.outbox.len(), 1);
    assert_eq!(b.rx.flagged(DropReason::SpoofedSource), 1);
    assert_eq!(b.rx.drops(DropReason::SpoofedSource), 0);
}

#[test]
fn a_refused_packet_is_a_drop_with_its_reason_and_no_traffic() {
    let a = shared(1);
    let inbox = VecDeque::from([(udp_packet(pod(1, 3), pod(2, 5), 10), None)]);
    let mut tun = Side { inbox, ..Side::default() };
    let mut udp = Side { refuse: Some(DropReason::QueueFull), ..Side::default() };
    encapsulate(&a, &mut tun, &mut udp, || 0).unwrap();
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::QueueFull)), (0, 1));
}

#[test]
fn a_failed_device_ends_the_loop_with_its_error() {
    let mut tun = Side { broken: true, ..Side::default() };
    let error = encapsulate(&shared(1), &mut tun, &mut Side::default(), || 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(77));
}

#[test]
fn full_batches_do_not_ask_whether_there_is_more() {
    let packets = vec![udp_packet(pod(1, 3), pod(2, 5), 10); 3 * BATCH];
    let (tun, _) = send(&shared(1), &packets);
    assert_eq!(tun.waits.get(), 1);
}

#[test]
fn a_table_swap_takes_effect_with_the_next_batch() {
    let a = shared(1);
    let packet = udp_packet(pod(1, 3), pod(2, 5), 10);
    assert_eq!(send(&a, std::slice::from_ref(&packet)).1.outbox.len(), 1);
    a.publish(Fib::default());
    assert!(send(&a, &[packet]).1.outbox.is_empty());
    assert_eq!(a.tx.drops(DropReason::NoRoute), 1);
}
