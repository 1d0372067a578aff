//! What is in table `inet loden`: members of its sets, and what its counters have counted.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use anyhow::Result;

use super::survey::TABLE_NAME;
use super::wire::{self, Connection, Message, NFPROTO_INET, kind, text};
use crate::plan::firewall::OWN_TABLE;
use crate::plan::firewall::guard::{self, Member, Update};

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
const ELEMENT_EXPIRATION: u16 = 5;
const OBJECT_NAME: u16 = 2;
const OBJECT_DATA: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_ELEMENTS: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;

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
pub(super) fn members(nft: &mut Connection) -> Result<u64> {
    let mut sets = Vec::new();
    nft.dump(Message::new(kind::GET_SET, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE), |part| {
        let get = |kind| wire::attribute(part.attributes(), kind).and_then(text);
        // Kernels that do not know how to select send everything.
        let ours = get(TABLE_NAME) == Some(OWN_TABLE);
        sets.extend(get(SET_NAME).filter(|set| ours && guard::has_senders(set)).map(str::to_owned));
    })?;
    let mut sum = 0_u64;
    for set in sets {
        each_member(nft, &set, |element| {
            let key = wire::attribute(element, ELEMENT_KEY).and_then(|key| wire::attribute(key, DATA_VALUE));
            sum = sum.wrapping_add(digest(&set, key.unwrap_or_default()));
        })?;
    }
    Ok(sum)
}

fn digest(set: &str, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (set, key).hash(&mut hasher);
    hasher.finish()
}

/// Changes the members of our sets, in one transaction.
pub(super) fn change(nft: &mut Connection, update: &Update) -> Result<()> {
    let removed = update.removed.iter().map(|member| element(kind::DEL_ELEMENT, member));
    let added = update.added.iter().map(|member| element(kind::NEW_ELEMENT, member).create());
    nft.commit(removed.chain(added).collect())
}

fn element(kind: u16, member: &Member) -> Message {
    let message = Message::new(kind, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE).text(SET_NAME, &member.set);
    message.nested(SET_ELEMENTS, |list| {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(ELEMENT_KEY, |key| key.bytes(DATA_VALUE, &member.key))
        })
    })
}

fn each_member(nft: &mut Connection, set: &str, mut each: impl FnMut(&[u8])) -> Result<()> {
    let request =
        Message::new(kind::GET_ELEMENT, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE).text(SET_NAME, set);
    nft.dump(request, |part| {
        let elements = wire::attribute(part.attributes(), SET_ELEMENTS).unwrap_or_default();
        wire::attributes(elements).for_each(|(_, element)| each(element));
    })
    .map(drop)
}

/// Who was refused last, as far as it is remembered.
pub(super) fn last_refused(nft: &mut Connection) -> Result<Option<IpAddr>> {
    let mut last: Option<(u64, IpAddr)> = None;
    for set in guard::REFUSED {
        each_member(nft, set, |element| {
            // What expires last was put there, or met again, last.
            let left = wire::attribute(element, ELEMENT_EXPIRATION).and_then(wire::number64);
            let key = wire::attribute(element, ELEMENT_KEY).and_then(|key| wire::attribute(key, DATA_VALUE));
            let addr = key.and_then(|key| match key.len() {
                4 => key.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
                _ => key.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
            });
            last = last.max(left.zip(addr));
        })?;
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
pub(super) fn counters(nft: &mut Connection) -> Result<Option<GuardCounters>> {
    let mut table = None;
    nft.dump(Message::new(kind::GET_TABLE, NFPROTO_INET), |part| {
        let get = |kind| wire::attribute(part.attributes(), kind);
        if get(TABLE_NAME).and_then(text) == Some(OWN_TABLE) {
            table = get(TABLE_HANDLE).and_then(wire::number64);
        }
    })?;
    let mut packets = [None; 2];
    nft.dump(Message::new(kind::GET_OBJECT, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE), |part| {
        let get = |kind| wire::attribute(part.attributes(), kind);
        let ours = get(TABLE_NAME).and_then(text) == Some(OWN_TABLE);
        let name = get(OBJECT_NAME).and_then(text).filter(|_| ours);
        let count = get(OBJECT_DATA).and_then(|data| wire::attribute(data, COUNTER_PACKETS));
        let at = guard::REASONS.iter().position(|reason| Some(*reason) == name);
        if let (Some(at), Some(count)) = (at, count.and_then(wire::number64)) {
            packets[at] = Some(count);
        }
    })?;
    let packets = packets[0].zip(packets[1]).map(<[u64; 2]>::from);
    Ok(table.zip(packets).map(|(table, packets)| GuardCounters { table, packets }))
}
