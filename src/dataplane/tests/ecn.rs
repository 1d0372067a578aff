//! Congestion marks on both sides of the tunnel.

use encap::offload::Features;
use encap::offload::checksum::Sum;
use encap::offload::vnet::VNET_LEN;
use encap::{DropReason, Framing, ecn};

use super::sides::*;
use crate::dataplane::Shared;

fn send_in(framing: Framing, frames: Vec<Vec<u8>>) -> Outer {
    let device = Device { inbox: frames.into(), ..Device::default() };
    send_through(&shared_in(1, framing, Features::ALL), framing, device, Outer::default()).1
}

fn receive_marked(shared: &Shared, framing: Framing, messages: Vec<Message>, ecn: u8) -> Device {
    let outer = Outer { inbox: messages.into(), ecn, ..Outer::default() };
    receive_through(shared, framing, outer, Device::default())
}

/// The packet with another mark and a right header checksum.
fn marked(mut packet: Vec<u8>, mark: u8) -> Vec<u8> {
    packet[1] = packet[1] & 0xfc | mark;
    packet[10..12].fill(0);
    let sum = Sum::default().bytes(&packet[..20]).checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn the_outer_packet_bears_the_inner_mark_toward_those_that_understand_it() {
    let sent = |framing, node, mark| {
        let small = plain_frame(&marked(udp_packet(pod(1, 3), pod(node, 5), 64), mark));
        let mut large = tcp_frame(pod(node, 5), 10_000, 1400);
        let packet = marked(large.split_off(VNET_LEN), mark);
        large.extend(packet);
        let sender = send_in(framing, vec![small, large]);
        sender.sent.iter().map(|sent| sent.to.ecn).collect::<Vec<_>>()
    };
    for mark in [ecn::NOT_ECT, ecn::ECT_1, ecn::ECT_0, ecn::CE] {
        assert_eq!(
            sent(Framing::Plain, 2, mark),
            [ecn::NOT_ECT; 2],
            "flannel would lose what the network says"
        );
        assert_eq!(sent(Framing::Plain, 3, mark), [mark; 2]);
        assert_eq!(sent(vxlan_of(1), 2, mark), [mark; 2]);
    }
}

#[test]
fn packets_of_different_marks_do_not_share_a_send() {
    let frame = |mark| plain_frame(&marked(udp_packet(pod(1, 3), pod(3, 5), 64), mark));
    let frames = [ecn::ECT_0, ecn::ECT_0, ecn::CE, ecn::ECT_0].map(frame).to_vec();
    let sender = send_in(Framing::Plain, frames);
    let sends: Vec<_> = sender.sent.iter().map(|sent| (sent.to.ecn, sent.datagrams.len())).collect();
    assert_eq!(sends, [(ecn::ECT_0, 2), (ecn::CE, 1), (ecn::ECT_0, 1)]);
}

#[test]
fn a_mark_of_the_network_reaches_every_packet_of_a_super_packet() {
    let mut frame = tcp_frame(pod(2, 5), 60_000, 1400);
    let packet = marked(frame.split_off(VNET_LEN), ecn::ECT_0);
    frame.extend_from_slice(&packet);
    for framing_of in [(|_| Framing::Plain) as fn(u8) -> Framing, vxlan_of] {
        let b = shared_in(2, framing_of(2), Features::ALL);
        let sender = send_in(framing_of(1), vec![frame.clone()]);
        let messages = sender.sent.iter().map(message).collect();
        let device = receive_marked(&b, framing_of(2), messages, ecn::CE);
        let expected = [&frame[..VNET_LEN], &marked(packet.clone(), ecn::CE)].concat();
        assert_eq!(device.written, [expected], "joined as ever, marked, and with a right checksum");
    }
}

#[test]
fn what_knows_only_losses_is_lost_and_counted() {
    for b in [offloaded(2), shared(2)] {
        let packet = udp_packet(pod(1, 3), pod(2, 5), 100);
        let device = receive_marked(&b, Framing::Plain, vec![(packet.clone(), None)], ecn::CE);
        assert!(device.written.is_empty());
        assert_eq!(b.rx.drops(DropReason::Congestion), 1);
        let device = receive_marked(&b, Framing::Plain, vec![(packet, None)], ecn::ECT_1);
        assert_eq!((device.written.len(), b.rx.packets()), (1, 1));
    }
}
