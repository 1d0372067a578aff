//! A device and a socket in memory, which record where every byte lay; and the nodes, packets and frames of the tests.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;

use encap::offload::Features;
use encap::offload::vnet::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use encap::{
    DropReason, Fib, Framing, MacAddr, NextHop, Owner, PeerCaps, PeerId, SourceCheck, Vni, VxlanFraming,
};
use etherparse::PacketBuilder;

use crate::dataplane::{Shared, decapsulate, encapsulate};
use crate::ports::{Batch, DatagramIo, FrameIo, Received, SendError, Target, Transmit, Wake};

pub(super) const PORT: u16 = 8285;

/// Where the memory is that packets were read into.
pub(super) type ReadInto = Rc<Cell<(usize, usize)>>;

fn addresses(bytes: &[u8]) -> (usize, usize) {
    let range = bytes.as_ptr_range();
    (range.start as usize, range.end as usize)
}

fn lies_in(part: &[u8], memory: (usize, usize)) -> bool {
    let (start, end) = addresses(part);
    memory.0 <= start && end <= memory.1
}

/// The tunnel device.
#[derive(Default)]
pub(super) struct Device {
    pub(super) inbox: VecDeque<Vec<u8>>,
    pub(super) written: Vec<Vec<u8>>,
    pub(super) read_into: ReadInto,
    /// Of each written frame, how many parts lay where packets were received.
    pub(super) in_place: Vec<(usize, usize)>,
    pub(super) no_super_packets: bool,
    /// It is in its plain form.
    pub(super) plain: bool,
    pub(super) broken: bool,
    pub(super) waits: usize,
    pub(super) keep: bool,
}

impl FrameIo for Device {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>> {
        if self.broken {
            return Err(io::Error::from_raw_os_error(77));
        }
        let Some(frame) = self.inbox.pop_front() else { return Ok(None) };
        let (start, end) = self.read_into.get();
        let (low, high) = addresses(memory);
        self.read_into.set(if start == 0 { (low, high) } else { (start.min(low), end.max(high)) });
        memory[..frame.len()].copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        if self.no_super_packets && parts[0][1] != 0 {
            return Err(SendError::Unsupported);
        }
        assert!(!self.plain || *parts[0] == [0; VNET_LEN], "a plain device cannot be told anything");
        if self.keep {
            let place = self.read_into.get();
            self.in_place.push((parts.iter().filter(|part| lies_in(part, place)).count(), parts.len()));
            self.written.push(parts.iter().flat_map(|part| part.to_vec()).collect());
        }
        Ok(())
    }

    fn has_headers(&self) -> bool {
        !self.plain
    }

    fn wait(&mut self) -> io::Result<Wake> {
        self.waits += 1;
        Ok(if self.inbox.is_empty() { Wake::Stop } else { Wake::Ready })
    }
}

/// What one send was.
#[derive(Debug, PartialEq)]
pub(super) struct Sent {
    pub(super) to: Target,
    pub(super) datagrams: Vec<Vec<u8>>,
    pub(super) in_place: usize,
    pub(super) parts: usize,
}

/// What one receive finds: datagrams, and the size of each where there are several.
pub(super) type Message = (Vec<u8>, Option<NonZeroU16>);

/// The outer socket.
pub(super) struct Outer {
    pub(super) inbox: VecDeque<Message>,
    pub(super) from: SocketAddr,
    /// The mark on all of it.
    pub(super) ecn: u8,
    pub(super) sent: Vec<Sent>,
    /// How many sends each call took.
    pub(super) calls: Vec<usize>,
    pub(super) read_into: ReadInto,
    pub(super) refuse: Option<SendError>,
    pub(super) refuse_many: Option<SendError>,
    pub(super) refused: usize,
    pub(super) keep: bool,
}

impl Default for Outer {
    fn default() -> Self {
        Self {
            inbox: VecDeque::new(),
            from: SocketAddr::new(node(1), PORT),
            ecn: 0,
            sent: Vec::new(),
            calls: Vec::new(),
            read_into: ReadInto::default(),
            refuse: None,
            refuse_many: None,
            refused: 0,
            keep: false,
        }
    }
}

impl Outer {
    fn send_one(&mut self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        let Transmit { to, segment, parts, .. } = *transmit;
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let size = segment.map_or(total, usize::from);
        assert!(total <= 65_507 && total.div_ceil(size.max(1)) <= 64);
        if let Some(error) = self.refuse.or(self.refuse_many.filter(|_| segment.is_some())) {
            self.refused += 1;
            return Err(error);
        }
        if self.keep {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            let place = self.read_into.get();
            self.sent.push(Sent {
                to,
                datagrams: bytes.chunks(size).map(<[u8]>::to_vec).collect(),
                in_place: parts.iter().filter(|part| lies_in(part, place)).count(),
                parts: parts.len(),
            });
        }
        Ok(())
    }
}

impl DatagramIo for Outer {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        self.read_into.set(addresses(batch.parts_mut().1));
        for slot in 0..batch.capacity() {
            let Some((message, segment)) = self.inbox.pop_front() else { break };
            batch.slot_mut(slot)[..message.len()].copy_from_slice(&message);
            let from = Some(self.from);
            batch.push(Received { len: message.len(), from, truncated: false, segment, ecn: self.ecn });
        }
        Ok(())
    }

    /// As the kernel does it: what comes before a failure is sent, and the failure is news of the next call.
    fn send(&mut self, transmits: &[Transmit<'_>]) -> Result<usize, SendError> {
        let mut sent = 0;
        for transmit in transmits {
            match self.send_one(transmit) {
                Ok(()) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => {
                    self.refused -= 1;
                    break;
                }
            }
        }
        if self.keep {
            self.calls.push(sent);
        }
        Ok(sent)
    }

    fn flow_ports(&self) -> usize {
        4
    }

    fn wait(&mut self) -> io::Result<Wake> {
        Ok(if self.inbox.is_empty() { Wake::Stop } else { Wake::Ready })
    }
}

pub(super) fn node(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 77, n))
}

/// Address of a node's VXLAN device.
pub(super) fn vtep(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub(super) fn vxlan_of(own: u8) -> Framing {
    Framing::Vxlan(VxlanFraming { vni: Vni::FLANNEL, mac_v4: vtep(own), mac_v6: vtep(own) })
}

pub(super) fn pod(n: u8, host: u8) -> [u8; 4] {
    [10, 244, n, host]
}

/// The table of node `own` in a cluster of three. In the UDP backend the third takes all that Loden nodes do, the others are
/// as flannel.
pub(super) fn table(own: u8, framing: Framing) -> Fib {
    let mut fib = Fib::builder();
    fib.network("10.244.0.0/16".parse().unwrap());
    for n in 1..=3 {
        let prefix = format!("10.244.{n}.0/24").parse().unwrap();
        if n == own {
            fib.route(prefix, Owner::Local);
            continue;
        }
        let peer = PeerId(u32::from(n));
        let (mac, caps) = match framing {
            Framing::Plain if n == 3 => (
                None,
                PeerCaps { ecn: true, partial_checksum: true, flow_ports: true, ..PeerCaps::default() },
            ),
            Framing::Plain => (None, PeerCaps::default()),
            Framing::Vxlan(_) => {
                (Some(vtep(n)), PeerCaps { ecn: true, flow_ports: true, ..PeerCaps::default() })
            }
        };
        let hop = NextHop { peer, addr: node(n), mtu: 1472, caps, mac };
        fib.route(prefix, Owner::Peer(hop)).sender(node(n), peer);
    }
    fib.build()
}

/// What node `own` shares between its threads.
pub(super) fn shared_in(own: u8, framing: Framing, offloads: Features) -> Arc<Shared> {
    let shared = Shared::new(SourceCheck::Enforce, PORT, 1);
    shared.publish(table(own, framing));
    shared.offloads.set(offloads);
    shared
}

/// In the UDP backend, without offloads.
pub(super) fn shared(own: u8) -> Arc<Shared> {
    shared_in(own, Framing::Plain, Features::NONE)
}

/// In the UDP backend, with all of them.
pub(super) fn offloaded(own: u8) -> Arc<Shared> {
    shared_in(own, Framing::Plain, Features::ALL)
}

/// In VXLAN, with all of them.
pub(super) fn offloaded_vxlan(own: u8) -> Arc<Shared> {
    shared_in(own, vxlan_of(own), Features::ALL)
}

pub(super) fn udp_packet(from: [u8; 4], to: [u8; 4], payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from, to, 64).udp(4000, 5000);
    builder.write(&mut packet, &vec![0x5a; payload]).unwrap();
    packet
}

/// A frame of TCP as the kernel hands it over: the checksum is that of the pseudo-header.
pub(super) fn tcp_frame(to: [u8; 4], payload: usize, size: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(pod(1, 3), to, 64).tcp(4000, 5000, 77, 1000).ack(9);
    builder.write(&mut packet, &(0..payload).map(|n| (n / 3) as u8).collect::<Vec<_>>()).unwrap();
    let len = (packet.len() - 20) as u16;
    let words = packet[12..20].chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let mut sum: u32 = words.map(u32::from).sum::<u32>() + 6 + u32::from(len);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
    let gso = Gso { kind: GsoKind::TcpV4, size, ecn: false };
    let partial = Some(PartialChecksum { start: 20, offset: 16 });
    let vnet = VnetHeader { partial, gso: (payload > usize::from(size)).then_some(gso), header_len: 40 };
    [&vnet.to_bytes()[..], &packet].concat()
}

pub(super) fn plain_frame(packet: &[u8]) -> Vec<u8> {
    [&[0; VNET_LEN][..], packet].concat()
}

pub(super) fn message(sent: &Sent) -> Message {
    let size = sent.datagrams.first().map_or(0, Vec::len) as u16;
    (sent.datagrams.concat(), NonZeroU16::new(size).filter(|_| sent.datagrams.len() > 1))
}

/// Has a node send what its device holds, through a socket as `outer`.
pub(super) fn send_through(
    shared: &Shared,
    framing: Framing,
    device: Device,
    outer: Outer,
) -> (Device, Outer) {
    let read_into = ReadInto::default();
    let mut device = Device { read_into: read_into.clone(), keep: true, ..device };
    let mut outer = Outer { read_into, keep: true, ..outer };
    encapsulate(shared, 0, framing, &mut device, &mut outer, || 0).unwrap();
    (device, outer)
}

/// Has a node take what its socket holds, into a device as `device`.
pub(super) fn receive_through(shared: &Shared, framing: Framing, outer: Outer, device: Device) -> Device {
    let read_into = ReadInto::default();
    let mut outer = Outer { read_into: read_into.clone(), ..outer };
    let mut device = Device { read_into, keep: true, ..device };
    decapsulate(shared, 0, framing, &mut outer, &mut device).unwrap();
    device
}

/// In the UDP backend.
pub(super) fn send(shared: &Shared, frames: Vec<Vec<u8>>, refuse_many: Option<SendError>) -> (Device, Outer) {
    let device = Device { inbox: frames.into(), ..Device::default() };
    send_through(shared, Framing::Plain, device, Outer { refuse_many, ..Outer::default() })
}

/// In the UDP backend.
pub(super) fn receive(shared: &Shared, messages: Vec<Message>, no_super_packets: bool) -> Device {
    let outer = Outer { inbox: messages.into(), ..Outer::default() };
    receive_through(shared, Framing::Plain, outer, Device { no_super_packets, ..Device::default() })
}

/// Through a plain device.
pub(super) fn receive_plain(shared: &Shared, from: SocketAddr, datagrams: Vec<Vec<u8>>) -> Device {
    let inbox = datagrams.into_iter().map(|datagram| (datagram, None)).collect();
    let outer = Outer { inbox, from, ..Outer::default() };
    receive_through(shared, Framing::Plain, outer, Device { plain: true, ..Device::default() })
}

/// The UDP backend's socket refuses everything.
pub(super) fn refusing(reason: DropReason) -> Outer {
    Outer { refuse: Some(SendError::Dropped(reason)), ..Outer::default() }
}
