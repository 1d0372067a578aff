//! Super-packets: what is cut is right by the kernel's rules, and joining undoes cutting.

use crate::bodies::internet_sum;
use crate::bodies::offload::{coalesce, expand, gather, segment, transport_sum};
use encap::IpPacket;
use encap::offload::checksum::Sum;
use encap::offload::coalesce::{Coalescer, MAX_RUN};
use encap::offload::segment::{SegmentError, Segments, finish_checksum};
use encap::offload::trains::{MAX_BYTES, MAX_SEGMENTS, Trains};
use encap::offload::vnet::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetError, VnetHeader};
use encap::offload::{Feature, Features};
use proptest::prelude::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A super-packet as the kernel hands it over.
#[derive(Debug, Clone)]
pub(super) struct Super {
    v6: bool,
    udp: bool,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
    size: u16,
    id: u16,
    sequence: u32,
    tos: u8,
    /// IPv4 options, or an IPv6 extension header (destination options), of this length.
    pub(super) extra: usize,
}

impl Super {
    pub(super) fn tcp(payload: usize, size: u16) -> Self {
        Self {
            v6: false,
            udp: false,
            flags: ACK,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: (0..payload).map(|n| (n * 7 + n / 256) as u8).collect(),
            size,
            id: 7,
            sequence: 1000,
            tos: 0,
            extra: 0,
        }
    }

    fn udp(payload: usize, size: u16) -> Self {
        Self { udp: true, options: Vec::new(), ..Self::tcp(payload, size) }
    }

    pub(super) fn build(&self) -> (VnetHeader, Vec<u8>) {
        let mut transport = vec![0x9c, 0x40, 0x14, 0x51];
        let offset = if self.udp { 6 } else { 16 };
        if self.udp {
            transport.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 9, (((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
            transport.extend([1, 0, 0, 0, 0, 0]);
            transport.extend(&self.options);
        }
        let header_len = transport.len();
        transport.extend(&self.payload);
        let protocol = if self.udp { 17 } else { 6 };
        let mut packet = Vec::new();
        if self.v6 {
            let first = if self.extra > 0 { 60 } else { protocol };
            packet.extend([0x60 | self.tos >> 4, self.tos << 4, 1, 2, 0, 0, first, 63]);
            packet.extend([0xfd; 16]);
            packet.extend([0xfe; 16]);
            if self.extra > 0 {
                let mut header = vec![protocol, (self.extra / 8 - 1) as u8, 1, (self.extra - 4) as u8];
                header.resize(self.extra, 0);
                packet.extend(header);
            }
            let len = (packet.len() - 40 + transport.len()) as u16;
            packet[4..6].copy_from_slice(&len.to_be_bytes());
        } else {
            packet.extend([0x40 | (5 + self.extra / 4) as u8, self.tos, 0, 0]);
            packet.extend(self.id.to_be_bytes());
            packet.extend([0x40, 0, 63, protocol, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3]);
            packet.resize(20 + self.extra, 1);
            let total = (packet.len() + transport.len()) as u16;
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            let sum = !internet_sum([&packet[..]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let start = packet.len();
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let len = (transport.len() as u32).to_be_bytes();
        let partial = internet_sum([&packet[addresses], &len, &[0, protocol]]);
        transport[offset..offset + 2].copy_from_slice(&partial.to_be_bytes());
        packet.extend(transport);
        let kind = match (self.udp, self.v6) {
            (true, _) => GsoKind::Udp,
            (false, true) => GsoKind::TcpV6,
            (false, false) => GsoKind::TcpV4,
        };
        let vnet = VnetHeader {
            partial: Some(PartialChecksum { start: start as u16, offset: offset as u16 }),
            gso: Some(Gso { kind, size: self.size, ecn: !self.udp && self.flags & CWR != 0 }),
            header_len: (start + header_len) as u16,
        };
        (vnet, packet)
    }
}

prop_compose! {
    pub(super) fn any_super()(
        (v6, udp, psh, fin, ece, cwr) in any::<(bool, bool, bool, bool, bool, bool)>(),
        options in 0usize..=10,
        size in 1u16..1500,
        segments in 2usize..50,
        last in any::<u16>(),
        (id, sequence, tos, seed) in any::<(u16, u32, u8, u8)>(),
        extra in 0usize..3,
    ) -> Super {
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let payload = usize::from(size) * (segments - 1) + 1 + usize::from(last % size);
        Super {
            v6,
            udp,
            flags: ACK | flag(psh, PSH) | flag(fin, FIN) | flag(ece, ECE) | flag(cwr, CWR),
            options: vec![seed; options * 4],
            payload: (0..payload.min(65_000)).map(|n| (n as u8).wrapping_mul(seed) ^ (n >> 8) as u8).collect(),
            size,
            id,
            sequence,
            tos,
            extra: extra * 8,
        }
    }
}

/// Puts packets one behind the other, and joins them.
pub(super) fn join(packets: &[Vec<u8>], memory: &mut Vec<u8>) -> Coalescer<()> {
    let mut coalescer = Coalescer::new(packets.len(), true, true);
    let mut ranges = Vec::new();
    for packet in packets {
        ranges.push(memory.len()..memory.len() + packet.len());
        memory.extend_from_slice(packet);
    }
    for range in ranges {
        coalescer.push(memory, range, ());
    }
    coalescer
}

fn groups(packets: &[Vec<u8>]) -> Vec<usize> {
    join(packets, &mut Vec::new()).groups().map(|group| group.packets()).collect()
}

proptest! {
    #[test]
    fn the_sum_is_the_plain_one(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..8) {
        let bytes = bytes.get(at..).unwrap_or_default();
        prop_assert_eq!(Sum::default().bytes(bytes).fold(), internet_sum([bytes]));
    }

    #[test]
    fn the_sum_continues(parts in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..90), 0..5)) {
        let bytes: Vec<Vec<u8>> =
            parts.iter().map(|words| words.iter().flat_map(|word| word.to_be_bytes()).collect()).collect();
        let sum = bytes.iter().fold(Sum::default(), |sum, part| sum.bytes(part));
        prop_assert_eq!(sum.fold(), internet_sum([&bytes.concat()[..]]));
    }

    #[test]
    fn segments_follow_the_kernels_rules(given in any_super()) {
        let (vnet, packet) = given.build();
        let all = expand(&vnet, &packet);
        prop_assert_eq!(all.len(), given.payload.len().div_ceil(usize::from(given.size)));
        let start = usize::from(vnet.partial.expect("partial").start);
        let header = usize::from(vnet.header_len);
        for (index, one) in all.iter().enumerate() {
            let view = IpPacket::parse(one).unwrap();
            prop_assert_eq!(view.total_len(), one.len());
            prop_assert_eq!(transport_sum(one), 0xffff);
            let payload = index * usize::from(given.size);
            prop_assert_eq!(&one[header..], &given.payload[payload..payload + one.len() - header]);
            if !given.v6 {
                prop_assert_eq!(internet_sum([&one[..view.header_len()]]), 0xffff);
                prop_assert_eq!(u16::from_be_bytes([one[4], one[5]]), given.id.wrapping_add(index as u16));
                prop_assert_eq!((&one[..2], &one[6..10], &one[12..start]), (&packet[..2], &packet[6..10], &packet[12..start]));
            } else {
                prop_assert_eq!((&one[..4], &one[6..start]), (&packet[..4], &packet[6..start]));
            }
            if given.udp {
                prop_assert_eq!(usize::from(u16::from_be_bytes([one[start + 4], one[start + 5]])), one.len() - start);
                prop_assert_ne!(&one[start + 6..start + 8], &[0, 0]);
                continue;
            }
            let sequence = u32::from_be_bytes([one[start + 4], one[start + 5], one[start + 6], one[start + 7]]);
            prop_assert_eq!(sequence, given.sequence.wrapping_add(payload as u32));
            let mut flags = given.flags;
            if index > 0 { flags &= !CWR; }
            if index + 1 < all.len() { flags &= !(FIN | PSH); }
            prop_assert_eq!(one[start + 13], flags);
            prop_assert_eq!(&one[start + 20..header], &given.options[..]);
        }
    }

    #[test]
    fn joining_undoes_cutting(given in any_super()) {
        let given = Super { extra: 0, ..given };
        let (vnet, packet) = given.build();
        let mut memory = Vec::new();
        let coalescer = join(&expand(&vnet, &packet), &mut memory);
        let (mut headers, mut payload) = (Vec::new(), Vec::new());
        for group in coalescer.groups() {
            let (again, joined) = gather(&group, &memory);
            let header = usize::from(vnet.header_len);
            payload.extend_from_slice(&joined[header..]);
            headers.push((again, joined));
        }
        prop_assert_eq!(&payload, &given.payload);
        // More packets than a run holds make several; all but that case is the very super-packet.
        if expand(&vnet, &packet).len() <= MAX_RUN {
            prop_assert_eq!(headers.len(), 1);
            prop_assert_eq!(&headers[0], &(vnet, packet));
        }
    }

    #[test]
    fn what_is_joined_comes_apart_in_order(data in prop::collection::vec(any::<u8>(), 0..700)) {
        coalesce(&data);
    }

    #[test]
    fn long_runs_come_apart_in_order(mut data in prop::collection::vec(any::<u8>(), 0..700), flows in 1u8..4) {
        // Mostly packets of the usual kind from few flows.
        for record in data.chunks_mut(3) {
            record[0] %= flows;
            if let Some(what) = record.get_mut(1) {
                *what = what.saturating_add(180);
            }
        }
        coalesce(&data);
    }

    #[test]
    fn no_bytes_from_a_device_are_too_strange(given in any_super(), at in any::<prop::sample::Index>(), byte: u8) {
        let (vnet, packet) = given.build();
        let mut data = vnet.to_bytes().to_vec();
        data.extend(packet);
        let at = at.index(data.len().min(120));
        data[at] = byte;
        // A changed partial checksum is the kernel's business; what we cut must still add up otherwise.
        segment(&data);
    }

    #[test]
    fn trains_keep_order_and_limits(packets in prop::collection::vec((0u8..4, 0usize..6, prop_oneof![9 => Just(0u8), 1 => 1u8..4]), 0..300), limit in 1usize..70) {
        let sizes = [0, 40, 40, 52, 1400, 9000];
        let mut trains = Trains::new(packets.len());
        trains.limit(limit);
        for (to, size, ecn) in &packets {
            trains.push(*to, *ecn, sizes[*size]);
        }
        let mut seen = vec![Vec::new(); 4];
        for train in trains.trains() {
            let members: Vec<_> = trains.members(train).collect();
            prop_assert_eq!(members.len(), train.count);
            prop_assert!(train.count <= limit.min(MAX_SEGMENTS) && train.bytes <= MAX_BYTES);
            let lens: Vec<_> = members.iter().map(|member| sizes[packets[*member].1]).collect();
            prop_assert_eq!(lens.iter().sum::<usize>(), train.bytes);
            let (last, body) = lens.split_last().unwrap();
            prop_assert!(body.iter().all(|len| *len == train.size) && *last <= train.size);
            for member in members {
                prop_assert_eq!((packets[member].0, packets[member].2), (train.to, train.ecn));
                seen[usize::from(train.to)].push(member);
            }
        }
        for (to, members) in seen.iter().enumerate() {
            let sent: Vec<_> = (0..packets.len()).filter(|n| usize::from(packets[*n].0) == to).collect();
            prop_assert_eq!(members, &sent);
        }
    }

    #[test]
    fn any_header_reads_back(bytes: [u8; VNET_LEN]) {
        if let Ok(header) = VnetHeader::parse(&bytes) {
            prop_assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(header));
        }
    }
}

#[test]
fn a_single_packets_checksum_is_finished() {
    for given in [
        Super::tcp(100, 1),
        Super { v6: true, ..Super::tcp(101, 1) },
        Super::udp(0, 1),
        Super { v6: true, extra: 16, ..Super::udp(33, 1) },
    ] {
        let (vnet, mut packet) = given.build();
        finish_checksum(&mut packet, vnet.partial.expect("partial")).unwrap();
        assert_eq!(transport_sum(&packet), 0xffff, "{given:?}");
    }
    // UDP whose sum comes out as zero says 0xffff: zero means that there is none.
    let (vnet, mut packet) = Super { payload: vec![0, 0], ..Super::udp(2, 1) }.build();
    let mut finished = packet.clone();
    finish_checksum(&mut finished, vnet.partial.expect("partial")).unwrap();
    let at = packet.len() - 2;
    packet[at..].copy_from_slice(&finished[26..28]);
    finish_checksum(&mut packet, vnet.partial.expect("partial")).unwrap();
    assert_eq!(&packet[26..28], [0xff, 0xff]);
    let beyond = PartialChecksum { start: 20, offset: 9 };
    assert_eq!(
        finish_checksum(&mut packet, beyond),
        Err(SegmentError::Transport { start: 20, len: packet.len() })
    );
}

#[test]
fn a_super_packet_that_is_none_is_refused() {
    let (vnet, packet) = Super::tcp(3000, 1400).build();
    let plan = |packet: &[u8], partial, kind| {
        Segments::plan(packet, partial, Gso { kind, ..vnet.gso.expect("a super-packet") })
            .map(|plan| plan.count())
    };
    assert_eq!(plan(&packet, vnet.partial, GsoKind::TcpV4), Ok(3));
    assert_eq!(plan(&packet, None, GsoKind::TcpV4), Ok(3), "a finished checksum is as good");
    assert_eq!(plan(&packet, vnet.partial, GsoKind::TcpV6), Err(SegmentError::NotIp));
    assert!(matches!(plan(&packet, vnet.partial, GsoKind::Udp), Err(SegmentError::Transport { .. })));
    let elsewhere = Some(PartialChecksum { start: 24, offset: 16 });
    assert!(matches!(plan(&packet, elsewhere, GsoKind::TcpV4), Err(SegmentError::Transport { .. })));
    assert_eq!(plan(&packet[..packet.len() - 1], vnet.partial, GsoKind::TcpV4), Err(SegmentError::NotIp));
    let padded = [&packet[..], &[0]].concat();
    assert_eq!(plan(&padded, vnet.partial, GsoKind::TcpV4), Err(SegmentError::NotIp));
    let mut fragment = packet;
    fragment[7] = 1;
    assert!(matches!(plan(&fragment, vnet.partial, GsoKind::TcpV4), Err(SegmentError::Transport { .. })));
    let (vnet, long) = Super { v6: true, extra: 480, ..Super::tcp(3000, 1400) }.build();
    assert_eq!(
        Segments::plan(&long, vnet.partial, vnet.gso.expect("a super-packet")),
        Err(SegmentError::Headers { len: 40 + 480 + 32 })
    );
}

#[test]
fn headers_of_unknown_kinds_are_refused() {
    assert_eq!(VnetHeader::parse(&[0; 9]), Err(VnetError::Short { have: 9 }));
    // Legacy UDP fragmentation (3) was never asked for.
    assert!(matches!(
        VnetHeader::parse(&[1, 3, 0, 0, 5, 5, 0, 0, 0, 0]),
        Err(VnetError::Gso { gso_type: 3, .. })
    ));
    assert!(matches!(
        VnetHeader::parse(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(VnetError::Gso { size: 0, .. })
    ));
    assert!(VnetHeader::parse(&[0; 12]).unwrap().is_plain());
}

/// Cuts three full segments, lets `change` alter the second, and counts what is joined.
fn with_second(given: &Super, right: bool, change: impl Fn(&mut Vec<u8>)) -> Vec<usize> {
    let (vnet, packet) = given.build();
    let mut all = expand(&vnet, &packet);
    change(&mut all[1]);
    let start = usize::from(vnet.partial.expect("partial").start);
    if right {
        let one = &mut all[1];
        if !given.v6 {
            one[10..12].fill(0);
            let sum = !internet_sum([&one[..20]]);
            one[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let field = start + if given.udp { 6 } else { 16 };
        one[field..field + 2].fill(0);
        let sum = !transport_sum(one);
        one[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    groups(&all)
}

#[test]
fn every_difference_keeps_packets_apart() {
    let v4 = Super::tcp(300, 100);
    assert_eq!(with_second(&v4, true, |_| ()), [3]);
    let apart: [(&str, usize, u8); 12] = [
        ("TOS", 1, 0x10),
        ("ECN", 1, 0x03),
        ("TTL", 8, 1),
        ("identification", 5, 8),
        ("DF", 6, 0x40),
        ("sequence", 20 + 7, 1),
        ("acknowledgement", 20 + 11, 1),
        ("reserved bits", 20 + 12, 1),
        ("ECE", 20 + 13, ECE),
        ("window", 20 + 15, 1),
        ("urgent pointer", 20 + 19, 1),
        ("options", 20 + 24, 1),
    ];
    for (what, at, bits) in apart {
        assert_eq!(with_second(&v4, true, |packet| packet[at] ^= bits), [1, 1, 1], "{what}");
    }
    // Of the first in a run CWR may be set, of no other.
    assert_eq!(with_second(&v4, true, |packet| packet[33] |= CWR), [1, 2]);
    for flag in [SYN, 4, 0x20] {
        assert_eq!(with_second(&v4, true, |packet| packet[33] |= flag), [1, 1, 1], "flag {flag:#x}");
    }
    // These may join, and nothing behind them.
    for flag in [PSH, FIN] {
        assert_eq!(with_second(&v4, true, |packet| packet[33] |= flag), [2, 1], "flag {flag:#x}");
    }
    let v6 = Super { v6: true, ..Super::tcp(300, 100) };
    assert_eq!(with_second(&v6, true, |_| ()), [3]);
    for (what, at) in [("traffic class", 1), ("flow label", 3), ("hop limit", 7)] {
        assert_eq!(with_second(&v6, true, |packet| packet[at] ^= 0x10), [1, 1, 1], "{what}");
    }
}

#[test]
fn a_wrong_checksum_is_left_for_the_receiver_to_judge() {
    for given in [Super::tcp(300, 100), Super { v6: true, ..Super::tcp(300, 100) }, Super::udp(300, 100)] {
        let (vnet, packet) = given.build();
        let header = usize::from(vnet.header_len);
        assert_eq!(with_second(&given, false, |packet| packet[header + 9] ^= 1), [1, 1, 1], "{given:?}");
        // A wrong one in the first keeps the second away; the second and third are fine.
        let mut all = expand(&vnet, &packet);
        all[0][header] ^= 1;
        assert_eq!(groups(&all), [1, 2]);
    }
    assert_eq!(with_second(&Super::tcp(300, 100), false, |packet| packet[11] ^= 1), [1, 1, 1], "IPv4 header");
    let none = |packet: &mut Vec<u8>| packet[26..28].fill(0);
    assert_eq!(with_second(&Super::udp(300, 100), false, none), [1, 1, 1], "UDP without one");
}

#[test]
fn fragments_options_and_extension_headers_are_left_alone() {
    let options = Super { extra: 4, ..Super::tcp(300, 100) };
    let extension = Super { v6: true, extra: 8, ..Super::tcp(300, 100) };
    for given in [options, extension] {
        let (vnet, packet) = given.build();
        assert_eq!(groups(&expand(&vnet, &packet)), [1, 1, 1]);
    }
    assert_eq!(with_second(&Super::udp(300, 100), true, |packet| packet[6] = 0x20), [1, 1, 1], "fragment");
}

#[test]
fn a_constant_identification_joins_where_it_means_nothing() {
    let (vnet, packet) = Super::tcp(300, 100).build();
    let mut all = expand(&vnet, &packet);
    for one in &mut all {
        one[4..6].fill(0);
        one[10..12].fill(0);
        let sum = !internet_sum([&one[..20]]);
        one[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    assert_eq!(groups(&all), [3]);
}

#[test]
fn a_full_coalescer_takes_no_more_and_can_be_used_again() {
    let (vnet, packet) = Super::tcp(300, 100).build();
    let memory = expand(&vnet, &packet).concat();
    let mut coalescer = Coalescer::new(2, true, true);
    for at in 0..3 {
        assert_eq!(coalescer.is_full(), at == 2);
        coalescer.push(&memory, at * 152..(at + 1) * 152, ());
    }
    assert_eq!(coalescer.groups().map(|group| group.packets()).collect::<Vec<_>>(), [2]);
    coalescer.clear();
    assert_eq!(coalescer.groups().count(), 0);
    coalescer.allow(false, true);
    for at in 0..2 {
        coalescer.push(&memory, at * 152..(at + 1) * 152, ());
    }
    assert_eq!(coalescer.groups().count(), 2, "TCP is switched off");
}

#[test]
fn features_form_sets() {
    for feature in Feature::ALL {
        assert!(Features::ALL.has(feature) && !Features::ALL.without(feature).has(feature));
        assert_eq!(Features::NONE.with(feature).to_string(), feature.as_str());
    }
    assert_eq!(Features::from_bits(0xff), Features::ALL);
    assert_eq!(Features::NONE.to_string(), "none");
    assert_eq!(Features::ALL.without(Feature::Gso).to_string(), "tso,uso,gro,coalesce");
}
