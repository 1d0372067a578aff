//! Two data paths and a wire in memory: what goes in at one node comes out at the other.

mod checksum;
mod ecn;
mod offload;
mod sides;
mod vxlan;

use std::net::{IpAddr, SocketAddr};

use encap::offload::vnet::VNET_LEN;
use encap::{DropReason, Fib, Framing, PeerId, SourceCheck};

use super::*;
use sides::*;

/// Through a plain device.
fn send(shared: &Shared, packets: &[Vec<u8>]) -> (Device, Outer) {
    let inbox = packets.iter().map(|packet| plain_frame(packet)).collect();
    send_through(shared, Framing::Plain, Device { inbox, plain: true, ..Device::default() }, Outer::default())
}

fn receive(shared: &Shared, from: IpAddr, datagrams: Vec<Vec<u8>>) -> Device {
    receive_plain(shared, SocketAddr::new(from, PORT), datagrams)
}

#[test]
fn a_packet_crosses_two_nodes_unchanged_and_is_counted_on_both() {
    let (a, b) = (shared(1), shared(2));
    let packet = udp_packet(pod(1, 3), pod(2, 5), 100);
    let (tun, udp) = send(&a, std::slice::from_ref(&packet));
    assert!(tun.written.is_empty());
    let [sent] = udp.sent.as_slice() else { panic!("one send expected: {:?}", udp.sent) };
    assert_eq!((&sent.datagrams, sent.to.addr), (&vec![packet.clone()], node(2)));

    let delivered = receive(&b, node(1), vec![packet.clone()]);
    assert_eq!(delivered.written, [plain_frame(&packet)]);

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
    let sent: Vec<_> = udp.sent.into_iter().flat_map(|sent| sent.datagrams).collect();
    assert_eq!(sent, packets);
    assert_eq!(a.tx.received(), 1000);
    // 15 full batches of 64 and one of 40.
    assert_eq!(a.tx.batches(), [0, 0, 0, 0, 0, 0, 16, 0, 0]);
}

#[test]
fn a_destination_without_a_lease_is_answered_and_counted() {
    let a = shared(1);
    let (tun, udp) = send(&a, &[udp_packet(pod(1, 3), pod(9, 9), 10)]);
    assert!(udp.sent.is_empty());
    assert_eq!(a.tx.drops(DropReason::NoRoute), 1);
    // Not from an address of this machine: the kernel would not take that from the tunnel.
    let [answer] = tun.written.as_slice() else { panic!("one answer expected: {:?}", tun.written) };
    let answer = etherparse::SlicedPacket::from_ip(&answer[VNET_LEN..]).unwrap();
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
    assert!(!tun.written.is_empty() && tun.written.len() < 100, "{} answers", tun.written.len());
    assert_eq!(a.tx.answers(), tun.written.len() as u64);
}

#[test]
fn strangers_and_impostors_are_dropped() {
    let b = shared(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 10);
    let spoofed = udp_packet(pod(3, 3), pod(2, 5), 10);
    let outside = udp_packet([198, 51, 100, 7], pod(2, 5), 10);
    let from_stranger = receive(&b, IpAddr::from([192, 0, 2, 66]), vec![honest.clone(), outside.clone()]);
    assert!(from_stranger.written.is_empty());
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 2);
    assert_eq!(b.rx.last_refused(), Some(IpAddr::from([192, 0, 2, 66])));
    let from_peer = receive(&b, node(1), vec![spoofed, honest, outside, b"garbage".to_vec()]);
    assert_eq!(from_peer.written.len(), 2);
    assert_eq!(b.rx.drops(DropReason::SpoofedSource), 1);
    assert_eq!(b.rx.drops(DropReason::BadPacket) + b.rx.drops(DropReason::Truncated), 1);
}

#[test]
fn a_pod_behind_its_nodes_masquerading_is_a_stranger() {
    let b = shared(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 10);
    assert!(receive_plain(&b, SocketAddr::new(node(1), 40_123), vec![honest]).written.is_empty());
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 1);
    assert_eq!(b.rx.last_refused(), Some(node(1)));
}

#[test]
fn a_node_sends_from_the_ports_of_its_daemon_only() {
    let b = shared(2);
    let arrived = |port| {
        let packet = udp_packet(pod(1, 3), pod(2, 5), 10);
        receive_plain(&b, SocketAddr::new(node(1), port), vec![packet]).written.len()
    };
    assert_eq!([PORT - 1, PORT, PORT + 15, PORT + 16].map(arrived), [0, 1, 1, 0]);
    assert_eq!(b.rx.drops(DropReason::UnknownSender), 2);
}

#[test]
fn count_mode_delivers_and_flags() {
    let b = Shared::new(SourceCheck::Count, PORT, 1);
    b.publish(table(2, Framing::Plain));
    let tun = receive(&b, node(1), vec![udp_packet(pod(3, 3), pod(2, 5), 10)]);
    assert_eq!(tun.written.len(), 1);
    assert_eq!(b.rx.flagged(DropReason::SpoofedSource), 1);
    assert_eq!(b.rx.drops(DropReason::SpoofedSource), 0);
}

#[test]
fn a_refused_packet_is_a_drop_with_its_reason_and_no_traffic() {
    let a = shared(1);
    let inbox = [plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 10))].into();
    let device = Device { inbox, ..Device::default() };
    send_through(&a, Framing::Plain, device, refusing(DropReason::QueueFull));
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::QueueFull)), (0, 1));
}

#[test]
fn a_failed_device_ends_the_loop_with_its_error() {
    let (mut tun, mut udp) = (Device { broken: true, ..Device::default() }, Outer::default());
    let error = encapsulate(&shared(1), 0, Framing::Plain, &mut tun, &mut udp, || 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(77));
}

#[test]
fn full_batches_do_not_ask_whether_there_is_more() {
    let packets = vec![udp_packet(pod(1, 3), pod(2, 5), 10); 3 * BATCH];
    let (tun, _) = send(&shared(1), &packets);
    assert_eq!(tun.waits, 1);
}

#[test]
fn a_table_swap_takes_effect_with_the_next_batch() {
    let a = shared(1);
    let packet = udp_packet(pod(1, 3), pod(2, 5), 10);
    assert_eq!(send(&a, std::slice::from_ref(&packet)).1.sent.len(), 1);
    a.publish(Fib::default());
    assert!(send(&a, &[packet]).1.sent.is_empty());
    assert_eq!(a.tx.drops(DropReason::NoRoute), 1);
}
