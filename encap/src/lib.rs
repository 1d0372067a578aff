//! Pure packet code of Loden: bytes in, a decision or bytes out.
//!
//! Nothing here can open a socket, read a clock, take a lock or block: the crate is `no_std`, and its dependencies
//! are too. Functions that run once per packet do not allocate either; only building a [`Fib`], comparing two of
//! them, and reporting a malformed text do.
//!
//! | module | holds |
//! | --- | --- |
//! | [`prefix`], [`mac`], [`vni`] | values that cannot be malformed once they exist |
//! | [`ip`] | a view of an IP packet that is checked once |
//! | [`fib`] | who owns which prefix: immutable longest-prefix match |
//! | [`forward`], [`drop`](mod@drop) | what to do with a packet, and one reason for each that is dropped |
//! | [`flow`] | a number for each flow |
//! | [`ecn`] | congestion marks from the outer packet to the inner one |
//! | [`icmp`] | the errors a tunnel owes to senders |
//! | [`framing`], [`udp`], [`vxlan`], [`ethernet`], [`mtu`] | framing, and what it costs |
//! | [`offload`] | super-packets: cutting, joining, checksums |
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod drop;
pub mod ecn;
pub mod ethernet;
pub mod fib;
pub mod flow;
pub mod forward;
pub mod framing;
pub mod icmp;
pub mod ip;
pub mod mac;
pub mod mtu;
pub mod offload;
pub mod prefix;
pub mod udp;
pub mod vni;
pub mod vxlan;

pub use drop::DropReason;
pub use ethernet::{EthernetError, EthernetHeader};
pub use fib::{Fib, FibBuilder, FibDelta, NextHop, Owner, PeerCaps, PeerId};
pub use forward::{Gate, Inbound, Outbound, SourceCheck, inbound, outbound, outbound_segments};
pub use framing::{Framing, VxlanFraming};
pub use icmp::{IcmpCause, RateLimit};
pub use ip::{Family, IpError, IpPacket, Transport};
pub use mac::{MacAddr, MacError};
pub use mtu::{Encapsulation, MtuError};
pub use prefix::{Prefix, PrefixError};
pub use vni::{Vni, VniError};
pub use vxlan::{InnerFrame, VxlanError};
