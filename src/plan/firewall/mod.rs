//! The traffic rules a node should hold, and the steps from those it holds.
//!
//! Rules live in flannel's chains in one variant of iptables, their *homes*, or in flannel's nftables tables, per address
//! family. The names are flannel's on purpose. Whichever daemon starts on a node finds the other's rules under
//! its own names and replaces them in one transaction, so neither taking over nor going back leaves rules behind
//! or opens a moment without masquerading.

mod foreign;
pub mod guard;
pub mod iptables;
pub mod nftables;
mod variant;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use encap::{Family, Prefix};

pub use foreign::{Foreign, Hook, Obstacle};
pub use guard::{Check, Guard, Senders};
pub use variant::{Evidence, Variant, choose};

use crate::tables::{self, HeldTable, OwnTable, TableName, TableOp};

/// The tables that are ours, whoever of us and flannel made them.
pub const OWN_TABLES: [TableName; 3] = [nftables::name(Family::V4), nftables::name(Family::V6), guard::TABLE];

/// Who keeps the rules: net-conf.json's `EnableNFTables`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// flannel's chains, through `iptables-restore`.
    Iptables,
    /// flannel's tables.
    Nftables,
}

/// Where iptables keeps the rules of one address family: chains FLANNEL-POSTRTG in nat and FLANNEL-FWD in filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Home(pub Variant, pub Family);

/// How to masquerade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// Choose source ports at random, which avoids the conntrack insertion race of concurrent DNS queries.
    pub fully_random: bool,
}

/// What the rules of one address family should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The whole cluster network.
    pub cluster: Prefix,
    /// This node's pod prefix inside it, once there is one.
    pub node: Option<Prefix>,
    /// Masquerade what leaves the cluster network.
    pub masquerade: Option<Masquerade>,
    /// Accept forwarded pod traffic.
    pub forward: bool,
}

impl Rules {
    fn family(&self) -> Family {
        Family::of(self.cluster.addr())
    }

    /// Says nothing.
    fn is_empty(&self) -> bool {
        self.masquerade.is_none() && !self.forward
    }
}

/// What the firewall should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// Who keeps the rules.
    pub manager: Manager,
    /// At most one per address family.
    pub rules: Vec<Rules>,
    /// The doors of the tunnel; `None` where there is none.
    pub guard: Option<Guard>,
}

impl Firewall {
    /// The same wishes for each of `networks`, with this node's part of each; no guard.
    pub fn new(
        manager: Manager,
        networks: &[Prefix],
        own: &[Prefix],
        masquerade: Option<Masquerade>,
        forward: bool,
    ) -> Self {
        let rules = networks.iter().map(|cluster| Rules {
            cluster: *cluster,
            node: own.iter().copied().find(|own| cluster.covers(own)),
            masquerade,
            forward,
        });
        Self { manager, rules: rules.filter(|rules| !rules.is_empty()).collect(), guard: None }
    }

    /// The guard that suits this machine.
    fn guard(&self, state: &FirewallState) -> Option<Guard> {
        self.guard.as_ref()?.beside(state.foreign.refuses_input.is_some())
    }

    /// Where rules belong, in words.
    pub fn places(&self, state: &FirewallState) -> Vec<String> {
        let tables = self.tables(state);
        let tables = tables.iter().map(|own| format!("nftables table {}", own.table.name));
        self.homes(state).keys().map(Home::to_string).chain(tables).collect()
    }

    /// Which tables of ours there should be.
    pub fn tables(&self, state: &FirewallState) -> Vec<OwnTable> {
        let flannels = self.rules.iter().filter(|_| self.manager == Manager::Nftables);
        let flannels = flannels.map(|rules| OwnTable {
            table: Arc::new(nftables::table(rules)),
            optional: false,
            elements: "",
        });
        let doors = self.guard(state).map(|guard| OwnTable {
            table: Arc::new(guard.table()),
            optional: true,
            elements: "who may send into the tunnel",
        });
        flannels.chain(doors).collect()
    }

    /// Which rules belong into iptables, given what else filters on this machine.
    fn homes(&self, state: &FirewallState) -> BTreeMap<Home, Rules> {
        // Without any program the step is planned all the same: its failure names what is missing.
        let variant = state.variant.unwrap_or(Variant::Nft);
        let mut homes = BTreeMap::new();
        for rules in &self.rules {
            let family = rules.family();
            if self.manager == Manager::Iptables {
                homes.insert(Home(variant, family), *rules);
            } else if rules.forward {
                // An accept in our own table cannot overrule a FORWARD policy of DROP; one in that very chain can.
                let closed = state.foreign.obstacles.iter().filter(|by| by.opened_by() == Some(family));
                let usable = closed.filter_map(|by| by.variant).filter(|v| state.installed.contains(v));
                homes.extend(
                    usable.map(|variant| (Home(variant, family), Rules { masquerade: None, ..*rules })),
                );
            }
        }
        homes
    }
}

/// How the rules in a home stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// There are some, and they are not what we last put there.
    Changed,
    /// Exactly these are in force.
    InForce(Rules),
}

/// The firewall as it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirewallState {
    /// Those homes that hold anything under flannel's names.
    pub homes: BTreeMap<Home, Held>,
    /// The variant of iptables that this machine uses; `None` when it has none.
    pub variant: Option<Variant>,
    /// Every variant whose programs are installed.
    pub installed: BTreeSet<Variant>,
    /// Those tables under our names, or flannel's, that are there.
    pub tables: BTreeMap<TableName, HeldTable>,
    /// What others have put in the way of forwarded packets.
    pub foreign: Foreign,
}

impl FirewallState {
    /// What keeps the wanted rules from working although they are in force, a sentence each.
    pub fn troubles(&self, want: &Firewall) -> Vec<String> {
        let homes = want.homes(self);
        self.foreign.obstacles.iter().filter_map(|obstacle| obstacle.trouble(want, &homes)).collect()
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirewallOp {
    /// Put rules in force in iptables, in one transaction per table of its.
    Install(Home, Rules),
    /// Remove what iptables has under flannel's names.
    Remove(Home),
    /// A step about a table of ours.
    Table(TableOp),
}

impl FirewallOp {
    /// Packets flow without it: a kernel that lacks what it needs is no reason to be without an overlay.
    pub fn is_optional(&self) -> bool {
        matches!(self, Self::Table(op) if op.is_optional())
    }
}

impl fmt::Display for FirewallOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install(home, _) => write!(f, "put {home} in force"),
            Self::Remove(home) => write!(f, "remove {home}"),
            Self::Table(op) => write!(f, "{op}"),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(variant, family) = self;
        let six = if *family == Family::V6 { "6" } else { "" };
        write!(f, "ip{six}tables ({variant}) chains FLANNEL-POSTRTG and FLANNEL-FWD")
    }
}

/// Steps from `state` to `want`. The guard comes first: a node may send before anything is sent to it. What is wanted
/// is put in force before what is not goes, so that a switch of managers has no moment without masquerading.
pub fn diff(want: &Firewall, state: &FirewallState) -> Vec<FirewallOp> {
    let homes = want.homes(state);
    let lacking = homes.iter().filter(|(home, rules)| state.homes.get(home) != Some(&Held::InForce(**rules)));
    let stale = state.homes.keys().filter(|home| !homes.contains_key(home));
    let (puts, drops) = tables::diff(&want.tables(state), &state.tables);
    let (doors, others): (Vec<_>, Vec<_>) = puts.into_iter().partition(TableOp::is_optional);
    let table = FirewallOp::Table;
    doors
        .into_iter()
        .chain(others)
        .map(table)
        .chain(lacking.map(|(home, rules)| FirewallOp::Install(*home, *rules)))
        .chain(drops.into_iter().map(table))
        .chain(stale.map(|home| FirewallOp::Remove(*home)))
        .collect()
}

pub(crate) fn multicast(family: Family) -> &'static str {
    match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    }
}

#[cfg(test)]
mod tests;
