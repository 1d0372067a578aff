//! Received packets as few super-packets, by the rules of the kernel's own receive offload.
//!
//! Packets of a batch are pushed in order of arrival. One that continues the newest run of its flow joins it; any
//! other begins an item of its own at the end, and closes the run of its flow: so the order within a flow is kept by
//! construction, and no packet ever waits, because the batch is all there is.
//!
//! A TCP segment joins if it is the next in sequence and everything else in its headers is the same: addresses, TOS
//! and flow label, TTL, ports, acknowledgement, window, options, flags (but PSH and FIN, which also end a run). A UDP
//! datagram joins if it is as long as the first; a shorter one joins and ends the run. Both need a right checksum,
//! since whoever takes the super-packet will not look at it again: it is verified here, once, and only of packets that
//! do join. Fragments, IPv4 options and IPv6 extension headers do not join anything.

use alloc::vec::Vec;
use core::ops::Range;

use super::checksum::Sum;
use super::segment::{finish_ipv4, pseudo};
use super::vnet::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use super::{TCP_CHECKSUM, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, read_u16, read_u32, tcp_flag, write};
use crate::ip::{IPV4_HEADER, IPV6_HEADER, IpPacket};

/// The longest headers of a super-packet made here: IPv6 and TCP with all options.
pub const MAX_HEADERS: usize = IPV6_HEADER + 60;

/// Bytes that a super-packet's own headers take: the virtio-net header and those of the packet.
pub const HEAD: usize = VNET_LEN + MAX_HEADERS;

/// How many packets join one super-packet at most. Each is one more range to write, and the kernel takes 1,024.
pub const MAX_RUN: usize = 128;

/// Runs that may be joined at one time; a packet of one more flow closes the oldest.
const OPEN: usize = 16;

/// Marks the end of a chain.
const NONE: u32 = u32::MAX;

/// What is known of a packet that may join or begin a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    kind: GsoKind,
    transport: usize,
    header_len: usize,
    payload: usize,
    flow: u32,
}

/// Where a packet is, and what comes behind it in its run.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    len: u32,
    next: u32,
}

/// One packet, or a run of them.
#[derive(Clone, Copy, Debug)]
struct Item<T> {
    tag: T,
    first: u32,
    last: u32,
    count: u16,
    /// Length of the super-packet.
    total: usize,
    /// The first packet's headers; `None` if nothing may join it.
    head: Option<Head>,
    /// Sum of the pseudo-header without its length, once the first packet's checksums were found right.
    pseudo: Option<Sum>,
}

/// Collects the packets of a batch. All memory is taken when it is made.
#[derive(Debug)]
pub struct Coalescer<T> {
    items: Vec<Item<T>>,
    pieces: Vec<Piece>,
    /// Indices of items that may be joined, oldest first.
    open: Vec<u32>,
    capacity: usize,
    tcp: bool,
    udp: bool,
}

/// One result: a packet as it came, or several as one.
#[derive(Debug, Clone, Copy)]
pub struct Group<'c, T> {
    coalescer: &'c Coalescer<T>,
    item: Item<T>,
}

impl<T: Copy + PartialEq> Coalescer<T> {
    /// A coalescer for batches of up to `capacity` packets; `tcp` and `udp` say what is joined at all.
    #[must_use]
    pub fn new(capacity: usize, tcp: bool, udp: bool) -> Self {
        Self {
            items: Vec::with_capacity(capacity),
            pieces: Vec::with_capacity(capacity),
            open: Vec::with_capacity(OPEN),
            capacity,
            tcp,
            udp,
        }
    }

    /// Changes what is joined from the next packet on.
    pub fn allow(&mut self, tcp: bool, udp: bool) {
        (self.tcp, self.udp) = (tcp, udp);
    }

    /// Whether [`push`](Self::push) would have to refuse.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.pieces.len() == self.capacity
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        self.items.clear();
        self.pieces.clear();
        self.open.clear();
    }

    /// Takes the next packet: all of `memory[at]`, checked to be an IP packet. Only packets of equal `tag` join.
    ///
    /// `memory` is the same at each call, and unchanged, until [`clear`](Self::clear). Nothing happens if the coalescer
    /// is full.
    pub fn push(&mut self, memory: &[u8], at: Range<usize>, tag: T) {
        if self.is_full() {
            return;
        }
        let packet = memory.get(at.clone()).unwrap_or_default();
        let index = self.pieces.len() as u32;
        self.pieces.push(Piece { start: at.start as u32, len: packet.len() as u32, next: NONE });
        let head = self.head(packet);
        match head {
            // Whatever it is, it may belong to any of the flows.
            None => self.open.clear(),
            Some(head) => {
                if let Some(position) = self.find(memory, packet, &head) {
                    if self.join(memory, packet, &head, position, index, tag) {
                        return;
                    }
                    self.open.remove(position);
                }
            }
        }
        self.begin(packet, head, index, tag);
    }

    /// The results, in the order in which their first packets came.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_, T>> {
        self.items.iter().map(|item| Group { coalescer: self, item: *item })
    }

    fn begin(&mut self, packet: &[u8], head: Option<Head>, index: u32, tag: T) {
        if head.is_some_and(|head| !ends_run(packet, &head)) {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(self.items.len() as u32);
        }
        let item = Item { tag, first: index, last: index, count: 1, total: packet.len(), head, pseudo: None };
        self.items.push(item);
    }

    /// Position in `open` of the flow's run.
    fn find(&self, memory: &[u8], packet: &[u8], head: &Head) -> Option<usize> {
        self.open.iter().rposition(|item| {
            let item = self.items.get(*item as usize);
            item.is_some_and(|item| {
                item.head.is_some_and(|first| first.flow == head.flow && first.kind == head.kind)
                    && same_flow(self.bytes(memory, item.first), packet, head)
            })
        })
    }

    /// Appends the packet to the run at `position` of `open`, if it may join.
    fn join(
        &mut self,
        memory: &[u8],
        packet: &[u8],
        head: &Head,
        position: usize,
        index: u32,
        tag: T,
    ) -> bool {
        let Some(at) = self.open.get(position).map(|item| *item as usize) else { return false };
        let Some(item) = self.items.get(at).copied() else { return false };
        let first = self.bytes(memory, item.first);
        let Some(first_head) = item.head else { return false };
        let continues = item.tag == tag
            && usize::from(item.count) < MAX_RUN
            && item.total + head.payload <= usize::from(u16::MAX)
            && head.payload > 0
            && head.payload <= first_head.payload
            && continues(first, packet, head, item.total - first_head.header_len, item.count);
        if !continues {
            return false;
        }
        let verified = item.pseudo.or_else(|| {
            let pseudo = pseudo(&IpPacket::parse(first).ok()?, first_head.protocol());
            is_right(first, &first_head, pseudo).then_some(pseudo)
        });
        let Some(pseudo) = verified.filter(|pseudo| is_right(packet, head, *pseudo)) else { return false };
        if let Some(last) = self.pieces.get_mut(item.last as usize) {
            last.next = index;
        }
        if let Some(item) = self.items.get_mut(at) {
            item.last = index;
            item.count += 1;
            item.total += head.payload;
            item.pseudo = Some(pseudo);
        }
        if head.payload < first_head.payload || ends_run(packet, head) {
            self.open.remove(position);
        }
        true
    }

    fn bytes<'m>(&self, memory: &'m [u8], piece: u32) -> &'m [u8] {
        let range = self.pieces.get(piece as usize).map(Piece::range);
        range.and_then(|range| memory.get(range)).unwrap_or_default()
    }

    /// What the packet is, if it is of a kind that may be joined.
    fn head(&self, packet: &[u8]) -> Option<Head> {
        let (transport, protocol, v4) = match packet.first()? {
            0x45 if read_u16(packet, 6) & 0x3fff == 0 => (IPV4_HEADER, *packet.get(9)?, true),
            first if first >> 4 == 6 => (IPV6_HEADER, *packet.get(6)?, false),
            _ => return None,
        };
        let header = packet.get(transport..)?;
        let (kind, header_len) = match protocol {
            6 if self.tcp && header.len() >= TCP_HEADER => {
                let len = usize::from(header[12] >> 4) * 4;
                (if v4 { GsoKind::TcpV4 } else { GsoKind::TcpV6 }, len)
            }
            17 if self.udp && header.len() >= UDP_HEADER => {
                // Without a checksum there is nothing to verify, and a length of its own could hide bytes.
                let plain =
                    read_u16(header, UDP_CHECKSUM) == 0 || usize::from(read_u16(header, 4)) != header.len();
                if plain {
                    return None;
                }
                (GsoKind::Udp, UDP_HEADER)
            }
            _ => return None,
        };
        if kind != GsoKind::Udp && header_len < TCP_HEADER || header_len > header.len() {
            return None;
        }
        let payload = header.len() - header_len;
        // Ports and the low halves of the addresses tell flows apart; what collides is compared in full.
        let low = if v4 { read_u32(packet, 12) ^ read_u32(packet, 16) } else { read_u32(packet, 20) };
        let flow = (read_u32(header, 0) ^ low.rotate_left(16)).wrapping_mul(0x9e37_79b1);
        Some(Head { kind, transport, header_len: transport + header_len, payload, flow })
    }
}

impl Head {
    fn protocol(&self) -> u8 {
        if self.kind == GsoKind::Udp { 17 } else { 6 }
    }

    /// Where in the transport header the checksum is.
    fn field(&self) -> usize {
        if self.kind == GsoKind::Udp { UDP_CHECKSUM } else { TCP_CHECKSUM }
    }
}

impl Piece {
    fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

impl<T: Copy + PartialEq> Group<'_, T> {
    /// What was given with its packets.
    #[must_use]
    pub fn tag(&self) -> T {
        self.item.tag
    }

    /// How many packets it is.
    #[must_use]
    pub fn packets(&self) -> usize {
        usize::from(self.item.count)
    }

    /// Length of the result: of the one packet, or of the super-packet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.item.total
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.item.total == 0
    }

    /// Where each of the packets lies, whole, in order.
    pub fn originals(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.pieces().map(|piece| piece.range())
    }

    /// Where the payload of each packet lies.
    pub fn payloads(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let header_len = self.item.head.map_or(0, |head| head.header_len);
        self.originals().map(move |range| (range.start + header_len).min(range.end)..range.end)
    }

    /// Writes virtio-net header and headers of the super-packet to the start of `out`, of [`HEAD`] bytes or more, and
    /// says how many bytes that is. `memory` is what the packets were pushed from. `None` for a single packet, which
    /// is best handed on as it is, after a virtio-net header of zeros.
    pub fn write_headers(&self, memory: &[u8], out: &mut [u8]) -> Option<usize> {
        if self.item.count < 2 {
            return None;
        }
        let head = self.item.head?;
        let first = self.coalescer.bytes(memory, self.item.first);
        let last = self.coalescer.bytes(memory, self.item.last);
        let (vnet, rest) = out.split_at_mut_checked(VNET_LEN)?;
        let headers = rest.get_mut(..head.header_len)?;
        headers.copy_from_slice(first.get(..head.header_len)?);
        let total = self.item.total;
        let transport_len = total - head.transport;
        if head.transport == IPV4_HEADER {
            write(headers, 2, &(total as u16).to_be_bytes());
            finish_ipv4(headers);
        } else {
            write(headers, 4, &(transport_len as u16).to_be_bytes());
        }
        let field = head.field();
        let header = headers.get_mut(head.transport..)?;
        let mut ecn = false;
        if head.kind == GsoKind::Udp {
            write(header, 4, &(transport_len as u16).to_be_bytes());
        } else {
            header[13] |= last.get(head.transport + 13)? & (tcp_flag::PSH | tcp_flag::FIN);
            ecn = header[13] & tcp_flag::CWR != 0;
        }
        let partial = self.item.pseudo?.word(transport_len as u16).fold();
        write(header, field, &partial.to_be_bytes());
        let vnet_header = VnetHeader {
            partial: Some(PartialChecksum { start: head.transport as u16, offset: field as u16 }),
            gso: Some(Gso { kind: head.kind, size: head.payload as u16, ecn }),
            header_len: head.header_len as u16,
        };
        vnet.copy_from_slice(&vnet_header.to_bytes());
        Some(VNET_LEN + head.header_len)
    }

    fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut next = self.item.first;
        core::iter::from_fn(move || {
            let piece = *self.coalescer.pieces.get(next as usize)?;
            next = piece.next;
            Some(piece)
        })
    }
}

/// Same addresses and ports.
fn same_flow(first: &[u8], packet: &[u8], head: &Head) -> bool {
    let addresses = if head.transport == IPV4_HEADER { 12..20 } else { 8..40 };
    let ports = head.transport..head.transport + 4;
    first.get(addresses.clone()) == packet.get(addresses) && first.get(ports.clone()) == packet.get(ports)
}

/// Whether nothing may join a run behind this packet.
fn ends_run(packet: &[u8], head: &Head) -> bool {
    if head.kind == GsoKind::Udp {
        return head.payload == 0;
    }
    let flags = packet.get(head.transport + 13).copied().unwrap_or_default();
    let plain = flags & !(tcp_flag::ECE | tcp_flag::CWR) == tcp_flag::ACK;
    head.payload == 0 || !plain
}

/// Whether `packet` is what follows `count` packets with `sent` bytes of payload that began with `first`.
fn continues(first: &[u8], packet: &[u8], head: &Head, sent: usize, count: u16) -> bool {
    let same = |range: Range<usize>| first.get(range.clone()) == packet.get(range);
    let network = if head.transport == IPV4_HEADER {
        let (id, expected) = (read_u16(packet, 4), read_u16(first, 4).wrapping_add(count));
        // What may not be fragmented needs no identification, and some senders leave it constant (RFC 6864 §4.1).
        let constant = read_u16(first, 6) & 0x4000 != 0 && id == read_u16(first, 4);
        same(0..2) && same(6..10) && (id == expected || constant)
    } else {
        same(0..4) && same(6..8)
    };
    if !network || head.kind == GsoKind::Udp {
        return network;
    }
    let tcp = head.transport;
    let (flags_first, flags) = (first.get(tcp + 13), packet.get(tcp + 13));
    let (Some(flags_first), Some(flags)) = (flags_first, flags) else { return false };
    // The first packet's CWR is kept: whoever cuts the super-packet gives it to the first segment only.
    let changed = (flags_first & !tcp_flag::CWR) ^ flags;
    let sequence = read_u32(first, tcp + 4).wrapping_add(sent as u32);
    changed & !(tcp_flag::PSH | tcp_flag::FIN) == 0
        && read_u32(packet, tcp + 4) == sequence
        && same(tcp + 8..tcp + 13)
        && same(tcp + 14..tcp + 16)
        && same(tcp + 18..tcp + 20)
        && same(tcp + TCP_HEADER..head.header_len)
}

/// Whether the checksums are right. `pseudo` is the sum of the packet's pseudo-header but for its length.
///
/// A checksum that was left unfinished counts as right: it says nothing, and whoever takes the super-packet finishes its
/// checksum.
fn is_right(packet: &[u8], head: &Head, pseudo: Sum) -> bool {
    let v4 = head.transport == IPV4_HEADER;
    if v4 && !Sum::default().bytes(packet.get(..IPV4_HEADER).unwrap_or_default()).is_right() {
        return false;
    }
    let transport = packet.get(head.transport..).unwrap_or_default();
    let pseudo = pseudo.word(transport.len() as u16);
    read_u16(transport, head.field()) == pseudo.fold() || pseudo.bytes(transport).is_right()
}
