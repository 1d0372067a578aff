//! What one packet costs before the kernel is asked: the decision and the framing, by packet size.
//!
//! The payload is never copied, so the size should not matter; that it does not is the point of having it here.
#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark stops at the first surprise")]

mod settings;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use encap::{
    DropReason, Family, Fib, IcmpCause, Inbound, IpPacket, MacAddr, NextHop, Outbound, Owner, PeerCaps,
    PeerId, Prefix, SourceCheck, Vni, icmp, inbound, outbound, udp, vxlan,
};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NODES: u8 = 200;
const SIZES: [usize; 4] = [64, 512, 1472, 8972];

fn pod(family: Family, node: u8, pod: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, pod).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(node), 0, 0, 0, u16::from(pod)).into(),
    }
}

fn node_addr(node: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, node).into()
}

fn prefix(addr: IpAddr, len: u8) -> Prefix {
    Prefix::new(addr, len).expect("a valid length")
}

/// 200 dual-stack nodes; this one is number 0.
fn table() -> Fib {
    let mut fib = Fib::builder();
    fib.network(prefix(pod(Family::V4, 0, 0), 16)).network(prefix(pod(Family::V6, 0, 0), 48));
    for node in 0..NODES {
        let hop = NextHop {
            peer: PeerId(node.into()),
            addr: node_addr(node),
            mtu: 8972,
            caps: PeerCaps { ipv6: true, ecn: true, partial_checksum: true, flow_ports: true },
            mac: Some(MacAddr([2, 0, 0, 0, 0, node])),
        };
        let owner = if node == 0 { Owner::Local } else { Owner::Peer(hop) };
        fib.route(prefix(pod(Family::V4, node, 0), 24), owner);
        fib.route(prefix(pod(Family::V6, node, 0), 64), owner);
        if node != 0 {
            fib.sender(hop.addr, hop.peer);
        }
    }
    fib.build()
}

/// A packet as the kernel hands it over: valid header, DF set, UDP inside.
fn packet(src: IpAddr, dst: IpAddr, len: usize) -> Vec<u8> {
    let builder = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            etherparse::PacketBuilder::ipv4(src.octets(), dst.octets(), 64).udp(40_000, 53)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            etherparse::PacketBuilder::ipv6(src.octets(), dst.octets(), 64).udp(40_000, 53)
        }
        _ => panic!("families differ"),
    };
    let headers = builder.size(0);
    let mut bytes = Vec::with_capacity(len);
    builder.write(&mut bytes, &vec![0; len - headers]).expect("writing to a Vec");
    bytes
}

/// One packet per peer, so that neither branch predictor nor cache sees the same destination twice in a row.
fn packets(family: Family, len: usize, from_us: bool) -> Vec<(IpAddr, Vec<u8>)> {
    (1..NODES)
        .map(|node| {
            let (ours, theirs) = (pod(family, 0, 7), pod(family, node, 9));
            let (src, dst) = if from_us { (ours, theirs) } else { (theirs, ours) };
            (node_addr(node), packet(src, dst, len))
        })
        .collect()
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    }
}

fn encapsulate(c: &mut Criterion) {
    let fib = table();
    let mut group = c.benchmark_group("encapsulate");
    group.throughput(Throughput::Elements(1));
    for family in [Family::V4, Family::V6] {
        for len in SIZES {
            let packets = packets(family, len, true);
            let mut next = packets.iter().cycle();
            group.bench_function(BenchmarkId::new(format!("udp-{}", label(family)), len), |b| {
                b.iter(|| {
                    let (_, bytes) = next.next().expect("a cycle");
                    match outbound(&fib, black_box(bytes)) {
                        Outbound::Send { hop, len } => (hop.addr, bytes.get(..len)),
                        Outbound::Drop { reason, .. } => panic!("{reason}"),
                    }
                });
            });
            group.bench_function(BenchmarkId::new(format!("vxlan-{}", label(family)), len), |b| {
                let our_mac = MacAddr([2, 0, 0, 0, 0, 0]);
                b.iter(|| {
                    let (_, bytes) = next.next().expect("a cycle");
                    match outbound(&fib, black_box(bytes)) {
                        Outbound::Send { hop, len } => {
                            let mac = hop.mac.expect("every peer has one");
                            let headers = vxlan::encapsulate_headers(Vni::FLANNEL, our_mac, mac, family);
                            (hop.addr, headers, bytes.get(..len))
                        }
                        Outbound::Drop { reason, .. } => panic!("{reason}"),
                    }
                });
            });
        }
    }
    group.finish();
}

fn decapsulate(c: &mut Criterion) {
    let fib = table();
    let deliver = |from, payload: &[u8]| match inbound(&fib, SourceCheck::Enforce, from, payload) {
        Inbound::Deliver { peer, len, flagged: None } => (peer, len),
        other => panic!("{other:?}"),
    };
    let mut group = c.benchmark_group("decapsulate");
    group.throughput(Throughput::Elements(1));
    for family in [Family::V4, Family::V6] {
        for len in SIZES {
            let raw = packets(family, len, false);
            let mut next = raw.iter().cycle();
            group.bench_function(BenchmarkId::new(format!("udp-{}", label(family)), len), |b| {
                b.iter(|| {
                    let (from, datagram) = next.next().expect("a cycle");
                    deliver(*from, black_box(datagram))
                });
            });
            let (a, b) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 0]));
            let headers = vxlan::encapsulate_headers(Vni::FLANNEL, a, b, family);
            let framed: Vec<_> =
                raw.iter().map(|(from, packet)| (*from, [&headers, packet.as_slice()].concat())).collect();
            let mut next = framed.iter().cycle();
            group.bench_function(BenchmarkId::new(format!("vxlan-{}", label(family)), len), |b| {
                b.iter(|| {
                    let (from, datagram) = next.next().expect("a cycle");
                    let (vni, inner) = vxlan::decapsulate(black_box(datagram)).expect("well framed");
                    (vni, deliver(*from, inner.packet))
                });
            });
        }
    }
    group.finish();
}

fn view(c: &mut Criterion) {
    let mut group = c.benchmark_group("ip_view");
    for family in [Family::V4, Family::V6] {
        let bytes = packet(pod(family, 0, 7), pod(family, 9, 9), 1472);
        group.bench_function(BenchmarkId::new("parse_src_dst", label(family)), |b| {
            b.iter(|| IpPacket::parse(black_box(&bytes)).map(|packet| (packet.src(), packet.dst())));
        });
        group.bench_function(BenchmarkId::new("udp_decode_encode", label(family)), |b| {
            b.iter(|| {
                let packet = udp::decode(black_box(&bytes)).expect("a packet");
                udp::encode(&packet, Family::V4).map(<[u8]>::len)
            });
        });
    }
    group.finish();
}

fn errors(c: &mut Criterion) {
    let fib = table();
    let mut group = c.benchmark_group("icmp_error");
    for family in [Family::V4, Family::V6] {
        let bytes = packet(pod(family, 0, 7), pod(family, 9, 9), 9000);
        let Outbound::Drop { reason: DropReason::TooBig, answer: Some(cause) } = outbound(&fib, &bytes)
        else {
            panic!("9000 bytes fit nowhere");
        };
        assert_eq!(cause, IcmpCause::TooBig { mtu: 8972 });
        let mut out = [0; icmp::MAX_V6];
        group.bench_function(BenchmarkId::new("too_big", label(family)), |b| {
            b.iter(|| icmp::error(black_box(cause), black_box(&bytes), pod(family, 0, 0), &mut out));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = settings::short();
    targets = encapsulate, decapsulate, view, errors
}
criterion_main!(benches);
