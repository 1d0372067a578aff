//! What was put into the firewall last, and what it looked like then. By this the loop knows whether anybody has
//! touched our rules, and so does whoever looks beside it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use encap::Family;

use crate::adapter::iptables::{self, Programs, Saved};
use crate::adapter::nft::{Nft, Survey, TableDigest};
use crate::plan::firewall::{FirewallState, Held, Home, Rules, Variant, nftables};
use crate::tables::{HeldTable, Table, TableName};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Legacy iptables as it was read.
pub(super) type Legacy = BTreeMap<Family, Saved>;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The iptables of this machine, once it is chosen.
    pub(super) chosen: Option<Variant>,
    /// What each home was last told, and what it looked like then.
    pub(super) applied: BTreeMap<Home, (Rules, u64)>,
    /// What each table was last told, and what it looked like then.
    pub(super) tables: BTreeMap<TableName, (Arc<Table>, TableDigest)>,
}

impl Ledger {
    /// How everything stands, given what is there.
    pub(super) fn state(&self, survey: Survey, legacy: &Legacy, programs: &Programs) -> FirewallState {
        let mut digests = survey.homes;
        let mut foreign = survey.foreign;
        for (family, saved) in legacy {
            if let Some(digest) = digest(saved) {
                digests.insert(Home(Variant::Legacy, *family), digest);
            }
            foreign.obstacles.extend(saved.obstacles(Variant::Legacy, *family));
            foreign.refuses_input = foreign.refuses_input.take().or_else(|| saved.refuses_input(*family));
        }
        let held = |(home, digest)| match self.applied.get(&home) {
            Some((rules, applied)) if *applied == digest => (home, Held::InForce(*rules)),
            _ => (home, Held::Changed),
        };
        let table = |(name, digest)| match self.tables.get(&name) {
            Some((table, applied)) if *applied == digest => (name, HeldTable::InForce(table.clone())),
            _ => (name, HeldTable::Changed),
        };
        FirewallState {
            homes: digests.into_iter().map(held).collect(),
            variant: self.chosen,
            installed: programs.installed(),
            tables: survey.tables.into_iter().map(table).collect(),
            foreign,
        }
    }
}

/// A look beside the loop: at the kernel anew, by what the loop has put there.
pub struct Look {
    pub(super) ledger: Rc<RefCell<Ledger>>,
    pub(super) programs: Programs,
    /// The tables that are ours.
    pub(super) own: &'static [TableName],
}

impl Look {
    /// How everything stands now.
    pub async fn state(&self) -> Result<FirewallState> {
        let legacy = look_at_legacy(&self.programs).await;
        let mut nft = Nft::beside(self.own)?;
        let survey = nft.survey().await.context("cannot ask the kernel about nftables")?.clone();
        Ok(self.ledger.borrow().state(survey, &legacy, &self.programs))
    }

    /// Who keeps our rules now, and in which variant of it: for metrics and people.
    pub fn keepers(&self) -> BTreeSet<(&'static str, &'static str)> {
        let ledger = self.ledger.borrow();
        let homes = ledger.applied.keys().map(|Home(variant, _)| ("iptables", variant.as_str()));
        let flannels = FAMILIES.map(nftables::name);
        let tables = ledger.tables.keys().filter(|name| flannels.contains(name)).map(|_| ("nftables", ""));
        homes.chain(tables).collect()
    }
}

/// Legacy iptables of each family that has any of its tables. No program is run where there are none: to ask for them
/// would make them.
pub(super) async fn look_at_legacy(programs: &Programs) -> Legacy {
    let mut all = Legacy::new();
    for family in FAMILIES.into_iter().filter(|family| iptables::legacy_tables(*family)) {
        // Without its programs nobody uses it. What keeps them from working shows when they are to write.
        if let Ok(saved) = programs.save(Variant::Legacy, family).await {
            all.insert(family, saved);
        }
    }
    all
}

/// Of what is ours; `None` when nothing is.
pub(super) fn digest(saved: &Saved) -> Option<u64> {
    let ours = saved.ours();
    let mut hasher = DefaultHasher::new();
    ours.hash(&mut hasher);
    (!ours.is_empty()).then(|| hasher.finish())
}
