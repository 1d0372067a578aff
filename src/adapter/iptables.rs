//! iptables, in whichever variant this machine uses: `iptables-save` reads, `iptables-restore --noflush` writes.

use std::collections::BTreeSet;

use encap::Family;

use super::program::{self, Failure};
use crate::plan::firewall::iptables::{Table, hidden_by, is_nft, ours, program, script};
use crate::plan::firewall::{Evidence, Hook, Obstacle, Rules, Variant};

/// Longest wait for the lock that legacy programs share, in seconds: kube-proxy may hold it for a second or two.
const LOCK: &str = "--wait=5";

/// The programs that are installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Programs {
    /// Variants with programs under their own names.
    named: BTreeSet<Variant>,
    /// What a plain `iptables` is, asked only where it matters.
    plain: Option<Variant>,
}

impl Programs {
    /// Looks at what is installed.
    pub(super) async fn find() -> Self {
        let all = [Variant::Nft, Variant::Legacy].into_iter();
        let installed =
            |variant: &Variant| program::find(&format!("iptables-{}-restore", word(*variant))).is_some();
        let version = program::run("iptables", &["--version"], "").await;
        let plain = version.ok().map(|text| if is_nft(&text) { Variant::Nft } else { Variant::Legacy });
        Self { named: all.filter(installed).collect(), plain }
    }

    /// Variants that can be used.
    pub(super) fn installed(&self) -> BTreeSet<Variant> {
        self.named.iter().copied().chain(self.plain).collect()
    }

    /// What is known of a variant from the programs alone.
    pub(super) fn evidence(&self, variant: Variant) -> Evidence {
        Evidence {
            installed: self.installed().contains(&variant),
            default: self.plain == Some(variant),
            ..Evidence::default()
        }
    }

    /// The name of a program, such as `ip6tables-nft-save`. Distributions with one variant only may have it under
    /// the plain name.
    fn name(&self, variant: Variant, family: Family, verb: &str) -> String {
        let family = program(family);
        if self.named.contains(&variant) || self.plain != Some(variant) {
            format!("{family}-{}-{verb}", word(variant))
        } else {
            format!("{family}-{verb}")
        }
    }

    /// What `iptables-restore` says about its version.
    pub(super) async fn version(&self, variant: Variant) -> Result<String, Failure> {
        program::run(&self.name(variant, Family::V4, "restore"), &["--version"], "").await
    }

    /// Both tables as `iptables-save` prints them.
    pub(super) async fn save(&self, variant: Variant, family: Family) -> Result<Saved, Failure> {
        let name = self.name(variant, family, "save");
        let [nat, filter] = Table::ALL.map(Table::name);
        let (nat, filter) =
            (program::run(&name, &["-t", nat], "").await?, program::run(&name, &["-t", filter], "").await?);
        Ok(Saved { nat, filter })
    }

    /// Brings what is ours from `saved` to `rules`, one commit per table; how many tables differed.
    pub(super) async fn restore(
        &self,
        variant: Variant,
        family: Family,
        saved: &Saved,
        rules: Option<&Rules>,
    ) -> Result<u32, Failure> {
        let scripts: Vec<String> =
            Table::ALL.iter().filter_map(|table| script(*table, saved.of(*table), rules)).collect();
        let text = scripts.concat();
        if text.is_empty() {
            return Ok(0);
        }
        let args: &[&str] = match variant {
            Variant::Legacy => &["--noflush", LOCK],
            // It has the kernel's transactions and no lock.
            Variant::Nft => &["--noflush"],
        };
        program::run(&self.name(variant, family, "restore"), args, &text).await?;
        Ok(scripts.len() as u32)
    }
}

fn word(variant: Variant) -> &'static str {
    match variant {
        Variant::Nft => "nft",
        Variant::Legacy => "legacy",
    }
}

/// Whether the kernel has any of legacy iptables' tables for a family; nobody is asked to load them.
pub(super) fn legacy_tables(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    let names = std::fs::read_to_string(path).unwrap_or_default();
    Table::ALL.iter().any(|table| names.lines().any(|name| name == table.name()))
}

/// Both tables of one variant and family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Saved {
    nat: String,
    filter: String,
}

impl Saved {
    fn of(&self, table: Table) -> &str {
        match table {
            Table::Nat => &self.nat,
            Table::Filter => &self.filter,
        }
    }

    /// What of it is ours.
    pub(super) fn ours(&self) -> Vec<String> {
        Table::ALL.iter().flat_map(|table| ours(*table, self.of(*table))).map(str::to_owned).collect()
    }

    /// What of it matters, without the counters that differ each time.
    pub(super) fn gist(&self, family: Family) -> (Vec<String>, Vec<Obstacle>, Option<String>) {
        (self.ours(), self.obstacles(Variant::Legacy, family), self.refuses_input(family))
    }

    /// Whether what is ours is exactly this.
    pub(super) fn holds(&self, rules: &Rules) -> bool {
        Table::ALL.iter().all(|table| script(*table, self.of(*table), Some(rules)).is_none())
    }

    /// Whether anybody has rules or chains here.
    pub(super) fn has_rules(&self) -> bool {
        self.nat.lines().chain(self.filter.lines()).any(|line| line.starts_with("-A "))
    }

    /// Whether Kubernetes has chains here.
    pub(super) fn has_kubernetes(&self) -> bool {
        self.nat.lines().chain(self.filter.lines()).any(|line| line.starts_with(":KUBE-"))
    }

    /// The chain that refuses packets to this machine unless it knows them.
    pub(super) fn refuses_input(&self, family: Family) -> Option<String> {
        let refuses = |line: &str| {
            line.starts_with(":INPUT DROP ")
                || ["DROP", "REJECT"].iter().any(|target| {
                    line.strip_prefix("-A INPUT -j ").is_some_and(|rest| rest.starts_with(target))
                })
        };
        self.filter.lines().any(refuses).then(|| format!("{} (legacy) filter INPUT", program(family)))
    }

    /// What keeps packets from our chains.
    pub(super) fn obstacles(&self, variant: Variant, family: Family) -> Vec<Obstacle> {
        let obstacle = |table: Table, hook, rule| Obstacle {
            chain: format!("{} ({variant}) {} {}", program(family), table.name(), table.caller()),
            hook,
            family: Some(family),
            variant: Some(variant),
            rule,
        };
        let policy = self.filter.lines().any(|line| line.starts_with(":FORWARD DROP "));
        let policy = policy.then(|| obstacle(Table::Filter, Hook::Forward, None));
        let rule = hidden_by(Table::Filter, &self.filter);
        let rule = rule.map(|rule| obstacle(Table::Filter, Hook::Forward, Some(rule)));
        let called = !ours(Table::Nat, &self.nat).is_empty();
        let taken = hidden_by(Table::Nat, &self.nat).filter(|_| called);
        let taken = taken.map(|rule| obstacle(Table::Nat, Hook::Postrouting, Some(rule)));
        policy.into_iter().chain(rule).chain(taken).collect()
    }
}
