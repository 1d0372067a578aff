//! Segmenting and coalescing.

use encap::offload::coalesce::{Coalescer, Group, HEAD};
use encap::offload::segment::{Segments, finish_checksum};
use encap::offload::vnet::{VNET_LEN, VnetHeader};
use encap::{Family, IpPacket};
use std::collections::BTreeMap;

use super::internet_sum;

/// The packets that a super-packet stands for.
pub fn expand(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let gso = vnet.gso.expect("a super-packet");
    cut(&Segments::plan(packet, vnet.partial, gso).expect("a plan"), packet)
}

/// The packets of a plan for the super-packet.
pub fn cut(plan: &Segments, packet: &[u8]) -> Vec<Vec<u8>> {
    (0..plan.count())
        .map(|index| {
            let mut bytes = vec![0; plan.header_len()];
            plan.write_headers(packet, index, &mut bytes);
            bytes.extend_from_slice(&packet[plan.payload(index)]);
            bytes
        })
        .collect()
}

/// A coalescer's result in one piece: its virtio-net header and its packet.
pub fn gather<T: Copy + PartialEq>(group: &Group<'_, T>, memory: &[u8]) -> (VnetHeader, Vec<u8>) {
    let mut head = [0; HEAD];
    let Some(len) = group.write_headers(memory, &mut head) else {
        let packet: Vec<_> = group.originals().flat_map(|range| memory[range].to_vec()).collect();
        return (VnetHeader::default(), packet);
    };
    let vnet = VnetHeader::parse(&head[..len]).expect("our own header");
    let mut packet = head[VNET_LEN..len].to_vec();
    for range in group.payloads() {
        packet.extend_from_slice(&memory[range]);
    }
    assert_eq!(packet.len(), group.len());
    (vnet, packet)
}

/// Ones' complement sum over pseudo-header and transport; 0xffff when the checksum is right.
pub fn transport_sum(packet: &[u8]) -> u16 {
    let view = IpPacket::parse(packet).expect("a packet");
    let transport = view.transport().expect("headers");
    let addresses = if view.family() == Family::V4 { &packet[12..20] } else { &packet[8..40] };
    let len = u32::try_from(transport.payload.len()).expect("short").to_be_bytes();
    internet_sum([addresses, &len, &[0, transport.protocol], transport.payload])
}

/// Whatever a device says, there is a plan of right packets or an error.
pub fn segment(data: &[u8]) {
    let Ok(vnet) = VnetHeader::parse(data) else { return };
    let again = VnetHeader::parse(&vnet.to_bytes()).expect("our own header");
    assert_eq!(again, vnet);
    let packet = &data[VNET_LEN..];
    if let Some(partial) = vnet.partial {
        let mut copy = packet.to_vec();
        if finish_checksum(&mut copy, partial).is_ok() {
            let at = usize::from(partial.start) + usize::from(partial.offset);
            assert_eq!((&copy[..at], &copy[at + 2..]), (&packet[..at], &packet[at + 2..]));
        }
    }
    let Some(gso) = vnet.gso else { return };
    // One segment per byte of payload is allowed but slow to check.
    if gso.size < 8 || Segments::plan(packet, vnet.partial, gso).is_err() {
        return;
    }
    let view = IpPacket::parse(packet).expect("it has a plan");
    let all = expand(&vnet, packet);
    let header = all[0].len() - Segments::plan(packet, vnet.partial, gso).expect("a plan").payload(0).len();
    let payload: Vec<u8> = all.iter().flat_map(|segment| segment[header..].to_vec()).collect();
    assert_eq!(payload, packet[header..]);
    for segment in &all {
        let one = IpPacket::parse(segment).expect("a packet");
        assert_eq!(one.total_len(), segment.len());
        assert_eq!(
            (one.src(), one.dst(), one.ttl(), one.ecn()),
            (view.src(), view.dst(), view.ttl(), view.ecn())
        );
        assert!(segment.len() - header <= usize::from(gso.size));
        if vnet.partial.is_none() {
            assert_eq!(transport_sum(segment), 0xffff, "transport checksum");
        }
        if one.is_ipv4() {
            assert_eq!(internet_sum([&segment[..one.header_len()]]), 0xffff, "IPv4 header checksum");
        }
    }
}

/// State of one sender of packets.
struct Sender {
    flow: u8,
    sequence: u32,
    id: u16,
}

impl Sender {
    /// The next packet: what is usual, or one thing about it changed, as the two bytes say.
    fn next(&mut self, [what, size]: [u8; 2]) -> Vec<u8> {
        let tcp = self.flow & 1 == 0;
        let v6 = self.flow & 2 != 0;
        let payload = if size < 160 { 100 } else { usize::from(size) - 160 };
        let mut transport = Vec::new();
        transport.extend([0x10, self.flow, 0x20, 0x20]);
        if tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend([0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
            transport.extend([1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
        } else {
            transport.extend(u16::try_from(8 + payload).expect("short").to_be_bytes());
            transport.extend([0, 0]);
        }
        let start = transport.len();
        transport.extend((0..payload).map(|n| self.sequence.wrapping_add(n as u32) as u8));
        let mut ip = if v6 {
            let mut ip = vec![0x60, 0, 0, 0, 0, 0, if tcp { 6 } else { 17 }, 64];
            ip.extend([0xfd; 16]);
            ip.extend([0xfe; 16]);
            ip
        } else {
            vec![
                0x45,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                64,
                if tcp { 6 } else { 17 },
                0,
                0,
                10,
                244,
                1,
                1,
                10,
                244,
                2,
                self.flow,
            ]
        };
        let header = ip.len();
        ip.extend(transport);
        self.sequence = self.sequence.wrapping_add(payload as u32);
        self.id = self.id.wrapping_add(1);
        if !v6 {
            ip[4..6].copy_from_slice(&self.id.to_be_bytes());
        }
        match what {
            0..16 if tcp => ip[header + 13] |= 1 << (what & 7),
            16..20 if tcp => ip[header + 11] ^= 1,
            20..24 if tcp => ip[header + 15] ^= 1,
            24..28 if tcp => ip[header + 30] ^= 1,
            28..32 => ip[1] ^= 0x10,
            32..36 => ip[if v6 { 7 } else { 8 }] ^= 1,
            36..40 if !v6 => ip[6] |= 0x20,
            40..44 if !v6 => ip[5] ^= 4,
            44..48 if tcp => ip[header + 7] ^= 1,
            48..52 if !v6 => ip[6] |= 0x40,
            _ => {}
        }
        fix(&mut ip, header, tcp);
        match what {
            52..56 => ip[header + 5] ^= 1,
            56..60 => *ip.last_mut().expect("bytes") ^= 1,
            60..64 if start < ip.len() - header && !tcp => {
                ip[header + 6..header + 8].copy_from_slice(&[0, 0]);
            }
            _ => {}
        }
        ip
    }
}

/// Sets lengths and checksums.
fn fix(packet: &mut [u8], header: usize, tcp: bool) {
    let total = u16::try_from(packet.len()).expect("short");
    if header == 20 {
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        let sum = !internet_sum([&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
    }
    let field = header + if tcp { 16 } else { 6 };
    let addresses = if header == 20 { 12..20 } else { 8..40 };
    let len = u32::try_from(packet.len() - header).expect("short").to_be_bytes();
    let protocol = [0, if tcp { 6 } else { 17 }];
    let sum = internet_sum([&packet[addresses], &len, &protocol, &packet[header..]]);
    // Zero, and its other form that UDP has to use.
    let checksum = if sum == 0xffff && !tcp { 0xffff } else { !sum };
    packet[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Whatever is coalesced is, segmented again, the packets of each flow in their order: no byte differs.
pub fn coalesce(data: &[u8]) {
    let mut senders: Vec<_> = (0..8).map(|flow| Sender { flow, sequence: 0xffff_f000, id: 0xfff8 }).collect();
    let mut memory = Vec::new();
    let mut pushed: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    let mut coalescer = Coalescer::new(256, true, true);
    let records: Vec<&[u8]> = data.chunks_exact(3).take(256).collect();
    let mut ranges = Vec::new();
    for record in records {
        let flow = record[0] & 7;
        let packet = senders[usize::from(flow)].next([record[1], record[2]]);
        let start = memory.len();
        memory.extend_from_slice(&packet);
        ranges.push((start..memory.len(), record[0] >> 7));
        pushed.entry(flow).or_default().push(packet);
    }
    for (range, tag) in ranges {
        coalescer.push(&memory, range, tag);
    }
    let mut came: BTreeMap<u8, Vec<Vec<u8>>> = BTreeMap::new();
    for group in coalescer.groups() {
        let (vnet, packet) = gather(&group, &memory);
        let packets = if vnet.gso.is_some() { expand(&vnet, &packet) } else { vec![packet] };
        assert_eq!(packets.len(), group.packets());
        for packet in packets {
            let header = if packet[0] >> 4 == 6 { 40 } else { 20 };
            came.entry(packet[header + 1] & 7).or_default().push(packet);
        }
    }
    assert_eq!(came, pushed);
}
