//! Who may send, as members of the table's sets: what changes when nodes come and go.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use encap::Prefix;

use super::Guard;

/// A change of more members than this is no faster than writing the table anew, and does not fit into one transaction
/// of netlink's.
const MOST: usize = 1000;

/// A member of one of [`super::SETS`], in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The set's name.
    pub set: &'static str,
    /// The outer address, and in the sets of pairs behind it the first inner one.
    pub key: Vec<u8>,
    /// In the sets of pairs, the outer address and the last inner one.
    pub end: Option<Vec<u8>>,
}

/// The members in which two guards differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Only the old one has them.
    pub removed: Vec<Member>,
    /// Only the new one has them.
    pub added: Vec<Member>,
}

impl Guard {
    /// The way from `before` to this. `None` when more differs than who sends, or so many that the table had better be
    /// written anew.
    pub fn update(&self, before: &Self) -> Option<Update> {
        if (Self { senders: self.senders.clone(), ..before.clone() }) != *self {
            return None;
        }
        let mut update = Update::default();
        let (mut olds, mut news) = (before.senders.0.iter().peekable(), self.senders.0.iter().peekable());
        loop {
            // Both are sorted: the smaller head is missing on the other side.
            let order = match (olds.peek(), news.peek()) {
                (None, None) => return Some(update),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = olds.next_if(|_| order.is_le());
            let new = news.next_if(|_| order.is_ge());
            if old.map(|(_, prefixes)| prefixes) != new.map(|(_, prefixes)| prefixes) {
                let members = |of: Option<(&IpAddr, &Vec<Prefix>)>| -> BTreeSet<Member> {
                    of.into_iter().flat_map(|(addr, prefixes)| self.members_of(*addr, prefixes)).collect()
                };
                let (old, new) = (members(old), members(new));
                update.removed.extend(old.difference(&new).cloned());
                update.added.extend(new.difference(&old).cloned());
            }
            if update.removed.len() + update.added.len() > MOST {
                return None;
            }
        }
    }

    fn members_of(&self, addr: IpAddr, prefixes: &[Prefix]) -> impl Iterator<Item = Member> {
        let outer = octets(addr);
        let node =
            Member { set: if addr.is_ipv4() { "nodes4" } else { "nodes6" }, key: outer.clone(), end: None };
        let checked = prefixes.iter().filter(|_| self.check.is_some());
        let pairs = checked.map(move |prefix| {
            let set = match (addr.is_ipv4(), prefix.is_ipv4()) {
                (true, true) => "pairs44",
                (true, false) => "pairs46",
                (false, true) => "pairs64",
                (false, false) => "pairs66",
            };
            let with = |inner| [outer.clone(), octets(inner)].concat();
            Member { set, key: with(prefix.addr()), end: Some(with(prefix.last())) }
        });
        std::iter::once(node).chain(pairs)
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
