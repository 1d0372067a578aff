//! One rtnetlink socket: filtered dumps, and writes in batches.
//!
//! Many requests go out in one datagram and the kernel works through them in order, one acknowledgement each; waiting
//! for every answer before the next request would cost a wake-up per kernel object.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;

/// Requests on their way at once. Their acknowledgements (some 800 bytes each with the kernel's bookkeeping) have to
/// fit a receive buffer of the default size, 208 kB.
const BATCH: usize = 128;

/// The kernel builds dumps in pieces of at most 32 kB.
const BUFFER: usize = 64 << 10;

/// Length of a netlink header.
const HEADER: usize = 16;

/// How often a dump that raced with a change is begun anew. What is read at last may lack a part or have one twice.
const ATTEMPTS: usize = 3;

/// An open connection to rtnetlink. One request or dump at a time.
pub(super) struct Rtnl {
    socket: TokioSocket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    raced: bool,
}

/// Why the kernel refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    /// The kernel's own words, where it has some.
    pub(super) text: Option<String>,
}

/// A request that changes something, with flags beside REQUEST and ACK.
pub(super) type Request = (RouteNetlinkMessage, u16);

impl Rtnl {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        let port = inner.bind_auto()?.port_number();
        inner.connect(&SocketAddr::new(0, 0))?;
        inner.set_cap_ack(true)?;
        inner.set_ext_ack(true)?;
        // Linux 4.20. Without it the kernel sends everything, and what was not asked for is dropped here.
        let _ = inner.set_netlink_get_strict_chk(true);
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(BUFFER), raced: false })
    }

    /// What the kernel marks our own changes with when it tells everybody about them.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Whether a dump since this was asked last may lack something, because it raced with changes to the end.
    pub(super) fn has_raced(&mut self) -> bool {
        std::mem::take(&mut self.raced)
    }

    /// The answer to a request for one object; `None` when there is no such object.
    pub(super) async fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut found = None;
        match self.ask(message, 0, |object| found = Some(object)).await? {
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL) => Ok(None),
            Some(errno) => Err(errno.into()),
            None => Ok(found),
        }
    }

    /// All objects that match a request.
    pub(super) async fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut attempt = 1;
        loop {
            let mut found = Vec::new();
            match self.ask(message.clone(), NLM_F_DUMP, |object| found.push(object)).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.raced = true;
                    return Ok(found);
                }
                Err(error) => return Err(error),
                // Nothing there, or a filter by a device that has just gone.
                Ok(Some(Errno::ENODEV | Errno::ENOENT)) => return Ok(Vec::new()),
                Ok(Some(errno)) => return Err(errno.into()),
                Ok(None) => return Ok(found),
            }
        }
    }

    /// Sends one request and reads to the end of its answer. `Interrupted` says that a dump raced with a change.
    async fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<Option<Errno>> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_REQUEST | flags);
        self.socket.send(&bytes).await?;
        let mut raced = false;
        loop {
            self.receive().await?;
            for part in parts(&self.buffer).filter(|part| part.sequence == sequence) {
                raced |= part.flags & NLM_F_DUMP_INTR != 0;
                match part.kind {
                    NLMSG_ERROR => return Ok(part.refusal().map(|refusal| refusal.errno)),
                    NLMSG_DONE if raced => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(None),
                    // An object that the library cannot read is none that we could have made.
                    _ => {
                        if let Some(object) = part.object() {
                            each(object);
                        }
                        if flags & NLM_F_DUMP == 0 {
                            return Ok(None);
                        }
                    }
                }
            }
        }
    }

    /// Carries out requests, each whatever becomes of the others; the outcomes are in their order.
    pub(super) async fn write(&mut self, requests: Vec<Request>) -> io::Result<Vec<Result<(), Refusal>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        let mut left = requests.into_iter().peekable();
        while left.peek().is_some() {
            let mut bytes = Vec::with_capacity(BUFFER);
            let first = self.sequence.wrapping_add(1);
            let mut sent = 0;
            for (message, flags) in left.by_ref().take(BATCH) {
                self.append(&mut bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags);
                sent += 1;
            }
            self.socket.send(&bytes).await?;
            let mut answers: Vec<Option<Result<(), Refusal>>> = vec![None; sent];
            while answers.iter().any(Option::is_none) {
                self.receive().await?;
                for part in parts(&self.buffer).filter(|part| part.kind == NLMSG_ERROR) {
                    let place = part.sequence.wrapping_sub(first) as usize;
                    if let Some(answer) = answers.get_mut(place) {
                        *answer = Some(part.refusal().map_or(Ok(()), Err));
                    }
                }
            }
            outcomes.extend(answers.into_iter().flatten());
        }
        Ok(outcomes)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.reserve(BUFFER);
        self.socket.recv(&mut self.buffer).await
    }
}

/// One netlink message of a datagram.
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// Who caused it; 0 is the kernel.
    pub(super) port: u32,
    bytes: &'a [u8],
}

impl Part<'_> {
    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The object that it carries; `None` when the library cannot read it.
    pub(super) fn object(&self) -> Option<RouteNetlinkMessage> {
        match NetlinkMessage::deserialize(self.bytes).ok()?.payload {
            NetlinkPayload::InnerMessage(object) => Some(object),
            _ => None,
        }
    }

    /// Of an acknowledgement: why the request was refused; `None` when it was carried out.
    fn refusal(&self) -> Option<Refusal> {
        let (code, rest) = self.payload().split_first_chunk::<4>()?;
        let code = i32::from_ne_bytes(*code);
        // The kernel repeats the request's header, and all of the request unless it says that it did not.
        let request = rest.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
        let skipped = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { request.next_multiple_of(4) };
        let text = || message(rest.get(skipped..)?);
        let text = (self.flags & NLM_F_ACK_TLVS != 0).then(text).flatten();
        (code != 0).then(|| Refusal { errno: Errno::from_raw(code.wrapping_neg()), text })
    }
}

/// `NLMSGERR_ATTR_MSG`: the first of the attributes behind an error, where the kernel says more than a number.
fn message(attributes: &[u8]) -> Option<String> {
    const KIND: u16 = 1;
    let (&[l0, l1, t0, t1], _) = attributes.split_first_chunk::<4>()?;
    let text = attributes.get(4..usize::from(u16::from_ne_bytes([l0, l1])))?;
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    (u16::from_ne_bytes([t0, t1]) == KIND).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The messages of a datagram.
pub(super) fn parts(datagram: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
        let bytes = rest.get(..length).filter(|_| length >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Part { kind: half(4), flags: half(6), sequence: word(8), port: word(12), bytes })
    })
}
