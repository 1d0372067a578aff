//! Tunnel device to UDP with offloads: super-packets are cut, small packets share sends.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::ops::Range;

use encap::offload::runs::{MAX_BYTES, MAX_SEGMENTS, Run, Runs};
use encap::offload::segment::{self, Segments};
use encap::offload::vnet::{VNET_LEN, VnetHeader};
use encap::{DropReason, Family, Fib, Framing, NextHop, Outbound, PeerId, flow};

use super::answers::Answers;
use super::{BATCH, Lane, Shared};
use crate::ports::{FrameIo, SegmentIo, SendError, Target, Wake};
use encap::offload::Feature;

/// Room before each frame. With the virtio-net header, which nobody needs once it is read, it holds the header of the
/// datagram, so that header and packet go to the socket in one piece.
const HEADROOM: usize = Framing::MAX_HEADER - VNET_LEN;

/// The longest frame: a virtio-net header and an IPv6 packet whose length field says 65,535, with room before it.
const FRAME: usize = HEADROOM + VNET_LEN + 40 + 65_535;

/// Memory for the packets that wait to share a send: as many as usually fit, and a whole frame more.
const MEMORY: usize = BATCH * 2048 + FRAME;

/// From one queue of the tunnel device to UDP, until told to stop (`Ok`) or the device fails (`Err`).
///
/// `now` is a monotonic clock in nanoseconds; it is read only when an ICMP error is due.
pub fn encapsulate_offloaded<T: FrameIo, U: SegmentIo>(
    shared: &Shared,
    queue: usize,
    framing: Framing,
    tun: &mut T,
    udp: &mut U,
    now: impl Fn() -> u64,
) -> io::Result<()> {
    let mut memory = vec![0; MEMORY].into_boxed_slice();
    let mut cutter = Cutter::new(shared, shared.tx.lane(queue), framing, udp.flow_ports());
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

struct Cutter<'s> {
    shared: &'s Shared,
    lane: &'s Lane,
    framing: Framing,
    flow_ports: usize,
    headers: Box<[u8]>,
    runs: Runs<Toward>,
    /// Where the packets in `runs` lie.
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

impl<'s> Cutter<'s> {
    fn new(shared: &'s Shared, lane: &'s Lane, framing: Framing, flow_ports: usize) -> Self {
        let each = Framing::MAX_HEADER + segment::MAX_HEADERS;
        Self {
            shared,
            lane,
            framing,
            flow_ports,
            headers: vec![0; MAX_SEGMENTS * each].into_boxed_slice(),
            runs: Runs::new(BATCH),
            waiting: Vec::with_capacity(BATCH),
            answers: Answers::default(),
        }
    }

    /// Reads and sends until the device is empty or enough was done in one go; says how many packets that were.
    fn turn<T: FrameIo, U: SegmentIo>(
        &mut self,
        memory: &mut [u8],
        tun: &mut T,
        udp: &mut U,
        now: impl Fn() -> u64,
    ) -> io::Result<usize> {
        let fib = self.shared.fib.load();
        self.runs.limit(if self.shared.offloads.has(Feature::Gso) { MAX_SEGMENTS } else { 1 });
        let (mut used, mut packets) = (0, 0);
        let mut failure = None;
        for _ in 0..BATCH {
            if self.runs.is_full() || memory.len() - used < FRAME {
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
    fn take<T: FrameIo, U: SegmentIo>(
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
                    let (start, header) = (at.start + VNET_LEN, self.framing.header_len());
                    let (family, ecn) = (family(packet), self.mark(hop, packet));
                    let toward = self.toward(hop, packet);
                    let room = memory.get_mut(start - header..start).unwrap_or_default();
                    if let Err(reason) = self.framing.write(hop, family, room) {
                        lane.dropped(reason);
                        return (1, Taken::Done);
                    }
                    self.runs.push(toward, ecn, header + len);
                    self.waiting.push(start - header..start + len);
                    return (1, Taken::Waits);
                }
                Outbound::Drop { reason, answer } => {
                    lane.dropped(reason);
                    if let Some(cause) = answer {
                        self.answers.frame(cause, packet, tun, lane, now);
                    }
                    return (1, Taken::Done);
                }
            }
        };
        let Ok(plan) = Segments::plan(packet, vnet.partial, gso) else { return bad(lane) };
        match encap::outbound_segments(fib, packet, plan.packet_len()) {
            Outbound::Send { hop, .. } => {
                // Packets of the same flow may wait, and they were first.
                self.flush(memory, udp);
                let packet = memory.get(at).and_then(|frame| frame.get(VNET_LEN..)).unwrap_or_default();
                // Only in the UDP backend: a kernel takes what it finds in VXLAN for finished.
                let theirs = hop.caps.partial_checksum && self.framing == Framing::Plain;
                let plan = if theirs { plan.leave_checksums() } else { plan };
                self.cut(packet, &plan, hop, udp);
            }
            Outbound::Drop { reason, answer } => {
                lane.dropped_many(reason, plan.count());
                if let Some(cause) = answer {
                    self.answers.frame(cause, packet, tun, lane, now);
                }
            }
        }
        (plan.count(), Taken::Done)
    }

    /// In VXLAN nobody judges by the port.
    fn toward(&self, hop: &NextHop, packet: &[u8]) -> Toward {
        let told_apart = hop.caps.flow_ports || self.framing != Framing::Plain;
        let flow = told_apart.then(|| flow::hash(packet) as usize % self.flow_ports.max(1));
        Toward { peer: hop.peer, addr: hop.addr, flow }
    }

    /// The outer packet bears the inner one's mark if whoever takes it out carries marks over: every VXLAN does, flannel's
    /// UDP backend does not.
    fn mark(&self, hop: &NextHop, packet: &[u8]) -> u8 {
        let carried = hop.caps.ecn || self.framing != Framing::Plain;
        if carried { encap::ecn::of(packet) } else { encap::ecn::NOT_ECT }
    }

    /// Sends the packets of a super-packet: its headers from memory of ours, its payload from where it lies.
    fn cut<U: SegmentIo>(&mut self, packet: &[u8], plan: &Segments, hop: &NextHop, udp: &mut U) {
        let count = plan.count();
        let before = self.framing.header_len();
        let (header_len, size) = (before + plan.header_len(), before + plan.packet_len());
        let mut header = [0; Framing::MAX_HEADER];
        let header = header.get_mut(..before).unwrap_or_default();
        if let Err(reason) = self.framing.write(hop, family(packet), header) {
            return self.lane.dropped_many(reason, count);
        }
        let most = (MAX_BYTES / size).clamp(1, MAX_SEGMENTS);
        // As even as can be: a send of two packets costs nearly as much as one of twenty.
        let per_send = count.div_ceil(count.div_ceil(most));
        let mut first = 0;
        while first < count {
            let sent = per_send.min(count - first);
            for at in 0..sent {
                let start = at * header_len;
                let out = self.headers.get_mut(start..start + header_len);
                if let Some((outer, inner)) = out.and_then(|out| out.split_at_mut_checked(before)) {
                    outer.copy_from_slice(header);
                    plan.write_headers(packet, first + at, inner);
                }
            }
            let mut parts = [IoSlice::new(&[]); 2 * MAX_SEGMENTS];
            let headers = self.headers.chunks_exact(header_len);
            for ((pair, headers), at) in parts.chunks_exact_mut(2).zip(headers).zip(0..sent) {
                pair[0] = IoSlice::new(headers);
                pair[1] = IoSlice::new(packet.get(plan.payload(first + at)).unwrap_or_default());
            }
            let parts = parts.get(..2 * sent).unwrap_or_default();
            self.send(udp, self.toward(hop, packet), self.mark(hop, packet), size, parts, 2);
            first += sent;
        }
    }

    /// Sends what waits.
    fn flush<U: SegmentIo>(&mut self, memory: &[u8], udp: &mut U) {
        for run in self.runs.runs() {
            let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS];
            for (part, member) in parts.iter_mut().zip(self.runs.members(run)) {
                let range = self.waiting.get(member).cloned().unwrap_or_default();
                *part = IoSlice::new(memory.get(range).unwrap_or_default());
            }
            let Run { to, ecn, size, count, .. } = *run;
            self.send(udp, to, ecn, size, parts.get(..count).unwrap_or_default(), 1);
        }
        self.runs.clear();
        self.waiting.clear();
    }

    /// Sends datagrams of `each` parts, all at once if that works, else one by one. Their headers are not counted.
    fn send<U: SegmentIo>(
        &self,
        udp: &mut U,
        to: Toward,
        ecn: u8,
        size: usize,
        parts: &[IoSlice<'_>],
        each: usize,
    ) {
        let lane = self.lane;
        let target = Target { addr: to.addr, ecn, flow: to.flow };
        let packets = parts.len() / each;
        let bytes = |parts: &[IoSlice<'_>]| parts.iter().map(|part| part.len()).sum::<usize>();
        let inner = |bytes: usize, packets: usize| bytes.saturating_sub(packets * self.framing.header_len());
        if packets > 1 && self.shared.offloads.has(Feature::Gso) {
            match udp.send(target, size, parts) {
                Ok(()) => return lane.forwarded_many(Some(to.peer), packets, inner(bytes(parts), packets)),
                Err(SendError::Dropped(reason)) => return lane.dropped_many(reason, packets),
                Err(SendError::Unsupported) => self.shared.offloads.fail(Feature::Gso),
                Err(SendError::TooMuch) => {}
            }
        }
        for one in parts.chunks(each) {
            let len = bytes(one);
            match udp.send(target, len, one) {
                Ok(()) => lane.forwarded(Some(to.peer), inner(len, 1)),
                Err(SendError::Dropped(reason)) => lane.dropped(reason),
                Err(SendError::TooMuch) => lane.dropped(DropReason::TooBig),
                Err(SendError::Unsupported) => lane.dropped(DropReason::SendFailed),
            }
        }
    }
}

/// Of a packet that was found well-formed.
fn family(packet: &[u8]) -> Family {
    if packet.first().is_some_and(|first| first >> 4 == 6) { Family::V6 } else { Family::V4 }
}
