//! Congestion marks on both sides of the tunnel.

use encap::offload::checksum::Sum;
use encap::offload::vnet::VNET_LEN;
use encap::{DropReason, Framing, ecn};

use super::offload_tests::{message, offloaded, plain_frame, receive_marked, send_framed, tcp_frame};
use super::tests::{pod, shared, udp_packet};
use super::vxlan_tests::framing;

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
    let a = offloaded(1);
    let sent = |framing, node, mark| {
        let small = plain_frame(&marked(udp_packet(pod(1, 3), pod(node, 5), 64), mark));
        let mut large = tcp_frame(pod(node, 5), 10_000, 1400);
        let packet = marked(large.split_off(VNET_LEN), mark);
        large.extend(packet);
        let (_, sender) = send_framed(&a, framing, vec![small, large], None);
        sender.sent.iter().map(|sent| sent.to.ecn).collect::<Vec<_>>()
    };
    for mark in [ecn::NOT_ECT, ecn::ECT_1, ecn::ECT_0, ecn::CE] {
        assert_eq!(
            sent(Framing::Plain, 2, mark),
            [ecn::NOT_ECT; 2],
            "flannel would lose what the network says"
        );
        assert_eq!(sent(Framing::Plain, 3, mark), [mark; 2]);
        assert_eq!(sent(framing(1), 2, mark), [mark; 2]);
    }
}

#[test]
fn packets_of_different_marks_do_not_share_a_send() {
    let a = offloaded(1);
    let frame = |mark| plain_frame(&marked(udp_packet(pod(1, 3), pod(3, 5), 64), mark));
    let frames = [ecn::ECT_0, ecn::ECT_0, ecn::CE, ecn::ECT_0].map(frame).to_vec();
    let (_, sender) = send_framed(&a, Framing::Plain, frames, None);
    let sends: Vec<_> = sender.sent.iter().map(|sent| (sent.to.ecn, sent.datagrams.len())).collect();
    assert_eq!(sends, [(ecn::ECT_0, 2), (ecn::CE, 1), (ecn::ECT_0, 1)]);
}

#[test]
fn a_mark_of_the_network_reaches_every_packet_of_a_super_packet() {
    let (a, b) = (offloaded(1), offloaded(2));
    let mut frame = tcp_frame(pod(2, 5), 60_000, 1400);
    let packet = marked(frame.split_off(VNET_LEN), ecn::ECT_0);
    frame.extend_from_slice(&packet);
    for framing_of in [|_| Framing::Plain, framing] {
        let (_, sender) = send_framed(&a, framing_of(1), vec![frame.clone()], None);
        let messages = sender.sent.iter().map(message).collect();
        let device = receive_marked(&b, framing_of(2), messages, false, ecn::CE);
        let expected = [&frame[..VNET_LEN], &marked(packet.clone(), ecn::CE)].concat();
        assert_eq!(device.written, [expected], "joined as ever, marked, and with a right checksum");
    }
}

#[test]
fn what_knows_only_losses_is_lost_and_counted() {
    for b in [offloaded(2), shared(2)] {
        let packet = udp_packet(pod(1, 3), pod(2, 5), 100);
        let device = receive_marked(&b, Framing::Plain, vec![(packet.clone(), None)], false, ecn::CE);
        assert!(device.written.is_empty());
        assert_eq!(b.rx.drops(DropReason::Congestion), 1);
        let device = receive_marked(&b, Framing::Plain, vec![(packet, None)], false, ecn::ECT_1);
        assert_eq!((device.written.len(), b.rx.packets()), (1, 1));
    }
}
