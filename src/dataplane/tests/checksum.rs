//! Checksums that one daemon leaves to the other.

use std::net::SocketAddr;

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
