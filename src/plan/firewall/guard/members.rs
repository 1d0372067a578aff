//! Who may send, as members of the table's sets: what changes when nodes come and go.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use encap::{Family, Prefix};

use super::{Guard, Outer, Pairs, octets};

/// A change of more members than this is no faster than writing the table anew, and does not fit into one transaction
/// of netlink's.
const MOST: usize = 1000;

/// A member of one of the sets of senders, in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The set's name.
    pub set: String,
    /// The outer address, and in the sets of pairs behind it what is compared of the inner one.
    pub key: Vec<u8>,
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
    /// The way from `before` to this. `None` when more differs than who sends, a set is missing, or so many differ that
    /// the table had better be written anew.
    pub fn update(&self, before: &Self) -> Option<Update> {
        if !self.pairs().all(|pairs| before.senders.pairs.contains(pairs)) {
            return None;
        }
        if (Self { senders: self.senders.clone(), ..before.clone() }) != *self {
            return None;
        }
        let mut update = Update::default();
        let (mut olds, mut news) =
            (before.senders.prefixes.iter().peekable(), self.senders.prefixes.iter().peekable());
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
        let nodes = format!("nodes{}", Outer::of(Family::of(addr)).digit);
        let checked = prefixes.iter().filter(|_| self.check.is_some());
        let pairs = checked.map(move |prefix| {
            let pairs = Pairs::of(addr, prefix);
            Member { set: pairs.set(), key: pairs.key(addr, prefix) }
        });
        std::iter::once(Member { set: nodes, key: octets(addr) }).chain(pairs)
    }
}
