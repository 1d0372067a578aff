//! The loops with offloads.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::num::NonZeroU16;

use allocation_counter::measure;
use encap::offload::vnet::{VNET_LEN, VnetHeader};
use encap::offload::{Feature, Features};
use encap::{DropReason, Framing, PeerId};

use super::sides::*;
use crate::dataplane::{decapsulate, encapsulate};
use crate::ports::{SendError, Target};

#[test]
fn a_super_packet_crosses_two_nodes_and_its_payload_is_never_copied() {
    let (a, b) = (offloaded(1), offloaded(2));
    let frame = tcp_frame(pod(2, 5), 60_000, 1400);
    let (_, sender) = send(&a, vec![frame.clone()], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [43]);
    for sent in &sender.sent {
        assert_eq!(sent.to, Target { addr: node(2), ecn: 0, flow: None });
        // Of each pair of headers and payload the payload lies where it was read, the headers do not.
        assert_eq!((sent.in_place * 2, sent.parts), (sent.parts, 2 * sent.datagrams.len()));
    }
    let bytes = 60_000 + 43 * 40;
    assert_eq!((a.tx.packets(), a.tx.bytes(), a.tx.received()), (43, bytes, 43));

    let device = receive(&b, sender.sent.iter().map(message).collect(), false);
    assert_eq!(device.written.len(), 1);
    let written = &device.written[0];
    assert_eq!(VnetHeader::parse(written), VnetHeader::parse(&frame));
    assert!(written == &frame, "what comes out is what went in, checksum and all");
    assert_eq!(device.in_place, [(43, 44)]);
    assert_eq!((b.rx.packets(), b.rx.bytes(), b.rx.received()), (43, bytes, 43));
    assert_eq!(b.rx.peer(PeerId(1)), a.tx.peer(PeerId(2)));
}

/// Node 3 said so; in VXLAN all do.
#[test]
fn flows_have_ports_of_their_own_toward_those_who_take_them() {
    let ports = |framing, to| {
        let flows = (1..=30)
            .flat_map(|host| [tcp_frame(pod(to, host), 5000, 1400), tcp_frame(pod(to, host), 5000, 1400)]);
        let device = Device { inbox: flows.collect(), ..Device::default() };
        let shared = shared_in(1, framing, Features::ALL);
        let (_, sender) = send_through(&shared, framing, device, Outer::default());
        sender.sent.iter().map(|sent| sent.to.flow).collect::<Vec<_>>()
    };
    assert_eq!(ports(Framing::Plain, 2), [None; 60]);
    for ports in [ports(Framing::Plain, 3), ports(vxlan_of(1), 2)] {
        assert!(ports.chunks(2).all(|of_a_flow| of_a_flow[0] == of_a_flow[1]), "{ports:?}");
        assert!((0..4).all(|port| ports.contains(&Some(port))), "{ports:?}");
    }
}

#[test]
fn what_exceeds_one_send_is_halved() {
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 65_400, 1400)], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [24, 23]);
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 1000, 10)], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [50, 50]);
}

#[test]
fn small_packets_share_a_send_in_order_and_without_a_copy() {
    let a = offloaded(1);
    let sizes = [100, 100, 60, 100, 100, 200, 10];
    let frames = sizes.map(|size| plain_frame(&udp_packet(pod(1, 3), pod(2, 5), size))).to_vec();
    let (_, sender) = send(&a, frames.clone(), None);
    let lens = |sent: &Sent| sent.datagrams.iter().map(|datagram| datagram.len() - 28).collect::<Vec<_>>();
    assert_eq!(
        sender.sent.iter().map(lens).collect::<Vec<_>>(),
        [vec![100, 100, 60], vec![100, 100], vec![200, 10]]
    );
    assert!(sender.sent.iter().all(|sent| sent.in_place == sent.parts));
    let came: Vec<_> = sender.sent.iter().flat_map(|sent| sent.datagrams.clone()).collect();
    assert_eq!(came, frames.iter().map(|frame| frame[VNET_LEN..].to_vec()).collect::<Vec<_>>());
}

#[test]
fn a_super_packet_does_not_overtake_what_waits() {
    let small = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 100));
    let frames = vec![small.clone(), tcp_frame(pod(2, 5), 3000, 1000), small.clone(), small];
    let (_, sender) = send(&offloaded(1), frames, None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [1, 3, 2]);
}

#[test]
fn the_open_checksum_of_a_single_packet_is_finished() {
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 100, 1400)], None);
    let packet = etherparse::SlicedPacket::from_ip(&sender.sent[0].datagrams[0]).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (&packet.net, &packet.transport)
    else {
        panic!("not TCP: {packet:?}")
    };
    assert_eq!(tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()), Ok(tcp.checksum()));
}

#[test]
fn a_kernel_that_cannot_segment_gets_packets_one_by_one_from_then_on() {
    let a = offloaded(1);
    let frames = vec![tcp_frame(pod(2, 5), 3000, 1000); 3];
    let (_, sender) = send(&a, frames, Some(SendError::Unsupported));
    assert_eq!((sender.refused, sender.sent.len()), (1, 9));
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::SendFailed)), (9, 0));
    assert_eq!(a.offloads.failed().to_string(), "gso");
    assert!(!a.offloads.active().has(Feature::Gso) && a.offloads.active().has(Feature::Tso));
}

#[test]
fn a_path_that_is_too_small_for_one_send_costs_only_that_send() {
    let a = offloaded(1);
    let (_, sender) = send(&a, vec![tcp_frame(pod(2, 5), 3000, 1000); 2], Some(SendError::TooMuch));
    assert_eq!((sender.refused, sender.sent.len(), a.tx.packets()), (2, 6, 6));
    assert!(a.offloads.active().has(Feature::Gso));
    let lost = Some(SendError::Dropped(DropReason::QueueFull));
    send(&a, vec![tcp_frame(pod(2, 5), 3000, 1000)], lost);
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::QueueFull)), (6, 3));
}

#[test]
fn a_device_that_refuses_super_packets_gets_single_ones_from_then_on() {
    let b = offloaded(2);
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 3000, 1000); 2], None);
    let messages: Vec<_> = sender.sent.iter().map(message).collect();
    let device = receive(&b, messages, true);
    let expected: Vec<_> =
        sender.sent.iter().flat_map(|sent| &sent.datagrams).map(|datagram| plain_frame(datagram)).collect();
    assert_eq!(device.written, expected);
    assert_eq!(b.offloads.failed().to_string(), "coalesce");
    assert_eq!((b.rx.packets(), b.rx.drops(DropReason::DeviceFailed)), (6, 0));
}

#[test]
fn a_message_of_several_datagrams_is_judged_datagram_by_datagram() {
    let b = offloaded(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 100);
    let spoofed = udp_packet(pod(3, 3), pod(2, 5), 100);
    let other = udp_packet(pod(1, 3), pod(2, 6), 100);
    let message = [honest.clone(), spoofed, other.clone()].concat();
    let device = receive(&b, vec![(message, NonZeroU16::new(128)), (Vec::new(), None)], false);
    assert_eq!(device.written, [plain_frame(&honest), plain_frame(&other)]);
    assert_eq!((b.rx.packets(), b.rx.drops(DropReason::SpoofedSource)), (2, 1));
    assert_eq!((b.rx.drops(DropReason::BadPacket), b.rx.received()), (1, 4));
}

#[test]
fn what_the_device_may_not_say_and_what_has_no_route_is_counted() {
    let a = offloaded(1);
    let strange = [&[0, 3, 0, 0, 1, 0, 0, 0, 0, 0][..], &udp_packet(pod(1, 3), pod(2, 5), 9)].concat();
    let mut beyond = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 9));
    beyond[0] = 1;
    beyond[6..10].fill(0xff);
    let nowhere = tcp_frame(pod(9, 5), 3000, 1000);
    let long = tcp_frame(pod(2, 5), 3000, 1460);
    let mut no_fragments = long;
    no_fragments[VNET_LEN + 6] |= 0x40;
    let (device, sender) = send(&a, vec![strange, beyond, nowhere, no_fragments], None);
    assert_eq!(sender.sent, []);
    assert_eq!(a.tx.drops(DropReason::BadPacket), 2);
    assert_eq!(a.tx.drops(DropReason::NoRoute), 3);
    assert_eq!(a.tx.drops(DropReason::TooBig), 3);
    let received = a.tx.received();
    assert_eq!(received, 8);
    let kinds: Vec<_> = device.written.iter().map(|frame| frame[VNET_LEN + 20..][..2].to_vec()).collect();
    assert_eq!(kinds, [[3, 0], [3, 4]], "unreachable, too big");
}

#[test]
fn the_hot_path_asks_for_no_memory() {
    for (offloads, framing_of) in [
        (Features::ALL, (|_| Framing::Plain) as fn(u8) -> Framing),
        (Features::NONE, |_| Framing::Plain),
        (Features::ALL, vxlan_of),
    ] {
        let [a, b] = [1, 2].map(|own| shared_in(own, framing_of(own), offloads));
        let small = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 100));
        let frames =
            || VecDeque::from(vec![tcp_frame(pod(2, 5), 60_000, 1400), small.clone(), small.clone()]);
        let device = Device { inbox: frames(), ..Device::default() };
        let (_, outer) = send_through(&a, framing_of(1), device, Outer::default());
        let messages: Vec<_> = outer.sent.iter().map(message).collect();
        // What one more round costs, which is nothing but what the test itself needs.
        let rounds = RefCell::new(Vec::new());
        for count in [1, 50] {
            let mut inbox = VecDeque::new();
            (0..count).for_each(|_| inbox.extend(frames()));
            let mut device = Device { inbox, ..Device::default() };
            let mut outer = Outer::default();
            let sending =
                measure(|| encapsulate(&a, 0, framing_of(1), &mut device, &mut outer, || 0).unwrap());
            let inbox = (0..count).flat_map(|_| messages.clone()).collect();
            let mut outer = Outer { inbox, ..Outer::default() };
            let receiving = measure(|| decapsulate(&b, 0, framing_of(2), &mut outer, &mut device).unwrap());
            rounds.borrow_mut().push((sending.count_total, receiving.count_total));
        }
        let rounds = rounds.into_inner();
        assert!(rounds[0].0 > 0 && rounds[0].1 > 0, "the counter does not count: {rounds:?}");
        assert_eq!(rounds[0], rounds[1], "fifty times the packets, and as many allocations");
    }
}

#[test]
fn sends_to_several_nodes_share_a_call() {
    let packet = |to| plain_frame(&udp_packet(pod(1, 3), pod(to, 5), 100));
    let frames: Vec<_> = (0..20).map(|n| packet(2 + n % 2)).collect();
    let (_, outer) = send(&offloaded(1), frames.clone(), None);
    assert_eq!(outer.calls, [2], "one send to each node");
    let (_, outer) = send(&shared(1), frames, None);
    assert_eq!(outer.calls, [16, 4], "without UDP_SEGMENT one for each packet");
    let one_of_many = Outer { refuse_many: Some(SendError::TooMuch), ..Outer::default() };
    let device = Device { inbox: [packet(2), packet(3), packet(3)].into(), ..Device::default() };
    let (_, outer) = send_through(&offloaded(1), Framing::Plain, device, one_of_many);
    assert_eq!(
        outer.calls,
        [1, 2],
        "what comes before a refused send is sent, and what is refused is sent one by one"
    );
}
