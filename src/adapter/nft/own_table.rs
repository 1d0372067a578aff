//! What is in our tables: members of their sets, and what the guard's counters have counted.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};

use super::message::message;
use super::rule::TABLE_NAME;
use crate::adapter::netlink::socket::Socket;
use crate::adapter::netlink::wire::{Error, Nfnetlink, attribute, attributes, number, number64, text};
use crate::plan::firewall::guard;
use crate::ports::FaultKind;
use crate::tables::{Element, ElementChange, TableName};

const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_DATA: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
const TABLE_HANDLE: u16 = 4;

/// What a table of ours says, by digests. Members are a sum, whatever order the kernel keeps them in: so what a change
/// makes of it is known without reading thousands of them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct TableDigest {
    pub(super) rules: u64,
    pub(super) members: u64,
}

impl TableDigest {
    /// The same table after a change.
    pub(in super::super) fn after(self, change: &ElementChange) -> Self {
        let sum = |elements: &[(String, Element)]| {
            elements.iter().map(|(set, element)| digest(set, &element.key)).fold(0, u64::wrapping_add)
        };
        let members = self.members.wrapping_sub(sum(&change.removed)).wrapping_add(sum(&change.added));
        Self { members, ..self }
    }
}

/// Members of those sets of a table that come and go by our hand: neither with time nor by what packets do.
#[derive(Debug)]
pub(super) struct Members {
    /// Names of these sets.
    pub(super) sets: BTreeSet<String>,
    /// A digest of what is in them.
    pub(super) digest: u64,
}

/// The members of the sets of a table of ours.
pub(super) async fn members(nft: &mut Socket<Nfnetlink>, table: TableName) -> Result<Members, Error> {
    let attributes = vec![SetAttribute::Table(table.name.into())];
    let request = message(table.family.number(), NfTablesMessage::GetSet(SetMessage { attributes }));
    let sets = nft.dump(&request, |part| {
        let get = |kind| attribute(part.attributes(), kind);
        // Kernels that do not know how to select send everything.
        let ours = get(TABLE_NAME).and_then(text) == Some(table.name);
        let flags = SetFlags::from_bits_retain(get(SET_FLAGS).and_then(number).unwrap_or_default());
        let stays = !flags.intersects(SetFlags::Timeout | SetFlags::Eval);
        get(SET_NAME).and_then(text).filter(|_| ours && stays).map(str::to_owned)
    });
    let sets: BTreeSet<String> = unless_absent(sets.await)?.into_iter().collect();
    let mut sum = 0_u64;
    for set in &sets {
        let of = |element: &[u8]| Some(digest(set, key_of(element).unwrap_or_default()));
        sum = each_member(nft, table, set, of).await?.into_iter().fold(sum, u64::wrapping_add);
    }
    Ok(Members { sets, digest: sum })
}

fn digest(set: &str, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (set, key).hash(&mut hasher);
    hasher.finish()
}

/// What `read` makes of the elements of a set of ours; nothing without the set.
async fn each_member<T>(
    nft: &mut Socket<Nfnetlink>,
    table: TableName,
    set: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let names = vec![SetElementList::Table(table.name.into()), SetElementList::Set(set.to_owned())];
    let inner = NfTablesMessage::GetSetElement(SetElementMessage { attributes: names });
    let request = message(table.family.number(), inner);
    let messages = nft.dump(&request, |part| {
        let elements = attribute(part.attributes(), SET_ELEMENTS).unwrap_or_default();
        Some(attributes(elements).filter_map(|(_, element)| read(element)).collect::<Vec<T>>())
    });
    Ok(unless_absent(messages.await)?.into_iter().flatten().collect())
}

fn key_of(element: &[u8]) -> Option<&[u8]> {
    attribute(element, ELEMENT_KEY).and_then(|key| attribute(key, DATA_VALUE))
}

/// Who was refused last, as far as it is remembered.
pub(super) async fn last_refused(nft: &mut Socket<Nfnetlink>) -> Result<Option<IpAddr>, Error> {
    let mut last: Option<(u64, IpAddr)> = None;
    for set in guard::REFUSED {
        let refused = each_member(nft, guard::TABLE, set, |element| {
            // What expires last was put there, or met again, last.
            let left = attribute(element, ELEMENT_EXPIRATION).and_then(number64);
            let addr = key_of(element).and_then(|key| match key.len() {
                4 => key.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
                _ => key.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
            });
            left.zip(addr)
        });
        last = last.max(refused.await?.into_iter().max());
    }
    Ok(last.map(|(_, addr)| addr))
}

/// What our own table has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuardCounters {
    /// Number of the table: one that took its place has another, and began at zero.
    pub table: u64,
    /// Packets, in the order of [`guard::REASONS`].
    pub packets: [u64; 2],
}

/// What our own table has counted; `None` when there is none, or none with counters.
pub(super) async fn counters(nft: &mut Socket<Nfnetlink>) -> Result<Option<GuardCounters>, Error> {
    let attributes = vec![TableAttribute::Name(guard::TABLE.name.into())];
    let request =
        message(guard::TABLE.family.number(), NfTablesMessage::GetTable(TableMessage { attributes }));
    let handle = nft.get(&request, |part| attribute(part.attributes(), TABLE_HANDLE).and_then(number64));
    let Some(table) = unless_absent(handle.await)? else { return Ok(None) };
    let name = [guard::TABLE.name.as_bytes(), b"\0"].concat();
    let request = message(
        guard::TABLE.family.number(),
        NfTablesMessage::GetObject(vec![DefaultNla::new(OBJECT_TABLE, name)]),
    );
    let counted = nft.dump(&request, |part| {
        let get = |kind| attribute(part.attributes(), kind);
        let ours = get(TABLE_NAME).and_then(text) == Some(guard::TABLE.name);
        let name = get(OBJECT_NAME).and_then(text).filter(|_| ours);
        let at = guard::REASONS.iter().position(|reason| Some(*reason) == name)?;
        let count = get(OBJECT_DATA).and_then(|data| attribute(data, COUNTER_PACKETS));
        Some((at, count.and_then(number64)?))
    });
    let counted = unless_absent(counted.await)?;
    let of = |at| counted.iter().find(|(found, _)| *found == at).map(|(_, count)| *count);
    Ok(of(0).zip(of(1)).map(|(unknown, spoofed)| GuardCounters { table, packets: [unknown, spoofed] }))
}

/// What is not there is an empty answer; so is what a kernel without nf_tables holds.
fn unless_absent<T: Default>(answer: Result<T, Error>) -> Result<T, Error> {
    match answer {
        Err(error) if error.kind() == FaultKind::Absent => Ok(T::default()),
        answer => answer,
    }
}
