//! The loops with VXLAN around the packets.

use encap::offload::Features;
use encap::offload::vnet::{VNET_LEN, VnetHeader};
use encap::{DropReason, Vni, vxlan};

use super::sides::*;
use crate::dataplane::Shared;

fn send(shared: &Shared, frames: Vec<Vec<u8>>) -> Outer {
    let device = Device { inbox: frames.into(), ..Device::default() };
    send_through(shared, vxlan_of(1), device, Outer::default()).1
}

fn receive(shared: &Shared, messages: Vec<Message>) -> Device {
    let outer = Outer { inbox: messages.into(), ..Outer::default() };
    receive_through(shared, vxlan_of(2), outer, Device::default())
}

/// What stands before a packet from node 1 to node 2.
fn header() -> [u8; vxlan::HEADERS] {
    vxlan::encapsulate_headers(Vni::FLANNEL, vtep(1), vtep(2), encap::Family::V4)
}

#[test]
fn a_super_packet_crosses_two_nodes_and_its_payload_is_never_copied() {
    let (a, b) = (offloaded_vxlan(1), offloaded_vxlan(2));
    let frame = tcp_frame(pod(2, 5), 60_000, 1400);
    let sender = send(&a, vec![frame.clone()]);
    let datagrams: Vec<_> = sender.sent.iter().flat_map(|sent| &sent.datagrams).collect();
    assert_eq!(datagrams.len(), 43);
    assert!(datagrams.iter().all(|datagram| datagram.starts_with(&header())));
    assert!(sender.sent.iter().all(|sent| sent.in_place * 2 == sent.parts));
    assert_eq!((a.tx.packets(), a.tx.bytes()), (43, 60_000 + 43 * 40), "what VXLAN adds is not counted");

    let device = receive(&b, sender.sent.iter().map(message).collect());
    assert_eq!(device.written, [frame]);
    assert_eq!(device.in_place, [(43, 44)]);
    assert_eq!((b.rx.packets(), b.rx.bytes()), (a.tx.packets(), a.tx.bytes()));
}

#[test]
fn small_packets_get_their_header_in_place_and_share_a_send() {
    let a = offloaded_vxlan(1);
    let packets = [100, 100, 60].map(|size| udp_packet(pod(1, 3), pod(2, 5), size));
    let frames = packets.iter().map(|packet| plain_frame(packet)).collect();
    let sender = send(&a, frames);
    assert_eq!(sender.sent.len(), 1);
    let sent = &sender.sent[0];
    let expected: Vec<_> = packets.iter().map(|packet| [&header()[..], packet].concat()).collect();
    assert_eq!(sent.datagrams, expected);
    assert_eq!(sent.parts, 3, "header and packet are one part");
    let device = receive(&offloaded_vxlan(2), sender.sent.iter().map(message).collect());
    assert_eq!(device.in_place.len(), 1, "and come out as one super-packet");
}

#[test]
fn what_a_kernel_left_unfinished_is_written_with_what_is_left_to_do() {
    let b = shared_in(2, vxlan_of(2), Features::NONE);
    let super_packet = tcp_frame(pod(2, 5), 40_000, 1432);
    let single = tcp_frame(pod(2, 5), 100, 1400);
    let before = udp_packet(pod(1, 3), pod(2, 5), 10);
    let datagrams = [before.as_slice(), &super_packet[VNET_LEN..], &single[VNET_LEN..]]
        .map(|packet| ([&header()[..], packet].concat(), None));
    let device = receive(&b, datagrams.into());
    assert_eq!(device.written.len(), 3);
    assert_eq!(device.written[0], plain_frame(&before));
    assert_eq!(device.written[1], super_packet, "checksum and segment size as the sender's kernel had them");
    let vnet = VnetHeader::parse(&device.written[2]).unwrap();
    assert!(vnet.partial.is_some() && vnet.gso.is_none());
    assert_eq!(b.rx.packets(), 1 + 28 + 1);
}

#[test]
fn each_frame_that_is_not_for_us_is_counted_for_its_reason() {
    let b = shared_in(2, vxlan_of(2), Features::NONE);
    let packet = udp_packet(pod(1, 3), pod(2, 5), 10);
    let changed = |at: usize, value: u8| {
        let mut datagram = [&header()[..], &packet].concat();
        datagram[at] = value;
        (datagram, None)
    };
    let refused = vec![changed(0, 0), changed(6, 2), changed(13, 9), changed(21, 6), (Vec::new(), None)];
    let device = receive(&b, refused);
    assert!(device.written.is_empty());
    let count = |reason| b.rx.drops(reason);
    assert_eq!((count(DropReason::WrongVni), count(DropReason::WrongMac)), (1, 1));
    assert_eq!((count(DropReason::NotIp), count(DropReason::BadPacket)), (1, 2));
}
