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
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, Prefix, Vni};

use super::OWN_TABLE;
pub use members::{Member, Update};

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

/// Whether a set of the table is one of senders, whose elements come and go with the nodes.
pub fn has_senders(set: &str) -> bool {
    ["nodes", "pairs"].iter().any(|of| set.starts_with(of))
}

/// Why a packet is dropped or counted: the names of the table's counters, and labels of the metric.
pub const REASONS: [&str; 2] = [UNKNOWN_SENDER, SPOOFED_SOURCE];
const UNKNOWN_SENDER: &str = "unknown_sender";
const SPOOFED_SOURCE: &str = "spoofed_source";

/// The sets of those who were refused lately, whom the log names.
pub const REFUSED: [&str; 2] = ["refused4", "refused6"];

/// The set whose one element, UDP's protocol number, keeps the checks in force.
pub const GUARDED: &str = "guarded";
/// How long the element lasts.
pub const GUARDED_FOR: std::time::Duration = std::time::Duration::from_secs(300);

/// Offsets in bits from the outer UDP header, for `@th`: RFC 7348's header, then Ethernet, then IP.
const FLAGS_AT: u32 = 64;
const VNI_AT: u32 = 64 + 32;
const ETHERTYPE_AT: u32 = 64 + 64 + 96;
const INNER_AT: u32 = ETHERTYPE_AT + 16;

/// How one address family of inner packets is found and written.
#[derive(Clone, Copy)]
struct Inner {
    ethertype: &'static str,
    digit: char,
    source_at: u32,
    bits: u32,
}

const INNER: [Inner; 2] = [
    Inner { ethertype: "0x0800", digit: '4', source_at: INNER_AT + 96, bits: 32 },
    Inner { ethertype: "0x86dd", digit: '6', source_at: INNER_AT + 64, bits: 128 },
];

/// How one address family of outer packets is written.
#[derive(Clone, Copy)]
struct Outer {
    word: &'static str,
    kind: &'static str,
    digit: char,
}

/// A set of pairs of outer address and inner prefix. All prefixes in one are of one length, so that a packet is looked
/// up by hash, and a pair comes and goes at the same cost however many there are. (In one interval set for all lengths,
/// the kernel takes 24 ms to remove one of 5,000 pairs.) A cluster mostly has one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pairs {
    outer: Family,
    inner: Family,
    len: u8,
}

const OUTER: [Outer; 2] = [
    Outer { word: "ip", kind: "ipv4_addr", digit: '4' },
    Outer { word: "ip6", kind: "ipv6_addr", digit: '6' },
];

/// Elements by the name of their set.
type Elements = BTreeMap<String, BTreeSet<String>>;

impl Guard {
    /// The guard as it can be on this machine: `None` when nothing of it is left to do.
    ///
    /// A firewall that refuses whatever it does not know may let the tunnel in by its conntrack state. Such a machine
    /// works with flannel and has to work here, so there the tunnel stays tracked.
    pub(super) fn beside(&self, refuses_input: bool) -> Option<Self> {
        let untracked = self.untracked && !refuses_input;
        (untracked || self.check.is_some()).then(|| Self { untracked, ..self.clone() })
    }

    /// The transaction that puts the table in force, whatever was there before: its checks hold from the first packet
    /// on, and none is asked of a set whose members are still to come.
    pub fn script(&self) -> String {
        // `add` before `delete` makes the deletion valid when the table is absent.
        let mut text =
            format!("add table inet {OWN_TABLE}\ndelete table inet {OWN_TABLE}\ntable inet {OWN_TABLE} {{\n");
        text.push_str("  comment \"the tunnel's doors; kept by flanneld\"\n");
        self.sets(&mut text);
        if self.untracked {
            self.untracking(&mut text);
        }
        if let Some(check) = &self.check {
            self.checks(&mut text, check);
        }
        text.push_str("}\n");
        text
    }

    /// The sets of pairs that the table has.
    fn pairs(&self) -> impl Iterator<Item = &Pairs> {
        self.senders.pairs.iter().filter(|_| self.check.is_some())
    }

    fn elements(&self) -> Elements {
        let mut elements: Elements =
            OUTER.iter().map(|outer| (format!("nodes{}", outer.digit), BTreeSet::new())).collect();
        elements.extend(self.pairs().map(|pairs| (pairs.set(), BTreeSet::new())));
        for (addr, prefixes) in self.senders.prefixes.iter() {
            let mut add = |set: String, element| {
                // A set that is not there has no use for it.
                if let Some(set) = elements.get_mut(&set) {
                    set.insert(element);
                }
            };
            add(format!("nodes{}", Outer::of(Family::of(*addr)).digit), addr.to_string());
            for prefix in prefixes {
                let pairs = Pairs::of(*addr, prefix);
                add(pairs.set(), format!("{addr} . {}", pairs.hexadecimal(prefix)));
            }
        }
        elements
    }

    fn sets(&self, text: &mut String) {
        let elements = self.elements();
        let mut set = |name: String, declaration: &str| {
            let members: Vec<&str> = elements[&name].iter().map(String::as_str).collect();
            let members = match members.is_empty() {
                true => String::new(),
                false => format!("    elements = {{ {} }}\n", members.join(", ")),
            };
            let _ = write!(text, "  set {name} {{\n    {declaration}\n{members}  }}\n");
        };
        for outer in OUTER {
            set(format!("nodes{}", outer.digit), &format!("type {}", outer.kind));
        }
        for pairs in self.pairs() {
            let word = Outer::of(pairs.outer).word;
            set(pairs.set(), &format!("typeof {word} saddr . {}", pairs.field()));
        }
    }

    /// Only what looks like the tunnel. The port is also one that masquerading may choose, or keep, for a pod that asks
    /// a node, and an answer that conntrack does not see never comes back to the pod.
    fn untracking(&self, text: &mut String) {
        let network = |check: &Check| format!("@th,{FLAGS_AT},8 & 0x8 == 0x8 @th,{VNI_AT},24 {} ", check.vni);
        let tunnel = self.check.as_ref().map(network).unwrap_or_default();
        for (hook, side) in [("prerouting", "saddr"), ("output", "daddr")] {
            let _ = writeln!(
                text,
                "  chain untracked_{hook} {{\n    type filter hook {hook} priority raw; policy accept;"
            );
            for Outer { word, digit, .. } in OUTER {
                let port = self.port;
                let _ = writeln!(text, "    udp dport {port} {word} {side} @nodes{digit} {tunnel}notrack");
            }
            text.push_str("  }\n");
        }
    }

    fn checks(&self, text: &mut String, check: &Check) {
        let port = self.port;
        let refuse = |reason: &str| {
            let verdict = if check.enforce { " drop" } else { "" };
            format!("counter name {reason}{verdict}")
        };
        for reason in REASONS {
            let _ = writeln!(text, "  counter {reason} {{ }}");
        }
        for (set, Outer { kind, .. }) in REFUSED.iter().zip(OUTER) {
            let _ = write!(
                text,
                "  set {set} {{\n    type {kind}\n    size 256\n    flags dynamic,timeout\n    timeout 10m\n  }}\n"
            );
        }
        let _ = write!(
            text,
            "  set {GUARDED} {{\n    type inet_proto\n    flags timeout\n    elements = {{ udp timeout {}s }}\n  }}\n",
            GUARDED_FOR.as_secs()
        );
        let _ = write!(
            text,
            "  chain input {{\n    type filter hook input priority raw; policy accept;\n    \
             meta l4proto @{GUARDED} udp dport {port} jump tunnel\n  }}\n"
        );
        // A pod that writes to another node's tunnel would get this node's address by masquerading.
        let _ =
            writeln!(text, "  chain forward {{\n    type filter hook forward priority raw; policy accept;");
        for network in &check.networks {
            let outer = OUTER[usize::from(!network.is_ipv4())];
            let Outer { word, digit, .. } = outer;
            let from_pods = format!(
                "    meta l4proto @{GUARDED} udp dport {port} {word} saddr {network} {word} daddr @nodes{digit}"
            );
            let _ = writeln!(text, "{from_pods} {}\n{from_pods} {}", remember(outer), refuse(UNKNOWN_SENDER));
        }
        let _ = write!(
            text,
            "  }}\n  chain tunnel {{\n    @th,{VNI_AT},24 != {} return\n    ip saddr @nodes4 goto from4\n    \
             ip6 saddr @nodes6 goto from6\n    {}\n    {}\n    {}\n  }}\n",
            check.vni,
            remember(OUTER[0]),
            remember(OUTER[1]),
            refuse(UNKNOWN_SENDER)
        );
        for (outer, family) in OUTER.into_iter().zip([Family::V4, Family::V6]) {
            let _ = writeln!(text, "  chain from{} {{", outer.digit);
            for (inner, pods) in INNER.into_iter().zip([Family::V4, Family::V6]) {
                let lookups = self.pairs().filter(|pairs| (pairs.outer, pairs.inner) == (family, pods));
                pass(text, check, inner, lookups);
            }
            // ARP names no source that is routed by. Anything else, a VLAN tag above all, would hide one.
            let _ = writeln!(
                text,
                "    @th,{ETHERTYPE_AT},16 0x0806 return\n    {}\n    {}\n  }}",
                remember(outer),
                refuse(SPOOFED_SOURCE)
            );
        }
    }
}

/// What passes: an inner source that is the sender's, or outside the cluster network.
fn pass<'a>(text: &mut String, check: &Check, inner: Inner, lookups: impl Iterator<Item = &'a Pairs>) {
    let ethertype = format!("@th,{ETHERTYPE_AT},16 {}", inner.ethertype);
    let four = inner.digit == '4';
    let Some(network) = check.networks.iter().find(|network| network.is_ipv4() == four) else {
        let _ = writeln!(text, "    {ethertype} return");
        return;
    };
    for pairs in lookups {
        let word = Outer::of(pairs.outer).word;
        let _ = writeln!(text, "    {ethertype} {word} saddr . {} @{} return", pairs.source(), pairs.set());
    }
    if network.len() > 0 {
        let shift = inner.bits - u32::from(network.len());
        let start = number(network) >> shift;
        let _ =
            writeln!(text, "    {ethertype} @th,{},{} != {start:#x} return", inner.source_at, network.len());
    }
}

/// Keeps the outer source for the log. A rule of its own: where the set is full, it ends there and the next one drops.
fn remember(outer: Outer) -> String {
    format!("update @refused{} {{ {} saddr }}", outer.digit, outer.word)
}

fn number(prefix: &Prefix) -> u128 {
    match prefix.addr() {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

impl Outer {
    fn of(family: Family) -> Self {
        OUTER[usize::from(family == Family::V6)]
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
    fn field(self) -> String {
        let inner = INNER[usize::from(self.inner == Family::V6)];
        format!("@th,{},{}", inner.source_at, self.octets() * 8)
    }

    /// Those octets in the packet, without the bits behind the prefix.
    fn source(self) -> String {
        let behind = self.octets() * 8 - usize::from(self.len);
        if behind == 0 {
            return self.field();
        }
        let all = u128::MAX >> (128 - self.octets() * 8);
        let mask = all >> behind << behind;
        format!("({} & {mask:#x})", self.field())
    }

    /// Those octets of a prefix as `nft` takes them where it knows of a number and not of an address.
    fn hexadecimal(self, prefix: &Prefix) -> String {
        let digits: String =
            first(prefix, self.octets()).iter().map(|octet| format!("{octet:02x}")).collect();
        format!("0x{digits}")
    }

    /// A member in the kernel's form: each field begins at a multiple of four octets.
    fn key(self, outer: IpAddr, prefix: &Prefix) -> Vec<u8> {
        let mut key = octets(outer);
        key.extend(first(prefix, self.octets()));
        key.resize(key.len().next_multiple_of(4), 0);
        key
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

mod members;
#[cfg(test)]
mod tests;
