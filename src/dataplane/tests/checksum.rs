//! Checksums that one daemon leaves to the other.

use std::net::SocketAddr;

use encap::offload::unfinished::unfinished;
use encap::offload::vnet::{PartialChecksum, VNET_LEN, VnetHeader};

use super::sides::*;

/// Node 3 announced that it takes them so.
#[test]
fn checksums_are_left_to_a_node_that_takes_them() {
    let (a, b) = (offloaded(1), offloaded(3));
    let frame = tcp_frame(pod(3, 5), 5000, 1400);
    let field = |packet: &[u8]| [packet[36], packet[37]];
    let whole = |packet: &[u8]| {
        let packet = etherparse::SlicedPacket::from_ip(packet).unwrap();
        let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
            (&packet.net, &packet.transport)
        else {
            panic!("not TCP: {packet:?}")
        };
        let (src, dst) = (ip.header().source(), ip.header().destination());
        tcp.calc_checksum_ipv4(src, dst) == Ok(tcp.checksum())
    };
    let (_, sender) = send(&a, vec![frame.clone()], None);
    let datagrams = sender.sent[0].datagrams.clone();
    assert_eq!(datagrams.len(), 4);
    assert!(datagrams.iter().all(|datagram| !whole(datagram)));
    // Three of the same length say the same: only the pseudo-header is in it.
    assert_eq!(field(&datagrams[0]), field(&datagrams[2]));

    let device = receive(&b, vec![message(&sender.sent[0])], false);
    assert_eq!(device.written, [frame], "it is as if nothing had been in between");
    // By itself the kernel is told to finish it, and where it cannot be told it is finished here.
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    let vnet = VnetHeader { partial, ..VnetHeader::default() };
    for (no_super_packets, messages) in
        [(false, vec![(datagrams[1].clone(), None)]), (true, vec![message(&sender.sent[0])])]
    {
        let written = receive(&b, messages, no_super_packets).written;
        assert!(!written.is_empty());
        assert!(written.iter().all(|frame| VnetHeader::parse(frame) == Ok(vnet)));
    }
    let device = receive_plain(&shared(3), SocketAddr::new(node(1), PORT), datagrams);
    assert_eq!(device.written.len(), 4);
    assert!(device.written.iter().all(|frame| whole(&frame[VNET_LEN..])));
}

/// One whole packet in 65,536 has the checksum that an unfinished one would have. A plain device, which cannot be told that
/// something is left to do, has to get it all the same.
#[test]
fn a_whole_packet_that_looks_unfinished_reaches_a_plain_device() {
    let looks_unfinished = |word: u16| {
        let mut packet = udp_packet(pod(1, 3), pod(2, 5), 100);
        let end = packet.len();
        packet[end - 2..].copy_from_slice(&word.to_be_bytes());
        let udp = etherparse::UdpHeader::from_slice(&packet[20..]).unwrap().0;
        let checksum = udp.calc_checksum_ipv4_raw(pod(1, 3), pod(2, 5), &packet[28..]).unwrap();
        packet[26..28].copy_from_slice(&checksum.to_be_bytes());
        unfinished(&packet, usize::MAX).is_some().then_some(packet)
    };
    let packet = (0..=u16::MAX).find_map(looks_unfinished).unwrap();
    let b = shared(2);
    let device = receive_plain(&b, SocketAddr::new(node(1), PORT), vec![packet.clone()]);
    assert_eq!(device.written, [plain_frame(&packet)]);
    assert_eq!(b.rx.packets(), 1);
}
