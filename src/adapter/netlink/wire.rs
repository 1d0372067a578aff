//! Netlink messages, whatever the protocol: how a datagram is taken apart, and how the kernel says no.
//!
//! Requests are written by the types of `netlink-packet-route` and `netlink-packet-netfilter`. Answers of the former
//! are read by its types too. Those of the latter are read here, attribute by attribute and without a copy: that crate
//! takes the length of a set element's key for granted, and nobody who reads what another process may have sent
//! should.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use thiserror::Error;

use crate::ports::FaultKind;

/// Length of a netlink header.
pub(super) const HEADER: usize = 16;

/// Length of `struct nfgenmsg`, the header of netfilter's messages: family, version, resource.
const NETFILTER_HEADER: usize = 4;

/// A netlink protocol: which part of the kernel is talked to, and in what messages.
pub trait Protocol {
    /// Its number, `NETLINK_*`.
    const NUMBER: isize;
    /// What is asked for in it.
    type Message: NetlinkSerializable;
}

/// rtnetlink: links, addresses, routes, neighbours.
#[derive(Debug)]
pub enum Rtnetlink {}

impl Protocol for Rtnetlink {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_ROUTE;
    type Message = RouteNetlinkMessage;
}

/// nfnetlink: nftables.
#[derive(Debug)]
pub enum Nfnetlink {}

impl Protocol for Nfnetlink {
    const NUMBER: isize = netlink_sys::protocols::NETLINK_NETFILTER;
    type Message = NetfilterMessage;
}

/// A request that changes something, with flags beside REQUEST and ACK.
pub type Change<P> = (<P as Protocol>::Message, u16);

/// Why a question to the kernel has no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The kernel had no room for its answers (ENOBUFS): what became of the request is not known.
    #[error("the kernel had no room for its answer, and part of it is lost")]
    Overrun,
    /// The kernel refused a message of a transaction, and so all of it.
    #[error("message {} of the transaction: {refusal}", at + 1)]
    Aborted {
        /// Which one, counted from 0.
        at: usize,
        /// Why.
        refusal: Refusal,
    },
    /// The kernel's answer is not made of whole messages.
    #[error("the kernel's answer is cut off")]
    Truncated,
    /// The kernel did not answer at all.
    #[error("the kernel gave no answer")]
    Silent,
    /// The socket does not work.
    #[error("the netlink socket failed: {0}")]
    Socket(#[from] io::Error),
}

impl Error {
    /// The error number, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) | Self::Aborted { refusal, .. } => Some(refusal.errno),
            Self::Overrun => Some(Errno::ENOBUFS),
            Self::Socket(error) => error.raw_os_error().map(Errno::from_raw),
            Self::Truncated | Self::Silent => None,
        }
    }

    /// What sort of fault it is.
    pub fn kind(&self) -> FaultKind {
        self.errno().map_or(FaultKind::Other, kind_of)
    }
}

/// The kernel's no.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{}", errno.desc(), text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words, where it has some.
    pub text: Option<String>,
}

impl Refusal {
    /// Whether what was asked for, or was to be removed, is not there.
    pub fn is_absence(&self) -> bool {
        kind_of(self.errno) == FaultKind::Absent
    }
}

/// What sort of fault an error number of the kernel's stands for.
pub fn kind_of(errno: Errno) -> FaultKind {
    match errno {
        Errno::EPERM | Errno::EACCES => FaultKind::NotPermitted,
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => FaultKind::Unsupported,
        Errno::EEXIST | Errno::EADDRINUSE | Errno::EBUSY => FaultKind::Occupied,
        Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::ENXIO | Errno::EADDRNOTAVAIL => {
            FaultKind::Absent
        }
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => FaultKind::Unreachable,
        Errno::ENOMEM | Errno::ENOBUFS | Errno::ENOSPC | Errno::EMFILE | Errno::ENFILE => {
            FaultKind::Exhausted
        }
        _ => FaultKind::Other,
    }
}

/// What follows in a datagram is no whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated;

impl From<Truncated> for Error {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What it is, `NLMSG_*` or the protocol's own number.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// That of the request that it answers.
    pub sequence: u32,
    /// Whose request it answers, or who caused what it tells; 0 is the kernel.
    pub port: u32,
    bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// What is behind the netlink header.
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The object that it carries; `None` when the library cannot read it.
    pub fn object<M: NetlinkDeserializable>(&self) -> Option<M> {
        match NetlinkMessage::deserialize(self.bytes).ok()?.payload {
            NetlinkPayload::InnerMessage(object) => Some(object),
            _ => None,
        }
    }

    /// Of a message of netfilter: the address family that it speaks of, `NFPROTO_*`.
    pub fn family(&self) -> u8 {
        self.payload().first().copied().unwrap_or_default()
    }

    /// Of a message of netfilter: its attributes.
    pub fn attributes(&self) -> &'a [u8] {
        self.payload().get(NETFILTER_HEADER..).unwrap_or_default()
    }

    /// Of an acknowledgement: why the request was refused; `None` when it was carried out.
    ///
    /// # Errors
    /// It has no room for an error number.
    pub fn acknowledged(&self) -> Result<Option<Refusal>, Truncated> {
        let (code, rest) = self.payload().split_first_chunk::<4>().ok_or(Truncated)?;
        // The kernel repeats the request's header, and all of the request unless it says that it did not.
        let request = rest.first_chunk::<4>().map_or(0, |length| u32::from_ne_bytes(*length) as usize);
        let skipped = if self.flags & NLM_F_CAPPED != 0 { HEADER } else { request };
        let skipped = skipped.checked_next_multiple_of(4);
        Ok(self.refusal(*code, skipped.and_then(|skipped| rest.get(skipped..))))
    }

    /// Of the end of a dump: why the kernel broke it off; `None` when it is complete.
    pub fn broken_off(&self) -> Option<Refusal> {
        // Old kernels end a dump without a word.
        let (code, rest) = self.payload().split_first_chunk::<4>()?;
        self.refusal(*code, Some(rest))
    }

    fn refusal(&self, code: [u8; 4], attributes: Option<&[u8]>) -> Option<Refusal> {
        let code = i32::from_ne_bytes(code);
        let said = attributes.filter(|_| self.flags & NLM_F_ACK_TLVS != 0);
        let errno = Errno::from_raw(code.wrapping_neg());
        (code != 0).then(|| Refusal { errno, text: said.and_then(said_in) })
    }
}

/// `NLMSGERR_ATTR_MSG`, where the kernel says more than a number.
fn said_in(attributes: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    let said = attribute(attributes, MESSAGE)?;
    Some(String::from_utf8_lossy(said.strip_suffix(b"\0").unwrap_or(said)).into_owned())
}

/// The messages of a datagram, up to the first that is not whole.
pub fn parts(datagram: &[u8]) -> impl Iterator<Item = Result<Part<'_>, Truncated>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let first = message(rest);
        rest = first.map_or(&[], |(_, rest)| rest);
        Some(first.map(|(part, _)| part).ok_or(Truncated))
    })
}

/// The first message, and what comes behind it.
fn message(datagram: &[u8]) -> Option<(Part<'_>, &[u8])> {
    let header = datagram.first_chunk::<HEADER>()?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let length = word(0) as usize;
    let bytes = datagram.get(..length).filter(|_| length >= HEADER)?;
    let rest = datagram.get(length.checked_next_multiple_of(4)?..).unwrap_or_default();
    Some((Part { kind: half(4), flags: half(6), sequence: word(8), port: word(12), bytes }, rest))
}

/// The attributes of a message, or of an attribute that holds some: kind and value, up to the first that is not whole.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[l0, l1, t0, t1] = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two upper bits say "nested" and "network byte order".
        Some((u16::from_ne_bytes([t0, t1]) & 0x3fff, value))
    })
}

/// The value of the first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A value that is text.
pub fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

/// A value that is a number in network byte order, as netfilter has them.
pub fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The same in 64 bits.
pub fn number64(value: &[u8]) -> Option<u64> {
    value.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}
