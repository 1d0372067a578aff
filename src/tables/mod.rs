//! Tables of nftables as values: what a table holds, the rules in it in nft's words, and the instructions that the kernel
//! runs for them.
//!
//! Whoever owns a table says here what should be in it; nobody below has to know whose it is. [`adapter::nft`] carries
//! it to the kernel by netlink, and `Display` prints what `nft` would take, for people.
//!
//! A rule reads like the sentence that `nft` prints:
//!
//! ```
//! use loden::tables::{Transport, dport, jump, l4proto, rule};
//!
//! let rule = rule([l4proto().in_set("guarded"), dport(Transport::Udp).is(8472_u16), jump("tunnel")]);
//! assert_eq!(rule.to_string(), "meta l4proto @guarded udp dport 8472 jump tunnel");
//! ```
//!
//! [`adapter::nft`]: crate::adapter

mod chain;
mod expression;
mod field;
mod lower;
mod owned;
mod rule;
mod set;
mod value;
mod words;

use std::fmt;

pub use chain::{Base, Chain, Hook, Kind, Policy, priority};
pub use expression::{Comparison, Data, Expression, Load, Register};
pub use field::{
    Direction, Field, Header, Key, Raw, Transport, ct_daddr, ct_direction, ct_mark, ct_port, ct_saddr,
    ct_state, ct_status, daddr, daddr_in, daddr_not_in, daddr_type, dport, iifname, l4proto, mark, nfproto,
    oifname, raw, saddr, saddr_in, saddr_not_in, saddr_type, sport,
};
pub use lower::expressions;
pub use owned::{HeldTable, OwnTable, TableOp, diff};
pub use rule::{
    Limit, Match, NatFlags, NatKind, Rule, SetMark, Statement, Test, Verdict, accept, count, count_in, dnat,
    drop, goto, jump, limit, masquerade, notrack, redirect, returns, rule, snat, vmap,
};
pub use set::{Element, Set, SetKey, To, concatenated};
pub use value::{AddressType, State, Type, Value};

/// What packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
}

impl Family {
    /// Its number, `NFPROTO_*`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// What nft calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }
}

/// What a table is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// What packets it sees.
    pub family: Family,
    /// Its name in that family.
    pub name: &'static str,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.as_str(), self.name)
    }
}

/// A table, and everything in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it is known by.
    pub name: TableName,
    /// For people.
    pub comment: Option<&'static str>,
    /// Counters that rules share, and that can be read by name.
    pub counters: Vec<&'static str>,
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains, in an order in which they may be made.
    pub chains: Vec<Chain>,
}

impl Table {
    /// An empty one.
    pub const fn new(name: TableName) -> Self {
        Self { name, comment: None, counters: Vec::new(), sets: Vec::new(), chains: Vec::new() }
    }
}

/// Some elements of the sets of a table: what changes while the table stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementChange {
    /// The table.
    pub table: TableName,
    /// Elements that go, each with its set. They go first.
    pub removed: Vec<(String, Element)>,
    /// Elements that come, each with its set.
    pub added: Vec<(String, Element)>,
}

#[cfg(test)]
mod tests;
