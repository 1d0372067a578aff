//! Tunnel device to UDP: super-packets are cut, small packets share sends.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use encap::offload::Feature;
use encap::offload::segment::{self, Segments};
use encap::offload::trains::{MAX_BYTES, MAX_SEGMENTS, Trains};
use encap::offload::vnet::{VNET_LEN, VnetHeader};
use encap::{DropReason, Fib, NextHop, Outbound, PeerId, ecn, flow};

use super::answers::Answers;
use super::codec::{Codec, MAX_HEADER};
use super::{BATCH, Lane, Shared};
use crate::ports::{DatagramIo, FrameIo, SendError, Target, Transmit, Wake};

/// Room before each frame. With the virtio-net header, which nobody needs once it is read, it holds the header of the
/// datagram, so that header and packet go to the socket in one piece.
const HEADROOM: usize = MAX_HEADER - VNET_LEN;

/// The longest frame: a virtio-net header and an IPv6 packet whose length field says 65,535, with room before it.
const FRAME: usize = HEADROOM + VNET_LEN + 40 + 65_535;

/// Memory for the packets that wait to share a send: as many as usually fit, and a whole frame more.
const MEMORY: usize = BATCH * 2048 + FRAME;

/// Sends per system call: enough that its cost hardly counts, and few enough that a list of them is made in no time.
const SENDS: usize = 16;

/// What such a list is filled with.
const NOTHING: Transmit<'static> = Transmit {
    to: Target { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), ecn: ecn::NOT_ECT, flow: None },
    peer: PeerId(0),
    segment: None,
    parts: &[],
};

/// From one queue of the tunnel device to UDP, until told to stop (`Ok`) or the device fails (`Err`).
pub(super) fn encapsulate<C: Codec, T: FrameIo, U: DatagramIo>(
    shared: &Shared,
    queue: usize,
    codec: C,
    tun: &mut T,
    udp: &mut U,
    now: impl Fn() -> u64,
) -> io::Result<()> {
    let mut memory = vec![0; MEMORY].into_boxed_slice();
    let mut cutter = Cutter::new(shared, shared.tx.lane(queue), codec, udp.flow_ports());
    while !shared.stopped() {
        // Asked once more before waiting: a read that finds nothing costs less than `poll` does, and under load it finds
        // something.
        if cutter.turn(&mut memory, tun, udp, &now)? == 0 && tun.wait()? == Wake::Stop {
            break;
        }
    }
    Ok(())
}

/// A packet waits for those behind it in the device's queue that go there, too, and no longer.
#[derive(Clone, Copy, PartialEq)]
struct Toward {
    peer: PeerId,
    addr: IpAddr,
    /// From which port.
    flow: Option<usize>,
}

struct Cutter<'s, C> {
    shared: &'s Shared,
    lane: &'s Lane,
    codec: C,
    flow_ports: usize,
    headers: Box<[u8]>,
    trains: Trains<Toward>,
    /// Where the packets in `trains` lie.
    waiting: Vec<Range<usize>>,
    answers: Answers,
}

/// What a packet turned out to be.
enum Taken {
    /// It waits in memory.
    Waits,
    /// Its memory may be used again.
    Done,
}

impl<'s, C: Codec> Cutter<'s, C> {
    fn new(shared: &'s Shared, lane: &'s Lane, codec: C, flow_ports: usize) -> Self {
        let each = C::HEADER + segment::MAX_HEADERS;
        Self {
            shared,
            lane,
            codec,
            flow_ports,
            headers: vec![0; MAX_SEGMENTS * each].into_boxed_slice(),
            trains: Trains::new(BATCH),
            waiting: Vec::with_capacity(BATCH),
            answers: Answers::default(),
        }
    }

    /// Reads and sends until the device is empty or enough was done in one go; says how many packets that were.
    fn turn<T: FrameIo, U: DatagramIo>(
        &mut self,
        memory: &mut [u8],
        tun: &mut T,
        udp: &mut U,
        now: impl Fn() -> u64,
    ) -> io::Result<usize> {
        let fib = self.shared.fib.load();
        self.trains.limit(if self.shared.offloads.has(Feature::Gso) { MAX_SEGMENTS } else { 1 });
        let (mut used, mut packets) = (0, 0);
        let mut failure = None;
        for _ in 0..BATCH {
            if self.trains.is_full() || memory.len() - used < FRAME {
                break;
            }
            let start = used + HEADROOM;
            let room = memory.get_mut(start..).unwrap_or_default();
            match tun.read(room) {
                Ok(Some(len)) => {
                    let (count, taken) = self.take(memory, start..start + len, &fib, tun, udp, &now);
                    packets += count;
                    if matches!(taken, Taken::Waits) {
                        used = start + len;
                    }
                }
                Ok(None) => break,
                // What was read before the device failed is still worth sending.
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        self.flush(memory, udp);
        if packets > 0 {
            self.lane.batch(packets);
        }
        failure.map_or(Ok(packets), Err)
    }

    /// Sends a super-packet, or lets another packet wait. Says also how many packets it is on the wire.
    fn take<T: FrameIo, U: DatagramIo>(
        &mut self,
        memory: &mut [u8],
        at: Range<usize>,
        fib: &Fib,
        tun: &mut T,
        udp: &mut U,
        now: impl Fn() -> u64,
    ) -> (usize, Taken) {
        let lane = self.lane;
        let frame = memory.get_mut(at.clone()).unwrap_or_default();
        let bad = |lane: &Lane| {
            lane.dropped(DropReason::BadPacket);
            (1, Taken::Done)
        };
        let Ok(vnet) = VnetHeader::parse(frame) else { return bad(lane) };
        let packet = frame.get_mut(VNET_LEN..).unwrap_or_default();
        let Some(gso) = vnet.gso else {
            if vnet.partial.is_some_and(|partial| segment::finish_checksum(packet, partial).is_err()) {
                return bad(lane);
            }
            match encap::outbound(fib, packet) {
                Outbound::Send { hop, len } => {
                    let (toward, ecn) = (self.toward(hop, packet), mark(hop, packet));
                    let start = at.start + VNET_LEN;
                    match self.codec.seal(hop, memory, start..start + len) {
                        Ok(datagram) => {
                            self.trains.push(toward, ecn, datagram.len());
                            self.waiting.push(datagram);
                            return (1, Taken::Waits);
                        }
                        Err(reason) => lane.dropped(reason),
                    }
                }
                Outbound::Drop { reason, answer } => {
                    lane.dropped(reason);
                    if let Some(cause) = answer {
                        self.answers.write(cause, packet, tun, lane, now);
                    }
                }
            }
            return (1, Taken::Done);
        };
        let Ok(plan) = Segments::plan(packet, vnet.partial, gso) else { return bad(lane) };
        match encap::outbound_segments(fib, packet, plan.packet_len()) {
            Outbound::Send { hop, .. } => {
                // Packets of the same flow may wait, and they were first.
                self.flush(memory, udp);
                let packet = memory.get(at).and_then(|frame| frame.get(VNET_LEN..)).unwrap_or_default();
                let plan = if hop.caps.partial_checksum { plan.leave_checksums() } else { plan };
                self.cut(packet, &plan, hop, udp);
            }
            Outbound::Drop { reason, answer } => {
                lane.dropped_many(reason, plan.count());
                if let Some(cause) = answer {
                    self.answers.write(cause, packet, tun, lane, now);
                }
            }
        }
        (plan.count(), Taken::Done)
    }

    fn toward(&self, hop: &NextHop, packet: &[u8]) -> Toward {
        let flow = hop.caps.flow_ports.then(|| flow::hash(packet) as usize % self.flow_ports.max(1));
        Toward { peer: hop.peer, addr: hop.addr, flow }
    }

    /// Sends the packets of a super-packet: its headers from memory of ours, its payload from where it lies.
    fn cut<U: DatagramIo>(&mut self, packet: &[u8], plan: &Segments, hop: &NextHop, udp: &mut U) {
        let count = plan.count();
        let (header_len, size) = (C::HEADER + plan.header_len(), C::HEADER + plan.packet_len());
        let most = (MAX_BYTES / size).clamp(1, MAX_SEGMENTS);
        // As even as can be: a send of two packets costs nearly as much as one of twenty.
        let per_send = count.div_ceil(count.div_ceil(most));
        let (toward, ecn) = (self.toward(hop, packet), mark(hop, packet));
        let mut first = 0;
        while first < count {
            let sent = per_send.min(count - first);
            for at in 0..sent {
                let inner = at * header_len + C::HEADER..(at + 1) * header_len;
                plan.write_headers(
                    packet,
                    first + at,
                    self.headers.get_mut(inner.clone()).unwrap_or_default(),
                );
                // What a codec puts before the packets is the same for all that go to one node.
                if at > 0 {
                    self.headers.copy_within(0..C::HEADER, at * header_len);
                } else if first == 0
                    && let Err(reason) = self.codec.seal(hop, &mut self.headers, inner)
                {
                    return self.lane.dropped_many(reason, count);
                }
            }
            let mut parts = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
            let headers = self.headers.chunks_exact(header_len);
            for ((pair, headers), at) in parts.chunks_exact_mut(2).zip(headers).zip(0..sent) {
                pair[0] = IoSlice::new(headers);
                pair[1] = IoSlice::new(packet.get(plan.payload(first + at)).unwrap_or_default());
            }
            let parts = parts.get(..2 * sent).unwrap_or_default();
            let all = toward.transmit(ecn, segment(size, sent), parts);
            if self.shared.offloads.has(Feature::Gso) {
                self.send(udp, &[all], 2);
            } else {
                self.send_one_by_one(udp, &all, 2);
            }
            first += sent;
        }
    }

    /// Sends what waits.
    fn flush<U: DatagramIo>(&mut self, memory: &[u8], udp: &mut U) {
        if self.waiting.is_empty() {
            return;
        }
        let mut parts = [IoSlice::new(&[]); BATCH];
        let members = self.trains.trains().iter().flat_map(|train| self.trains.members(train));
        for (part, member) in parts.iter_mut().zip(members) {
            let range = self.waiting.get(member).cloned().unwrap_or_default();
            *part = IoSlice::new(memory.get(range).unwrap_or_default());
        }
        let mut rest = parts.as_slice();
        for trains in self.trains.trains().chunks(SENDS) {
            let mut transmits = [NOTHING; SENDS];
            for (transmit, train) in transmits.iter_mut().zip(trains) {
                let (parts, behind) = rest.split_at_checked(train.count).unwrap_or_default();
                *transmit = train.to.transmit(train.ecn, segment(train.size, train.count), parts);
                rest = behind;
            }
            self.send(udp, transmits.get(..trains.len()).unwrap_or_default(), 1);
        }
        self.trains.clear();
        self.waiting.clear();
    }

    /// Sends and counts datagrams of `each` parts.
    fn send<U: DatagramIo>(&self, udp: &mut U, mut transmits: &[Transmit<'_>], each: usize) {
        while let Some(first) = transmits.first() {
            let done = match udp.send(transmits) {
                Ok(sent) => {
                    transmits.iter().take(sent).for_each(|sent| self.count(sent, each));
                    sent.max(1)
                }
                Err(error) => {
                    self.failed(udp, first, error, each);
                    1
                }
            };
            transmits = transmits.get(done..).unwrap_or_default();
        }
    }

    /// Headers of ours are not counted.
    fn count(&self, sent: &Transmit<'_>, each: usize) {
        let packets = sent.parts.len() / each;
        let bytes: usize = sent.parts.iter().map(|part| part.len()).sum();
        self.lane.forwarded_many(Some(sent.peer), packets, bytes.saturating_sub(packets * C::HEADER));
    }

    /// What the kernel did not take in one piece it may take datagram by datagram.
    fn failed<U: DatagramIo>(&self, udp: &mut U, transmit: &Transmit<'_>, error: SendError, each: usize) {
        let packets = transmit.parts.len() / each;
        match error {
            SendError::Dropped(reason) => self.lane.dropped_many(reason, packets),
            SendError::TooMuch if transmit.segment.is_none() => self.lane.dropped(DropReason::TooBig),
            SendError::Unsupported if transmit.segment.is_none() => self.lane.dropped(DropReason::SendFailed),
            SendError::TooMuch => self.send_one_by_one(udp, transmit, each),
            SendError::Unsupported => {
                self.shared.offloads.fail(Feature::Gso);
                self.send_one_by_one(udp, transmit, each);
            }
        }
    }

    fn send_one_by_one<U: DatagramIo>(&self, udp: &mut U, all: &Transmit<'_>, each: usize) {
        for parts in all.parts.chunks(SENDS * each) {
            let mut transmits = [NOTHING; SENDS];
            let singles = parts.chunks(each);
            let count = singles.len();
            for (transmit, parts) in transmits.iter_mut().zip(singles) {
                *transmit = Transmit { segment: None, parts, ..*all };
            }
            self.send(udp, transmits.get(..count).unwrap_or_default(), each);
        }
    }
}

impl Toward {
    fn transmit<'p>(self, ecn: u8, segment: Option<u16>, parts: &'p [IoSlice<'p>]) -> Transmit<'p> {
        let to = Target { addr: self.addr, ecn, flow: self.flow };
        Transmit { to, peer: self.peer, segment, parts }
    }
}

/// The size of several datagrams in one piece; together they have at most [`MAX_BYTES`], so it is a `u16`.
fn segment(size: usize, count: usize) -> Option<u16> {
    u16::try_from(size).ok().filter(|_| count > 1)
}

/// The outer packet bears the inner one's mark if whoever takes it out carries marks over.
fn mark(hop: &NextHop, packet: &[u8]) -> u8 {
    if hop.caps.ecn { ecn::of(packet) } else { ecn::NOT_ECT }
}
