//! UDP to tunnel device: what the kernel received together is written together.

use std::io::{self, IoSlice};
use std::ops::Range;

use encap::offload::Feature;
use encap::offload::coalesce::{Coalescer, Group, HEAD, MAX_RUN};
use encap::offload::segment::finish_checksum;
use encap::offload::unfinished::unfinished;
use encap::offload::vnet::VnetHeader;
use encap::{DropReason, Fib, Gate, Inbound, IpPacket, Owner, PeerId, mtu};

use super::codec::Codec;
use super::{BATCH, Lane, Shared};
use crate::ports::{Batch, DatagramIo, FrameIo, Received, SendError, Wake};

/// Receives per turn with `UDP_GRO`. Each may hold 64 KB, and together they should not push each other out of the level-2
/// cache.
const RECEIVES: usize = 16;

/// Packets per turn: `UDP_GRO` puts up to 64 into one receive.
const PACKETS: usize = RECEIVES * 64;

/// UDP to one queue of the tunnel device, until told to stop (`Ok`) or the socket fails (`Err`).
pub(super) fn decapsulate<C: Codec, T: FrameIo, U: DatagramIo>(
    shared: &Shared,
    queue: usize,
    codec: C,
    udp: &mut U,
    tun: &mut T,
) -> io::Result<()> {
    let mut batch = Batch::new(BATCH);
    let lane = shared.rx.lane(queue);
    let finish = !tun.has_headers();
    let mut joiner = Joiner { shared, lane, codec, finish, coalescer: Coalescer::new(PACKETS, true, true) };
    while !shared.stopped() {
        batch.limit(if shared.offloads.has(Feature::Gro) { RECEIVES } else { BATCH });
        udp.recv(&mut batch)?;
        let received = batch.received().len();
        if received > 0 {
            joiner.turn(&mut batch, tun);
        }
        // Under load there is more by now, and trying costs less than asking.
        if received == 0 && udp.wait()? == Wake::Stop {
            break;
        }
    }
    Ok(())
}

struct Joiner<'s, C> {
    shared: &'s Shared,
    lane: &'s Lane,
    codec: C,
    /// The device cannot be told that a checksum is left to do, so it is done here.
    finish: bool,
    coalescer: Coalescer<Option<PeerId>>,
}

impl<C: Codec> Joiner<'_, C> {
    fn turn<T: FrameIo>(&mut self, batch: &mut Batch, tun: &mut T) {
        let fib = self.shared.fib.load();
        let offloads = self.shared.offloads.active();
        let tcp = offloads.has(Feature::Coalesce);
        self.coalescer.allow(tcp, tcp && offloads.has(Feature::Uso));
        let mut gate = Gate::new(&fib, self.shared.check);
        let mut packets = 0;
        let (filled, memory) = batch.parts_mut();
        for (slot, received) in filled.iter().enumerate() {
            for at in datagrams(slot, received) {
                packets += 1;
                self.take(memory, at, received, (&fib, &mut gate), tun);
            }
        }
        self.flush(memory, tun);
        self.lane.batch(packets);
    }

    fn take<T: FrameIo>(
        &mut self,
        memory: &mut [u8],
        at: Range<usize>,
        received: &Received,
        (fib, gate): (&Fib, &mut Gate<'_>),
        tun: &mut T,
    ) {
        let datagram = memory.get_mut(at.clone()).unwrap_or_default();
        let Some((peer, packet)) = self.admit(gate, received, datagram) else { return };
        let at = at.start + packet.start..at.start + packet.end;
        let packet = memory.get(at.clone()).unwrap_or_default();
        // Nobody but a kernel's own tunnel sends super-packets, so nobody else pays for the look.
        if C::KERNEL_PEERS
            && let Some(todo) = unfinished(packet, longest(fib, packet))
        {
            // What came before it goes first.
            self.flush(memory, tun);
            let packet = memory.get(at).unwrap_or_default();
            return write_unfinished(self.lane, peer, &todo, packet, tun);
        }
        if self.finish {
            finish(memory.get_mut(at.clone()).unwrap_or_default());
        }
        if self.coalescer.is_full() {
            self.flush(memory, tun);
        }
        self.coalescer.push(memory, at, peer);
    }

    /// Judges one datagram: whose packet is in it, and where that lies. Counts what is not let in. The packet takes over
    /// the mark of a congested network.
    fn admit(
        &mut self,
        gate: &mut Gate<'_>,
        received: &Received,
        datagram: &mut [u8],
    ) -> Option<(Option<PeerId>, Range<usize>)> {
        let lane = self.lane;
        let (verdict, start) = match received.from {
            Some(from) if !received.truncated => match self.codec.open(from, datagram) {
                Ok((sender, at)) => {
                    let start = at.start;
                    (gate.inbound(sender, datagram.get(at).unwrap_or_default()), start)
                }
                Err(reason) => (Inbound::Drop { reason }, 0),
            },
            Some(_) => (Inbound::Drop { reason: DropReason::Truncated }, 0),
            None => (Inbound::Drop { reason: DropReason::UnknownSender }, 0),
        };
        match verdict {
            Inbound::Deliver { peer, len, flagged } => {
                let packet = datagram.get_mut(start..).unwrap_or_default();
                if !encap::ecn::decapsulate(packet, received.ecn) {
                    lane.dropped(DropReason::Congestion);
                    return None;
                }
                if let Some(reason) = flagged {
                    lane.flag(reason);
                }
                Some((peer, start..start + len))
            }
            Inbound::Drop { reason } => {
                lane.dropped(reason);
                if let Some(from) = received.from {
                    self.shared.rx.refused(reason, from.ip());
                }
                None
            }
        }
    }

    fn flush<T: FrameIo>(&mut self, memory: &[u8], tun: &mut T) {
        for group in self.coalescer.groups() {
            self.write(&group, memory, tun);
        }
        self.coalescer.clear();
    }

    fn write<T: FrameIo>(&self, group: &Group<'_, Option<PeerId>>, memory: &[u8], tun: &mut T) {
        let lane = self.lane;
        let mut head = [0; HEAD];
        let joined = self.shared.offloads.has(Feature::Coalesce);
        if let Some(len) = group.write_headers(memory, &mut head).filter(|_| joined) {
            let mut parts = [IoSlice::new(&[]); 1 + MAX_RUN];
            parts[0] = IoSlice::new(head.get(..len).unwrap_or_default());
            for (part, range) in parts.iter_mut().skip(1).zip(group.payloads()) {
                *part = IoSlice::new(memory.get(range).unwrap_or_default());
            }
            match tun.write(parts.get(..1 + group.packets()).unwrap_or_default()) {
                Ok(()) => {
                    let bytes = group.originals().map(|range| range.len()).sum();
                    return lane.forwarded_many(group.tag(), group.packets(), bytes);
                }
                Err(SendError::Dropped(reason)) => return lane.dropped_many(reason, group.packets()),
                Err(SendError::Unsupported | SendError::TooMuch) => {
                    self.shared.offloads.fail(Feature::Coalesce);
                }
            }
        }
        for range in group.originals() {
            self.write_one(group.tag(), memory.get(range).unwrap_or_default(), tun);
        }
    }

    fn write_one<T: FrameIo>(&self, peer: Option<PeerId>, packet: &[u8], tun: &mut T) {
        // Of a run whose other packets were lost, or too few to be cut evenly. Where it was finished here it is whole,
        // also the one in 65,536 that does not look so.
        let todo = if self.finish { None } else { unfinished(packet, usize::MAX) };
        match tun.write(&[IoSlice::new(&todo.unwrap_or_default().to_bytes()), IoSlice::new(packet)]) {
            Ok(()) => self.lane.forwarded(peer, packet.len()),
            Err(SendError::Dropped(reason)) => self.lane.dropped(reason),
            // The kernel looks at the version nibble and refuses what is neither IPv4 nor IPv6.
            Err(SendError::Unsupported | SendError::TooMuch) => self.lane.dropped(DropReason::BadPacket),
        }
    }
}

/// The longest packet of the node that has a packet's source. Of a source that no node has only the least is known.
fn longest(fib: &Fib, packet: &[u8]) -> usize {
    let source = IpPacket::parse(packet).ok().and_then(|packet| fib.lookup(packet.src()));
    match source {
        Some(Owner::Peer(hop)) => hop.mtu.into(),
        _ => mtu::MIN_IPV6.into(),
    }
}

fn finish(packet: &mut [u8]) {
    let todo = unfinished(packet, usize::MAX).and_then(|todo| todo.partial);
    // What was found in the packet lies in it.
    let _ = todo.map(|partial| finish_checksum(packet, partial));
}

/// Writes a packet that the sending kernel left unfinished, and tells ours what is left to do.
fn write_unfinished<T: FrameIo>(
    lane: &Lane,
    peer: Option<PeerId>,
    todo: &VnetHeader,
    packet: &[u8],
    tun: &mut T,
) {
    let payload = packet.len().saturating_sub(todo.header_len.into());
    let packets = todo.gso.map_or(1, |gso| payload.div_ceil(gso.size.into()));
    match tun.write(&[IoSlice::new(&todo.to_bytes()), IoSlice::new(packet)]) {
        Ok(()) => lane.forwarded_many(peer, packets, packet.len()),
        Err(SendError::Dropped(reason)) => lane.dropped_many(reason, packets),
        Err(SendError::Unsupported | SendError::TooMuch) => lane.dropped_many(DropReason::BadPacket, packets),
    }
}

/// Where in the batch's memory the datagrams of a slot lie.
fn datagrams(slot: usize, received: &Received) -> impl Iterator<Item = Range<usize>> {
    let start = slot * Batch::SLOT;
    let (len, step) = (received.len, received.segment.map_or(received.len, |step| usize::from(step.get())));
    // An empty datagram is one, too.
    (0..len.max(1)).step_by(step.max(1)).map(move |at| start + at..start + (at + step).min(len))
}
