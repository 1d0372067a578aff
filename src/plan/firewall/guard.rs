//! Table `inet loden`: who may send into the tunnel, and no conntrack entry for the tunnel itself.
//!
//! A kernel tunnel takes any packet of its network identifier from anybody, whatever source the inner packet claims.
//! Two lookups before the kernel unwraps it bind both together: the outer source must be a node, and an inner source
//! inside the cluster network must be that node's. They are made on the way into this machine (`input`), where IPv4
//! fragments are whole again, so none can hide its inner half in the second one; a packet too short for a
//! field matches no rule that lets it pass.
//!
//! Rules that drop could outlive the daemon that keeps them up to date. So they hold only while set `guarded` has an
//! element, whose five minutes the living daemon renews: a daemon that is stopped, or a flannel in its place, locks
//! no later node out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, Prefix, Vni};

use crate::tables::{
    self, Base, Chain, Element, Field, Header, Hook, Key, Raw, Rule, Set, Statement, Table, TableName,
    Transport, Type, count_in, daddr, dport, drop, goto, jump, l4proto, notrack, priority, raw, returns,
    rule, saddr, saddr_in,
};

/// The table, in family `inet`, of what flannel has no rules for.
pub const TABLE: TableName = TableName { family: tables::Family::Inet, name: "loden" };

/// Outer addresses of the other nodes, and the pod prefixes that each may send from. No prefix of an address covers
/// another of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Senders {
    prefixes: Arc<BTreeMap<IpAddr, Vec<Prefix>>>,
    /// The sets that they are kept in.
    pairs: BTreeSet<Pairs>,
}

impl Senders {
    /// A later entry for an address takes the place of an earlier one.
    pub fn new(entries: impl Iterator<Item = (IpAddr, Vec<Prefix>)>) -> Self {
        let widest = |mut prefixes: Vec<Prefix>| {
            // A prefix sorts before those that it covers.
            prefixes.sort_unstable();
            prefixes.dedup_by(|later, kept| kept.covers(later));
            prefixes
        };
        let prefixes: BTreeMap<_, _> = entries.map(|(addr, all)| (addr, widest(all))).collect();
        let each = prefixes.iter().flat_map(|(addr, all)| all.iter().map(|prefix| Pairs::of(*addr, prefix)));
        Self { pairs: each.collect(), prefixes: Arc::new(prefixes) }
    }
}

/// What table `inet loden` should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// UDP port of the tunnel.
    pub port: u16,
    /// The other nodes.
    pub senders: Senders,
    /// Keep the tunnel out of conntrack.
    pub untracked: bool,
    /// Check who sends; `None` where this process unwraps packets and checks them itself, or nobody should.
    pub check: Option<Check>,
}

/// How to check who sends into a kernel tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Packets of other networks on the same port are not ours to judge.
    pub vni: Vni,
    /// Inner sources inside these must be the sender's.
    pub networks: Vec<Prefix>,
    /// Drop what fails, rather than count it only.
    pub enforce: bool,
}

/// Why a packet is dropped or counted: the names of the table's counters, and labels of the metric.
pub const REASONS: [&str; 2] = [UNKNOWN_SENDER, SPOOFED_SOURCE];
const UNKNOWN_SENDER: &str = "unknown_sender";
const SPOOFED_SOURCE: &str = "spoofed_source";

/// The sets of those who were refused lately, whom the log names.
pub const REFUSED: [&str; 2] = ["refused4", "refused6"];
/// How long they are remembered.
const REMEMBERED_FOR: std::time::Duration = std::time::Duration::from_secs(600);

/// The set whose one element, UDP's protocol number, keeps the checks in force.
pub const GUARDED: &str = "guarded";
/// How long the element lasts.
pub const GUARDED_FOR: std::time::Duration = std::time::Duration::from_secs(300);

/// `IPPROTO_UDP`.
const UDP: u8 = 17;

/// Offsets in octets from the outer UDP header: RFC 7348's header, then Ethernet, then IP.
const FLAGS_AT: u32 = 8;
const VNI_AT: u32 = 8 + 4;
const ETHERTYPE_AT: u32 = 8 + 8 + 12;
const INNER_AT: u32 = ETHERTYPE_AT + 2;

/// RFC 7348's flag I: there is a network identifier.
const HAS_VNI: u32 = 8;
const ARP: u16 = 0x0806;

/// How one address family of inner packets is found.
#[derive(Clone, Copy)]
struct Inner {
    ethertype: u16,
    digit: char,
    source_at: u32,
}

const INNER: [Inner; 2] = [
    Inner { ethertype: 0x0800, digit: '4', source_at: INNER_AT + 12 },
    Inner { ethertype: 0x86dd, digit: '6', source_at: INNER_AT + 8 },
];

/// How one address family of outer packets is named.
#[derive(Clone, Copy)]
struct Outer {
    family: Family,
    kind: Type,
    digit: char,
}

const OUTER: [Outer; 2] = [
    Outer { family: Family::V4, kind: Type::Ipv4Addr, digit: '4' },
    Outer { family: Family::V6, kind: Type::Ipv6Addr, digit: '6' },
];

/// A set of pairs of outer address and inner prefix. All prefixes in one are of one length, so that a packet is looked
/// up by hash, and a pair comes and goes at the same cost however many there are. (In one interval set for all lengths,
/// the kernel takes 24 ms to remove one of 5,000 pairs.) A cluster mostly has one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pairs {
    outer: Family,
    inner: Family,
    len: u8,
}

/// Elements by the name of their set.
type Elements = BTreeMap<String, Vec<Element>>;

impl Guard {
    /// The guard as it can be on this machine: `None` when nothing of it is left to do.
    ///
    /// A firewall that refuses whatever it does not know may let the tunnel in by its conntrack state. Such a machine
    /// works with flannel and has to work here, so there the tunnel stays tracked.
    pub(super) fn beside(&self, refuses_input: bool) -> Option<Self> {
        let untracked = self.untracked && !refuses_input;
        (untracked || self.check.is_some()).then(|| Self { untracked, ..self.clone() })
    }

    /// The table. It is put in force in one transaction: its checks hold from the first packet on, and none is asked of
    /// a set whose members are still to come.
    pub fn table(&self) -> Table {
        let mut table = Table {
            comment: Some("the tunnel's doors; kept by flanneld"),
            sets: self.sets(),
            ..Table::new(TABLE)
        };
        if self.untracked {
            table.chains.extend(self.untracking());
        }
        if let Some(check) = &self.check {
            self.checks(&mut table, check);
        }
        table
    }

    /// The sets of pairs that the table has.
    fn pairs(&self) -> impl Iterator<Item = &Pairs> {
        self.senders.pairs.iter().filter(|_| self.check.is_some())
    }

    /// The sets of senders.
    fn sets(&self) -> Vec<Set> {
        let mut elements = Elements::new();
        for (addr, prefixes) in self.senders.prefixes.iter() {
            for (set, element) in self.members_of(*addr, prefixes) {
                elements.entry(set).or_default().push(element);
            }
        }
        let nodes = OUTER.iter().map(|outer| Set::of(outer.nodes(), [outer.kind]));
        let pairs = self
            .pairs()
            .map(|pairs| Set::of_fields(pairs.set(), [Field::Saddr(pairs.outer), Field::Raw(pairs.field())]));
        let filled = |set: Set| {
            let elements = elements.remove(&set.name).unwrap_or_default();
            set.with(elements)
        };
        nodes.chain(pairs).map(filled).collect()
    }

    /// Only what looks like the tunnel. The port is also one that masquerading may choose, or keep, for a pod that asks
    /// a node, and an answer that conntrack does not see never comes back to the pod.
    fn untracking(&self) -> [Chain; 2] {
        let looks_so = |check: &Check| {
            let flagged = raw(Header::Transport, FLAGS_AT, 8).has_all(HAS_VNI);
            [flagged, vni().is(check.vni.get())]
        };
        let tunnel: Vec<Statement> = self.check.iter().flat_map(looks_so).collect();
        let chain = |name: &str, hook, end: fn(Family) -> Key| {
            let of = |outer: Outer| {
                let known = [self.is_tunnel(), end(outer.family).in_set(outer.nodes())];
                rule(known.into_iter().chain(tunnel.clone()).chain([notrack()]))
            };
            Chain::base(name, Base::filter(hook, priority::RAW), OUTER.map(of).into())
        };
        [
            chain("untracked_prerouting", Hook::Prerouting, saddr),
            chain("untracked_output", Hook::Output, daddr),
        ]
    }

    /// Where a node is to be found in the sets: itself, and each of its prefixes.
    fn members_of(&self, addr: IpAddr, prefixes: &[Prefix]) -> impl Iterator<Item = (String, Element)> {
        let nodes = Outer::of(Family::of(addr)).nodes();
        let checked = prefixes.iter().filter(|_| self.check.is_some());
        let pairs = checked.map(move |prefix| {
            let pairs = Pairs::of(addr, prefix);
            (pairs.set(), Element::new(pairs.key(addr, prefix)))
        });
        std::iter::once((nodes, Element::new(octets(addr)))).chain(pairs)
    }

    fn is_tunnel(&self) -> Statement {
        dport(Transport::Udp).is(self.port)
    }

    fn checks(&self, table: &mut Table, check: &Check) {
        let refuse = |reason: &str| {
            let verdict = check.enforce.then(drop);
            std::iter::once(count_in(reason)).chain(verdict).collect::<Vec<_>>()
        };
        table.counters.extend(REASONS);
        table.sets.extend(REFUSED.iter().zip(OUTER).map(|(set, outer)| Set {
            size: Some(256),
            dynamic: true,
            timeouts: true,
            timeout: Some(REMEMBERED_FOR),
            ..Set::of(*set, [outer.kind])
        }));
        let held = Element::new(vec![UDP]).lasting(GUARDED_FOR);
        table.sets.push(Set { timeouts: true, ..Set::of(GUARDED, [Type::InetProto]).with([held]) });
        let guarded = || l4proto().in_set(GUARDED);
        let early = |hook| Base::filter(hook, priority::RAW);
        let input = rule([guarded(), self.is_tunnel(), jump("tunnel")]);
        table.chains.push(Chain::base("input", early(Hook::Input), vec![input]));
        // A pod that writes to another node's tunnel would get this node's address by masquerading.
        let forward = check.networks.iter().flat_map(|network| {
            let outer = Outer::of(Family::of(network.addr()));
            let from_pods =
                [guarded(), self.is_tunnel(), saddr_in(*network), daddr(outer.family).in_set(outer.nodes())];
            let refused = from_pods.iter().cloned().chain(refuse(UNKNOWN_SENDER));
            [rule(from_pods.iter().cloned().chain([remember(outer)])), rule(refused)]
        });
        table.chains.push(Chain::base("forward", early(Hook::Forward), forward.collect()));
        let [four, six] = OUTER;
        let known = |outer: Outer| {
            rule([saddr(outer.family).in_set(outer.nodes()), goto(format!("from{}", outer.digit))])
        };
        let tunnel = vec![
            rule([vni().is_not(check.vni.get()), returns()]),
            known(four),
            known(six),
            rule([remember(four)]),
            rule([remember(six)]),
            rule(refuse(UNKNOWN_SENDER)),
        ];
        table.chains.push(Chain::regular("tunnel", tunnel));
        for outer in OUTER {
            let mut rules = Vec::new();
            for (inner, pods) in INNER.into_iter().zip([Family::V4, Family::V6]) {
                let lookups = self.pairs().filter(|pairs| (pairs.outer, pairs.inner) == (outer.family, pods));
                pass(&mut rules, check, inner, lookups);
            }
            // ARP names no source that is routed by. Anything else, a VLAN tag above all, would hide one.
            rules.push(rule([ethertype().is(ARP), returns()]));
            rules.extend([rule([remember(outer)]), rule(refuse(SPOOFED_SOURCE))]);
            table.chains.push(Chain::regular(format!("from{}", outer.digit), rules));
        }
    }
}

/// What passes: an inner source that is the sender's, or outside the cluster network.
fn pass<'a>(rules: &mut Vec<Rule>, check: &Check, inner: Inner, lookups: impl Iterator<Item = &'a Pairs>) {
    let kind = || ethertype().is(inner.ethertype);
    let four = inner.digit == '4';
    let Some(network) = check.networks.iter().find(|network| network.is_ipv4() == four) else {
        return rules.push(rule([kind(), returns()]));
    };
    for pairs in lookups {
        let key = saddr(pairs.outer).and(pairs.source());
        rules.push(rule([kind(), key.in_set(pairs.set()), returns()]));
    }
    if network.len() > 0 {
        let start = first(network, usize::from(network.len().div_ceil(8)));
        let source = raw(Header::Transport, inner.source_at, network.len());
        rules.push(rule([kind(), source.is_not(start), returns()]));
    }
}

/// The tunnel's network identifier.
fn vni() -> Key {
    raw(Header::Transport, VNI_AT, 24)
}

/// What the inner frame holds.
fn ethertype() -> Key {
    raw(Header::Transport, ETHERTYPE_AT, 16)
}

/// Keeps the outer source for the log. A rule of its own: where the set is full, it ends there and the next one drops.
fn remember(outer: Outer) -> Statement {
    saddr(outer.family).update(format!("refused{}", outer.digit))
}

impl Outer {
    fn of(family: Family) -> Self {
        OUTER[usize::from(family == Family::V6)]
    }

    /// The set of nodes.
    fn nodes(self) -> String {
        format!("nodes{}", self.digit)
    }
}

impl Pairs {
    fn of(outer: IpAddr, prefix: &Prefix) -> Self {
        Self { outer: Family::of(outer), inner: Family::of(prefix.addr()), len: prefix.len() }
    }

    fn set(self) -> String {
        let inner = INNER[usize::from(self.inner == Family::V6)].digit;
        format!("pairs{}{inner}_{}", Outer::of(self.outer).digit, self.len)
    }

    /// How many of the first octets of an inner address are compared.
    fn octets(self) -> usize {
        usize::from(self.len.div_ceil(8).max(1))
    }

    /// Those octets in the packet.
    fn field(self) -> Raw {
        let inner = INNER[usize::from(self.inner == Family::V6)];
        // At most the sixteen of an IPv6 address.
        Raw { header: Header::Transport, offset: inner.source_at, bits: self.octets() as u8 * 8 }
    }

    /// Those octets in the packet, without the bits behind the prefix.
    fn source(self) -> Key {
        let key = Key::from(Field::Raw(self.field()));
        let behind = self.octets() * 8 - usize::from(self.len);
        if behind == 0 {
            return key;
        }
        let all = u128::MAX >> (128 - self.octets() * 8);
        key.masked(all >> behind << behind)
    }

    /// A member in the kernel's form: each field begins at a multiple of four octets.
    fn key(self, outer: IpAddr, prefix: &Prefix) -> Vec<u8> {
        tables::concatenated([&octets(outer)[..], &first(prefix, self.octets())])
    }
}

fn first(prefix: &Prefix, count: usize) -> Vec<u8> {
    let mut all = octets(prefix.addr());
    all.truncate(count);
    all
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests;
