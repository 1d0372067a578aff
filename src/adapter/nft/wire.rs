//! Messages of the kernel's nftables interface: dump requests, batches, attributes.

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
/// Length of the header behind the netlink header: family, version, resource.
pub(super) const NFGENMSG: usize = 4;

pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// Message types, from `enum nf_tables_msg_types`.
pub(super) mod kind {
    pub(in super::super) const NEW_TABLE: u16 = 0;
    pub(in super::super) const GET_TABLE: u16 = 1;
    pub(in super::super) const DEL_TABLE: u16 = 2;
    pub(in super::super) const NEW_CHAIN: u16 = 3;
    pub(in super::super) const GET_CHAIN: u16 = 4;
    pub(in super::super) const DEL_CHAIN: u16 = 5;
    pub(in super::super) const NEW_RULE: u16 = 6;
    pub(in super::super) const GET_RULE: u16 = 7;
    pub(in super::super) const DEL_RULE: u16 = 8;
    pub(in super::super) const GET_SET: u16 = 10;
    pub(in super::super) const NEW_ELEMENT: u16 = 12;
    pub(in super::super) const GET_ELEMENT: u16 = 13;
    pub(in super::super) const DEL_ELEMENT: u16 = 14;
    pub(in super::super) const GET_OBJECT: u16 = 19;
    pub(in super::super) const GET_GEN: u16 = 16;
}

/// One netlink message of a datagram.
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Part<'a> {
    /// The address family that the message speaks of.
    pub(super) fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or_default()
    }

    /// Its attributes.
    pub(super) fn attributes(&self) -> &'a [u8] {
        self.payload.get(NFGENMSG..).unwrap_or_default()
    }
}

pub(super) fn messages(buffer: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let message = rest.get(..length).filter(|_| length >= NLMSG_HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Part {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            payload: &message[NLMSG_HEADER..],
        })
    })
}

/// The attributes of a message or of a nested attribute: kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[l0, l1, t0, t1] = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two upper bits say "nested" and "network byte order".
        Some((u16::from_ne_bytes([t0, t1]) & 0x3fff, value))
    })
}

pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

pub(super) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn number64(value: &[u8]) -> Option<u64> {
    value.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A message in the making.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new(kind: u16, family: u8) -> Self {
        Self::raw(NFNL_SUBSYS_NFTABLES << 8 | kind, family, 0)
    }

    fn raw(kind: u16, family: u8, resource: u16) -> Self {
        let mut bytes = Vec::with_capacity(64);
        // Length and sequence number come last.
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(NLM_F_REQUEST.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        Self(bytes)
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        // Attributes here are names and numbers of ours, far below 64 KiB.
        self.0.extend((length as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    pub(super) fn number64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute that holds attributes.
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.0.len();
        self.0.extend([0; 4]);
        self = fill(self);
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[at + 2..at + 4].copy_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self
    }

    /// Make what is not there.
    pub(super) fn create(self) -> Self {
        self.flags(NLM_F_CREATE)
    }

    fn flags(mut self, flags: u16) -> Self {
        let all = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A connection to nf_tables, one request at a time.
///
/// Whoever makes changes keeps it: to close one, the kernel waits until what the last transactions removed is freed
/// (`nft_rcv_nl_event`), and that takes it some ten milliseconds.
pub(super) struct Connection {
    socket: Socket,
    /// Number of the last request; answers to earlier ones, of which the end was not read, are passed over by it.
    sequence: u32,
}

impl Connection {
    pub(super) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).context("no netfilter netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a dump request and hands over each object of the answer; whether it was complete, rather than
    /// interrupted by a change. No nf_tables in the kernel, or no such table, is an empty answer.
    pub(super) fn dump(&mut self, request: Message, mut each: impl FnMut(&Part<'_>)) -> Result<bool> {
        self.send(vec![request.flags(NLM_F_DUMP)])?;
        let mut intact = true;
        loop {
            let (buffer, _) = self.socket.recv_from_full()?;
            for part in self.answers(&buffer) {
                intact &= part.flags & NLM_F_DUMP_INTR == 0;
                match part.kind {
                    NLMSG_DONE | NLMSG_ERROR => return Ok(intact),
                    _ => each(&part),
                }
            }
        }
    }

    /// Sends a request that has one answer; `None` when the kernel refuses it.
    pub(super) fn ask<T>(
        &mut self,
        request: Message,
        read: impl Fn(&Part<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        self.send(vec![request])?;
        loop {
            let (buffer, _) = self.socket.recv_from_full()?;
            if let Some(part) = self.answers(&buffer).next() {
                return Ok(Some(part).filter(|part| part.kind != NLMSG_ERROR).and_then(|part| read(&part)));
            }
        }
    }

    /// Carries out `messages` as one transaction: all of them, or none and the first error.
    pub(super) fn commit(&mut self, messages: Vec<Message>) -> Result<()> {
        let count = messages.len();
        let border = |kind| Message::raw(kind, 0, NFNL_SUBSYS_NFTABLES);
        // Without an acknowledgement of its own, success could not be told from an answer that is still to come.
        let acknowledged = messages.into_iter().map(|message| message.flags(NLM_F_ACK));
        let begin = std::iter::once(border(NFNL_MSG_BATCH_BEGIN));
        self.send(begin.chain(acknowledged).chain([border(NFNL_MSG_BATCH_END)]).collect())?;
        let mut answered = 0;
        while answered < count {
            let (buffer, _) = self.socket.recv_from_full()?;
            for part in self.answers(&buffer).filter(|part| part.kind == NLMSG_ERROR) {
                let code = part.payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    bail!("{}", Errno::from_raw(-code).desc());
                }
                answered += 1;
            }
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes: Vec<u8> = messages.into_iter().flat_map(|message| message.finish(self.sequence)).collect();
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    fn answers<'a>(&self, buffer: &'a [u8]) -> impl Iterator<Item = Part<'a>> {
        let sequence = self.sequence;
        messages(buffer).filter(move |part| part.sequence == sequence)
    }
}
