//! What is wanted beside what is there, for people: how many of each, what differs, and the command that puts it right.
//! Where that is the daemon's business alone, rules of any length above all, the command has it try at once.

use std::collections::BTreeMap;

use encap::PeerId;

use super::firewall::{FirewallOp, FirewallState};
use super::{Desired, Object, Observed, Op, Watched, diff};
use crate::tables::TableOp;

/// The comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Of each kind of object that is wanted at all: how many.
    pub wanted: BTreeMap<Object, usize>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Where traffic rules are kept, in words.
    pub rules: Vec<String>,
}

/// One step that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub object: Object,
    /// The step in words.
    pub step: String,
    /// A command that takes it.
    pub command: String,
    /// On whose account.
    pub peer: Option<PeerId>,
}

/// Compares. `repair` is the command that has the daemon try what no other does.
pub fn compare(desired: &Desired, observed: &Observed, watched: &Watched, repair: &str) -> Comparison {
    let counts = [
        (Object::Link, desired.links.len()),
        (Object::Address, desired.addresses.len()),
        (Object::Route, desired.routes.len()),
        (Object::Neighbour, desired.neighbours.len()),
        (Object::Fdb, desired.fdb.len()),
        (Object::Firewall, desired.firewall.places(&observed.firewall).len()),
    ];
    let ops = diff(desired, observed);
    let differences = ops.iter().map(|op| Difference {
        object: op.object(),
        step: step(op, &observed.firewall, watched),
        command: op.command(watched).unwrap_or_else(|| repair.to_owned()),
        peer: op.peer(),
    });
    Comparison {
        wanted: counts.into_iter().filter(|(_, count)| *count > 0).collect(),
        differences: differences.collect(),
        rules: desired.firewall.places(&observed.firewall),
    }
}

/// Of rules it also matters whether somebody took them away or wrote over them.
fn step(op: &Op, rules: &FirewallState, watched: &Watched) -> String {
    let there = match op {
        Op::Firewall(FirewallOp::Install(home, _)) => rules.homes.contains_key(home),
        Op::Firewall(FirewallOp::Table(TableOp::Put(own))) => rules.tables.contains_key(&own.table.name),
        _ => return op.describe(watched),
    };
    let stands = if there { "what is there is not what was written" } else { "nothing is there" };
    format!("{} ({stands})", op.describe(watched))
}
