//! The loops with offloads, between a device and a socket that record where every byte lay.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::rc::Rc;

use allocation_counter::measure;
use encap::offload::vnet::{Gso, GsoKind, PartialChecksum, VNET_LEN, VnetHeader};
use encap::{DropReason, Framing};
use etherparse::PacketBuilder;

use super::tests::{PORT, node, pod, shared, udp_packet};
use super::vxlan_tests::framing;
use super::*;
use crate::ports::{Batch, FrameIo, PacketIo, Received, SegmentIo, SendError, Target, Transmit, Wake};
use encap::offload::{Feature, Features};

/// Where the memory is that packets were read into.
type ReadInto = Rc<Cell<(usize, usize)>>;

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
    inbox: VecDeque<Vec<u8>>,
    pub(super) written: Vec<Vec<u8>>,
    read_into: ReadInto,
    /// Of each written frame, how many parts lay where packets were received.
    pub(super) in_place: Vec<(usize, usize)>,
    no_super_packets: bool,
    keep: bool,
}

impl FrameIo for Device {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>> {
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
        if self.keep {
            let place = self.read_into.get();
            self.in_place.push((parts.iter().filter(|part| lies_in(part, place)).count(), parts.len()));
            self.written.push(parts.iter().flat_map(|part| part.to_vec()).collect());
        }
        Ok(())
    }

    fn wait(&mut self) -> io::Result<Wake> {
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

/// The socket's sending side.
#[derive(Default)]
pub(super) struct Sender {
    pub(super) sent: Vec<Sent>,
    read_into: ReadInto,
    refuse_many: Option<SendError>,
    refused: usize,
    keep: bool,
}

impl SegmentIo for Sender {
    fn send(&mut self, to: Target, size: usize, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        assert!(total <= 65_507 && total.div_ceil(size.max(1)) <= 64);
        if let Some(error) = self.refuse_many.filter(|_| total > size) {
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

    fn flow_ports(&self) -> usize {
        4
    }
}

/// The socket's receiving side: messages of several datagrams each.
#[derive(Default)]
struct Receiver {
    inbox: VecDeque<(Vec<u8>, Option<NonZeroU16>)>,
    /// The mark on all of it.
    ecn: u8,
    read_into: ReadInto,
}

impl PacketIo for Receiver {
    fn recv(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        self.read_into.set(addresses(batch.parts_mut().1));
        for slot in 0..batch.capacity() {
            let Some((message, segment)) = self.inbox.pop_front() else { break };
            batch.slot_mut(slot)[..message.len()].copy_from_slice(&message);
            let from = Some(SocketAddr::new(node(1), PORT));
            batch.push(Received { len: message.len(), from, truncated: false, segment, ecn: self.ecn });
        }
        Ok(())
    }

    fn send(&mut self, _: &Batch, _: &[Transmit], _: impl FnMut(&Transmit, Result<(), DropReason>)) {
        unreachable!("this side receives");
    }

    fn wait(&mut self) -> io::Result<Wake> {
        Ok(if self.inbox.is_empty() { Wake::Stop } else { Wake::Ready })
    }
}

pub(super) fn offloaded(own: u8) -> Arc<Shared> {
    let shared = shared(own);
    shared.offloads.set(Features::ALL);
    shared
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

pub(super) fn send(
    shared: &Shared,
    frames: Vec<Vec<u8>>,
    refuse_many: Option<SendError>,
) -> (Device, Sender) {
    send_framed(shared, Framing::Plain, frames, refuse_many)
}

pub(super) fn send_framed(
    shared: &Shared,
    framing: Framing,
    frames: Vec<Vec<u8>>,
    refuse_many: Option<SendError>,
) -> (Device, Sender) {
    let read_into = ReadInto::default();
    let mut device =
        Device { inbox: frames.into(), read_into: read_into.clone(), keep: true, ..Device::default() };
    let mut sender = Sender { read_into, refuse_many, keep: true, ..Sender::default() };
    encapsulate_offloaded(shared, 0, framing, &mut device, &mut sender, || 0).unwrap();
    (device, sender)
}

pub(super) fn receive(shared: &Shared, messages: Vec<Message>, no_super_packets: bool) -> Device {
    receive_framed(shared, Framing::Plain, messages, no_super_packets)
}

pub(super) fn receive_framed(
    shared: &Shared,
    framing: Framing,
    messages: Vec<Message>,
    no_super_packets: bool,
) -> Device {
    receive_marked(shared, framing, messages, no_super_packets, 0)
}

pub(super) fn receive_marked(
    shared: &Shared,
    framing: Framing,
    messages: Vec<Message>,
    no_super_packets: bool,
    ecn: u8,
) -> Device {
    let read_into = ReadInto::default();
    let mut receiver = Receiver { inbox: messages.into(), ecn, read_into: read_into.clone() };
    let mut device = Device { read_into, keep: true, no_super_packets, ..Device::default() };
    decapsulate_offloaded(shared, 0, framing, &mut receiver, &mut device).unwrap();
    device
}

/// What one receive finds: datagrams, and the size of each where there are several.
type Message = (Vec<u8>, Option<NonZeroU16>);

pub(super) fn message(sent: &Sent) -> Message {
    let size = sent.datagrams.first().map_or(0, Vec::len) as u16;
    (sent.datagrams.concat(), NonZeroU16::new(size).filter(|_| sent.datagrams.len() > 1))
}

#[test]
fn a_super_packet_crosses_two_nodes_and_its_payload_is_never_copied() {
    let (a, b) = (offloaded(1), offloaded(2));
    let frame = tcp_frame(pod(2, 5), 60_000, 1400);
    let (_, sender) = send(&a, vec![frame.clone()], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [43]);
    for sent in &sender.sent {
        assert_eq!(sent.to, Target { addr: node(2), ecn: 0, flow: None });
        // Of each pair of headers and payload the payload lies where it was read, the headers do not.
        assert_eq!((sent.in_place * 2, sent.parts), (sent.parts, 2 * sent.datagrams.len()));
    }
    let bytes = 60_000 + 43 * 40;
    assert_eq!((a.tx.packets(), a.tx.bytes(), a.tx.received()), (43, bytes, 43));

    let device = receive(&b, sender.sent.iter().map(message).collect(), false);
    assert_eq!(device.written.len(), 1);
    let written = &device.written[0];
    assert_eq!(VnetHeader::parse(written), VnetHeader::parse(&frame));
    assert!(written == &frame, "what comes out is what went in, checksum and all");
    assert_eq!(device.in_place, [(43, 44)]);
    assert_eq!((b.rx.packets(), b.rx.bytes(), b.rx.received()), (43, bytes, 43));
    assert_eq!(b.rx.peer(PeerId(1)), a.tx.peer(PeerId(2)));
}

/// Node 3 said so; a VXLAN of the kernel's asks for none.
#[test]
fn flows_have_ports_of_their_own_toward_those_who_take_them() {
    let ports = |framing, to| {
        let flows = (1..=30)
            .flat_map(|host| [tcp_frame(pod(to, host), 5000, 1400), tcp_frame(pod(to, host), 5000, 1400)]);
        let (_, sender) = send_framed(&offloaded(1), framing, flows.collect(), None);
        sender.sent.iter().map(|sent| sent.to.flow).collect::<Vec<_>>()
    };
    assert_eq!(ports(Framing::Plain, 2), [None; 60]);
    for ports in [ports(Framing::Plain, 3), ports(framing(1), 2)] {
        assert!(ports.chunks(2).all(|of_a_flow| of_a_flow[0] == of_a_flow[1]), "{ports:?}");
        assert!((0..4).all(|port| ports.contains(&Some(port))), "{ports:?}");
    }
}

#[test]
fn what_exceeds_one_send_is_halved() {
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 65_400, 1400)], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [24, 23]);
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 1000, 10)], None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [50, 50]);
}

#[test]
fn small_packets_share_a_send_in_order_and_without_a_copy() {
    let a = offloaded(1);
    let sizes = [100, 100, 60, 100, 100, 200, 10];
    let frames = sizes.map(|size| plain_frame(&udp_packet(pod(1, 3), pod(2, 5), size))).to_vec();
    let (_, sender) = send(&a, frames.clone(), None);
    let lens = |sent: &Sent| sent.datagrams.iter().map(|datagram| datagram.len() - 28).collect::<Vec<_>>();
    assert_eq!(
        sender.sent.iter().map(lens).collect::<Vec<_>>(),
        [vec![100, 100, 60], vec![100, 100], vec![200, 10]]
    );
    assert!(sender.sent.iter().all(|sent| sent.in_place == sent.parts));
    let came: Vec<_> = sender.sent.iter().flat_map(|sent| sent.datagrams.clone()).collect();
    assert_eq!(came, frames.iter().map(|frame| frame[VNET_LEN..].to_vec()).collect::<Vec<_>>());
}

#[test]
fn a_super_packet_does_not_overtake_what_waits() {
    let small = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 100));
    let frames = vec![small.clone(), tcp_frame(pod(2, 5), 3000, 1000), small.clone(), small];
    let (_, sender) = send(&offloaded(1), frames, None);
    assert_eq!(sender.sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [1, 3, 2]);
}

#[test]
fn the_open_checksum_of_a_single_packet_is_finished() {
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 100, 1400)], None);
    let packet = etherparse::SlicedPacket::from_ip(&sender.sent[0].datagrams[0]).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (&packet.net, &packet.transport)
    else {
        panic!("not TCP: {packet:?}")
    };
    assert_eq!(tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()), Ok(tcp.checksum()));
}

#[test]
fn a_kernel_that_cannot_segment_gets_packets_one_by_one_from_then_on() {
    let a = offloaded(1);
    let frames = vec![tcp_frame(pod(2, 5), 3000, 1000); 3];
    let (_, sender) = send(&a, frames, Some(SendError::Unsupported));
    assert_eq!((sender.refused, sender.sent.len()), (1, 9));
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::SendFailed)), (9, 0));
    assert_eq!(a.offloads.failed().to_string(), "gso");
    assert!(!a.offloads.active().has(Feature::Gso) && a.offloads.active().has(Feature::Tso));
}

#[test]
fn a_path_that_is_too_small_for_one_send_costs_only_that_send() {
    let a = offloaded(1);
    let (_, sender) = send(&a, vec![tcp_frame(pod(2, 5), 3000, 1000); 2], Some(SendError::TooMuch));
    assert_eq!((sender.refused, sender.sent.len(), a.tx.packets()), (2, 6, 6));
    assert!(a.offloads.active().has(Feature::Gso));
    let lost = Some(SendError::Dropped(DropReason::QueueFull));
    send(&a, vec![tcp_frame(pod(2, 5), 3000, 1000)], lost);
    assert_eq!((a.tx.packets(), a.tx.drops(DropReason::QueueFull)), (6, 3));
}

#[test]
fn a_device_that_refuses_super_packets_gets_single_ones_from_then_on() {
    let b = offloaded(2);
    let (_, sender) = send(&offloaded(1), vec![tcp_frame(pod(2, 5), 3000, 1000); 2], None);
    let messages: Vec<_> = sender.sent.iter().map(message).collect();
    let device = receive(&b, messages, true);
    let expected: Vec<_> =
        sender.sent.iter().flat_map(|sent| &sent.datagrams).map(|datagram| plain_frame(datagram)).collect();
    assert_eq!(device.written, expected);
    assert_eq!(b.offloads.failed().to_string(), "coalesce");
    assert_eq!((b.rx.packets(), b.rx.drops(DropReason::DeviceFailed)), (6, 0));
}

#[test]
fn a_message_of_several_datagrams_is_judged_datagram_by_datagram() {
    let b = offloaded(2);
    let honest = udp_packet(pod(1, 3), pod(2, 5), 100);
    let spoofed = udp_packet(pod(3, 3), pod(2, 5), 100);
    let other = udp_packet(pod(1, 3), pod(2, 6), 100);
    let message = [honest.clone(), spoofed, other.clone()].concat();
    let device = receive(&b, vec![(message, NonZeroU16::new(128)), (Vec::new(), None)], false);
    assert_eq!(device.written, [plain_frame(&honest), plain_frame(&other)]);
    assert_eq!((b.rx.packets(), b.rx.drops(DropReason::SpoofedSource)), (2, 1));
    assert_eq!((b.rx.drops(DropReason::BadPacket), b.rx.received()), (1, 4));
}

#[test]
fn what_the_device_may_not_say_and_what_has_no_route_is_counted() {
    let a = offloaded(1);
    let strange = [&[0, 3, 0, 0, 1, 0, 0, 0, 0, 0][..], &udp_packet(pod(1, 3), pod(2, 5), 9)].concat();
    let mut beyond = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 9));
    beyond[0] = 1;
    beyond[6..10].fill(0xff);
    let nowhere = tcp_frame(pod(9, 5), 3000, 1000);
    let long = tcp_frame(pod(2, 5), 3000, 1460);
    let mut no_fragments = long;
    no_fragments[VNET_LEN + 6] |= 0x40;
    let (device, sender) = send(&a, vec![strange, beyond, nowhere, no_fragments], None);
    assert_eq!(sender.sent, []);
    assert_eq!(a.tx.drops(DropReason::BadPacket), 2);
    assert_eq!(a.tx.drops(DropReason::NoRoute), 3);
    assert_eq!(a.tx.drops(DropReason::TooBig), 3);
    let received = a.tx.received();
    assert_eq!(received, 8);
    let kinds: Vec<_> = device.written.iter().map(|frame| frame[VNET_LEN + 20..][..2].to_vec()).collect();
    assert_eq!(kinds, [[3, 0], [3, 4]], "unreachable, too big");
}

#[test]
fn the_hot_path_asks_for_no_memory() {
    let (a, b) = (offloaded(1), offloaded(2));
    let small = plain_frame(&udp_packet(pod(1, 3), pod(2, 5), 100));
    let frames = || VecDeque::from(vec![tcp_frame(pod(2, 5), 60_000, 1400), small.clone(), small.clone()]);
    let (_, sender) = send(&a, frames().into(), None);
    let messages: Vec<_> = sender.sent.iter().map(message).collect();
    // What one more round costs, which is nothing but what the test itself needs.
    let rounds = RefCell::new(Vec::new());
    for count in [1, 50] {
        let mut inbox = VecDeque::new();
        (0..count).for_each(|_| inbox.extend(frames()));
        let mut device = Device { inbox, ..Device::default() };
        let mut udp = Sender::default();
        let sending =
            measure(|| encapsulate_offloaded(&a, 0, Framing::Plain, &mut device, &mut udp, || 0).unwrap());
        let inbox = (0..count).flat_map(|_| messages.clone()).collect();
        let mut receiver = Receiver { inbox, ..Receiver::default() };
        let receiving =
            measure(|| decapsulate_offloaded(&b, 0, Framing::Plain, &mut receiver, &mut device).unwrap());
        rounds.borrow_mut().push((sending.count_total, receiving.count_total));
    }
    let rounds = rounds.into_inner();
    assert!(rounds[0].0 > 0 && rounds[0].1 > 0, "the counter does not count: {rounds:?}");
    assert_eq!(rounds[0], rounds[1], "fifty times the packets, and as many allocations");
}
