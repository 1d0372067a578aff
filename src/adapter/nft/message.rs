//! Requests about nftables, in the types of `netlink-packet-netfilter`.

use encap::Family;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::adapter::netlink::wire::{Change, Nfnetlink};

pub(super) const INET: u8 = libc::NFPROTO_INET as u8;
pub(super) const IPV4: u8 = libc::NFPROTO_IPV4 as u8;
pub(super) const IPV6: u8 = libc::NFPROTO_IPV6 as u8;

/// The number of an address family in nftables.
pub(super) fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// A message about something of an address family, `NFPROTO_*`.
pub(super) fn message(family: u8, inner: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::from(family), 0, 0), inner)
}

/// A step of a transaction that removes something.
pub(super) fn remove(family: u8, inner: NfTablesMessage) -> Change<Nfnetlink> {
    (message(family, inner), 0)
}
