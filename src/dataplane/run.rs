//! The two loops of the plain form: one packet per read and write of the device, and nothing around it on the wire.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use encap::offload::segment::finish_checksum;
use encap::offload::unfinished::unfinished;
use encap::{DropReason, Framing, Gate, Inbound, Outbound, PeerId, flow};

use super::answers::Answers;
use super::{BATCH, Lane, Shared};
use crate::ports::{Batch, PacketIo, Received, Transmit, Wake};

/// Tunnel device to UDP, until told to stop (`Ok`) or the device fails (`Err`).
///
/// `now` is a monotonic clock in nanoseconds; it is read only when an ICMP error is due.
pub fn encapsulate<T: PacketIo, U: PacketIo>(
    shared: &Shared,
    tun: &mut T,
    udp: &mut U,
    now: impl Fn() -> u64,
) -> io::Result<()> {
    let lane = shared.tx.lane(0);
    let mut batch = Batch::new(BATCH);
    let mut transmits = Vec::with_capacity(BATCH);
    let mut answers = Answers::default();
    while !shared.stopped() {
        tun.recv(&mut batch)?;
        let received = batch.received().len();
        if received > 0 {
            lane.batch(received);
            let fib = shared.fib.load();
            for slot in 0..received {
                let packet = batch.packet(slot);
                match encap::outbound(&fib, packet) {
                    Outbound::Send { hop, len } => {
                        transmits.push(Transmit { slot, len, to: Some(hop.addr), peer: Some(hop.peer) });
                    }
                    Outbound::Drop { reason, answer } => {
                        lane.dropped(reason);
                        if let Some(cause) = answer {
                            answers.packet(cause, packet, tun, lane, &now);
                        }
                    }
                }
            }
            udp.send(&batch, &transmits, |transmit, outcome| lane.account(transmit, outcome));
            transmits.clear();
        }
        // A full batch means that more is waiting; asking `poll` about it would be a system call for nothing.
        if received < BATCH && tun.wait()? == Wake::Stop {
            break;
        }
    }
    Ok(())
}

/// UDP to tunnel device, until told to stop (`Ok`) or the socket fails (`Err`).
///
/// The device has one queue, which several of these may share.
pub fn decapsulate<T: PacketIo, U: PacketIo>(
    shared: &Shared,
    queue: usize,
    udp: &mut U,
    tun: &mut T,
) -> io::Result<()> {
    let lane = shared.rx.lane(queue);
    let mut batch = Batch::new(BATCH);
    let mut transmits = Vec::with_capacity(BATCH);
    while !shared.stopped() {
        udp.recv(&mut batch)?;
        let received = batch.received().len();
        if received > 0 {
            lane.batch(received);
            let fib = shared.fib.load();
            let (filled, memory) = batch.parts_mut();
            let mut gate = Gate::new(&fib, shared.check);
            for (slot, (from, memory)) in filled.iter().zip(memory.chunks_mut(Batch::SLOT)).enumerate() {
                let datagram = memory.get_mut(..from.len).unwrap_or_default();
                let admitted = admit(shared, lane, Framing::Plain, &mut gate, from, datagram);
                if admitted.is_some() {
                    finish(datagram);
                }
                transmits.extend(admitted.map(|(peer, len)| Transmit { slot, len, to: None, peer }));
            }
            tun.send(&batch, &transmits, |transmit, outcome| lane.account(transmit, outcome));
            transmits.clear();
        }
        if received < BATCH && udp.wait()? == Wake::Stop {
            break;
        }
    }
    Ok(())
}

/// A plain device cannot be told that the checksum of a packet is left to do.
fn finish(packet: &mut [u8]) {
    let todo = unfinished(packet, usize::MAX).and_then(|todo| todo.partial);
    // What was found in the packet lies in it.
    let _ = todo.map(|partial| finish_checksum(packet, partial));
}

/// Judges one datagram: whose packet is behind its header, and how long it is. Counts what is not let in. The packet
/// takes over the mark of a congested network.
pub(super) fn admit(
    shared: &Shared,
    lane: &Lane,
    framing: Framing,
    gate: &mut Gate<'_>,
    received: &Received,
    datagram: &mut [u8],
) -> Option<(Option<PeerId>, usize)> {
    let verdict = match received.from {
        Some(from) if !received.truncated => match framing.open(datagram) {
            Ok(packet) => gate.inbound(sender(shared, framing, from), packet),
            Err(reason) => Inbound::Drop { reason },
        },
        Some(_) => Inbound::Drop { reason: DropReason::Truncated },
        None => Inbound::Drop { reason: DropReason::UnknownSender },
    };
    match verdict {
        Inbound::Deliver { peer, len, flagged } => {
            let packet = datagram.get_mut(framing.header_len()..).unwrap_or_default();
            if !encap::ecn::decapsulate(packet, received.ecn) {
                lane.dropped(DropReason::Congestion);
                return None;
            }
            if let Some(reason) = flagged {
                lane.flag(reason);
            }
            Some((peer, len))
        }
        Inbound::Drop { reason } => {
            lane.dropped(reason);
            if let Some(from) = received.from {
                shared.rx.refused(reason, from.ip());
            }
            None
        }
    }
}

/// The address that a datagram is judged by.
///
/// In the UDP backend nodes send from the tunnel's own port, as flannel does, or from one of those above, a port for each
/// queue. A pod that writes to the port of another node leaves its own node masqueraded, with that node's address, and
/// with such a port only where masquerading chooses it by chance, or is told to keep the pod's. Which node says that it sends from them is not asked: news of it may be late here, and
/// what it sent meanwhile would be lost. In VXLAN the port says nothing: kernels choose one for each flow.
fn sender(shared: &Shared, framing: Framing, from: SocketAddr) -> IpAddr {
    match framing {
        Framing::Plain if from.port().checked_sub(shared.port).is_none_or(|above| above >= flow::PORTS) => {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        }
        Framing::Plain | Framing::Vxlan { .. } => from.ip(),
    }
}

impl Lane {
    fn account(&self, transmit: &Transmit, outcome: Result<(), DropReason>) {
        match outcome {
            Ok(()) => self.forwarded(transmit.peer, transmit.len),
            Err(reason) => self.dropped(reason),
        }
    }
}
