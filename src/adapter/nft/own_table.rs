//! What is in table `inet loden`: members of its sets, and what its counters have counted.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetMessage, TableAttribute, TableMessage,
};

use super::message::{INET, create, message, remove};
use super::rule::TABLE_NAME;
use crate::adapter::netlink::socket::Socket;
use crate::adapter::netlink::wire::{Change, Error, Nfnetlink, attribute, attributes, number64, text};
use crate::plan::firewall::OWN_TABLE;
use crate::plan::firewall::guard::{self, Member, Update};
use crate::ports::FaultKind;

const SET_NAME: u16 = 2;
const SET_ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_EXPIRATION: u16 = 5;
const DATA_VALUE: u16 = 1;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_DATA: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
const TABLE_HANDLE: u16 = 4;

/// Elements of one message: their list has to fit an attribute, which is at most 64 KiB long.
const ELEMENTS: usize = 500;

/// What table `inet loden` says, by digests. Members are a sum, whatever order the kernel keeps them in: so what a
/// change makes of it is known without reading thousands of them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct OwnTable {
    pub(super) rules: u64,
    pub(super) members: u64,
}

impl OwnTable {
    /// The same table after a change.
    pub(in super::super) fn after(self, update: &Update) -> Self {
        let sum = |members: &[Member]| {
            let all = members.iter().map(|member| digest(&member.set, &member.key));
            all.fold(0, u64::wrapping_add)
        };
        let members = self.members.wrapping_sub(sum(&update.removed)).wrapping_add(sum(&update.added));
        Self { members, ..self }
    }
}

/// A digest of the members of our sets.
pub(super) async fn members(nft: &mut Socket<Nfnetlink>) -> Result<u64, Error> {
    let attributes = vec![SetAttribute::Table(OWN_TABLE.into())];
    let request = message(INET, NfTablesMessage::GetSet(SetMessage { attributes }));
    let sets = nft.dump(&request, |part| {
        let get = |kind| attribute(part.attributes(), kind).and_then(text);
        // Kernels that do not know how to select send everything.
        let ours = get(TABLE_NAME) == Some(OWN_TABLE);
        get(SET_NAME).filter(|set| ours && guard::has_senders(set)).map(str::to_owned)
    });
    let mut sum = 0_u64;
    for set in unless_absent(sets.await)? {
        let of = |element: &[u8]| Some(digest(&set, key_of(element).unwrap_or_default()));
        sum = each_member(nft, &set, of).await?.into_iter().fold(sum, u64::wrapping_add);
    }
    Ok(sum)
}

fn digest(set: &str, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (set, key).hash(&mut hasher);
    hasher.finish()
}

/// A change of the members of our sets.
pub(super) fn change(update: &Update) -> Vec<Change<Nfnetlink>> {
    let removed = elements(&update.removed).map(|list| remove(INET, NfTablesMessage::DeleteSetElement(list)));
    let added = elements(&update.added).map(|list| create(INET, NfTablesMessage::NewSetElement(list)));
    removed.chain(added).collect()
}

fn elements(members: &[Member]) -> impl Iterator<Item = SetElementMessage> {
    let of_one_set = members.chunk_by(|a, b| a.set == b.set).flat_map(|members| members.chunks(ELEMENTS));
    of_one_set.map(|members| {
        let keys = members.iter().map(|member| vec![key(member.key.clone())]);
        let set = members.first().map(|member| member.set.clone()).unwrap_or_default();
        element_list(set, keys)
    })
}

/// Replaces the element that lets the guard's checks hold. A timeout begins anew with its element; adding it first makes
/// the deletion valid when it has expired.
pub(super) fn renewal() -> Vec<Change<Nfnetlink>> {
    let protocol = || key(vec![libc::IPPROTO_UDP as u8]);
    let millis = guard::GUARDED_FOR.as_millis() as u64;
    let list = |element| element_list(guard::GUARDED.into(), [element]);
    let held = || list(vec![protocol(), SetElementAttribute::Timeout(millis)]);
    let add = || create(INET, NfTablesMessage::NewSetElement(held()));
    vec![add(), remove(INET, NfTablesMessage::DeleteSetElement(list(vec![protocol()]))), add()]
}

fn key(value: Vec<u8>) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(value))
}

fn element_list(
    set: String,
    elements: impl IntoIterator<Item = Vec<SetElementAttribute>>,
) -> SetElementMessage {
    let elements = elements.into_iter().map(ListAttribute::Element).collect();
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(OWN_TABLE.into()),
            SetElementList::Set(set),
            SetElementList::Elements(elements),
        ],
    }
}

/// What `read` makes of the elements of a set of ours; nothing without the set.
async fn each_member<T>(
    nft: &mut Socket<Nfnetlink>,
    set: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let names = vec![SetElementList::Table(OWN_TABLE.into()), SetElementList::Set(set.to_owned())];
    let request = message(INET, NfTablesMessage::GetSetElement(SetElementMessage { attributes: names }));
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
        let refused = each_member(nft, set, |element| {
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
    let attributes = vec![TableAttribute::Name(OWN_TABLE.into())];
    let request = message(INET, NfTablesMessage::GetTable(TableMessage { attributes }));
    let handle = nft.get(&request, |part| attribute(part.attributes(), TABLE_HANDLE).and_then(number64));
    let Some(table) = unless_absent(handle.await)? else { return Ok(None) };
    let name = [OWN_TABLE.as_bytes(), b"\0"].concat();
    let request = message(INET, NfTablesMessage::GetObject(vec![DefaultNla::new(OBJECT_TABLE, name)]));
    let counted = nft.dump(&request, |part| {
        let get = |kind| attribute(part.attributes(), kind);
        let ours = get(TABLE_NAME).and_then(text) == Some(OWN_TABLE);
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
