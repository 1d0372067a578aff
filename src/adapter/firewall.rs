//! The firewall as one thing: reads every home of our rules, carries out steps, and hears about changes.
//!
//! What stands is compared by digest with what was put there last, so nothing is written, and over nf_tables no
//! program is run, as long as nobody changes anything. Legacy iptables tells nobody about changes; where it is in use,
//! by us or by anybody else, it is read again every few seconds.

mod ledger;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use encap::Family;
use tracing::{info, warn};

pub use self::ledger::Look;
use self::ledger::{Ledger, Legacy, digest, look_at_legacy};
use super::iptables::{Programs, Saved};
pub use super::nft::{GuardCounters, GuardReader};
use super::nft::{Nft, Survey};
use super::program::Failure;
use crate::plan::firewall::iptables::random_fully;
use crate::plan::firewall::{
    Evidence, FirewallOp, FirewallState, Home, Masquerade, OWN_TABLES, Rules, Variant, choose, nftables,
};
use crate::ports::KernelError;
use crate::tables::{HeldTable, OwnTable, Table, TableName, TableOp};

/// How often rules are written when somebody else changes rules at the same moment.
const ATTEMPTS: u32 = 4;

/// How often elements that go by themselves are renewed. The guard's last five minutes: five of it may fail.
const RENEWAL: Duration = Duration::from_secs(60);

/// The firewall of this network namespace.
pub struct Firewall {
    nft: Nft,
    /// How often legacy iptables is read.
    resync: Duration,
    programs: Programs,
    ledger: Rc<RefCell<Ledger>>,
    /// The tables that are ours.
    own: &'static [TableName],
    /// When elements that go by themselves were last renewed.
    renewed: Instant,
    /// Legacy iptables as it was last read.
    legacy: Legacy,
    legacy_read: Option<Instant>,
    /// Whether source ports can be chosen fully at random, by manager: nftables, or a variant of iptables.
    random: BTreeMap<Option<Variant>, bool>,
}

impl Firewall {
    /// Subscribes to changes, and looks which programs are installed; no rule is read yet.
    pub async fn new(resync: Duration) -> Result<Self> {
        Self::with(resync, &OWN_TABLES).await
    }

    /// The same with other tables that are ours.
    pub async fn with(resync: Duration, own: &'static [TableName]) -> Result<Self> {
        Ok(Self {
            nft: Nft::open(own)?,
            own,
            resync: resync.max(Duration::from_secs(1)),
            programs: Programs::find().await,
            ledger: Rc::default(),
            renewed: Instant::now(),
            legacy: Legacy::new(),
            legacy_read: None,
            random: BTreeMap::new(),
        })
    }

    /// For looks beside the loop.
    pub fn look(&self) -> Look {
        Look { ledger: self.ledger.clone(), programs: self.programs.clone(), own: self.own }
    }

    /// How everything stands.
    pub async fn observe(&mut self) -> Result<FirewallState> {
        self.read_legacy().await;
        let survey = self.nft.survey().await.context("cannot ask the kernel about nftables")?.clone();
        if self.ledger.borrow().chosen.is_none() {
            self.choose(&survey);
        }
        let mut state = self.ledger.borrow().state(survey, &self.legacy, &self.programs);
        if self.renewed.elapsed() >= RENEWAL {
            self.renewed = Instant::now();
            for held in state.tables.values_mut() {
                self.renew(held).await;
            }
        }
        Ok(state)
    }

    /// To look at a table is also to say that somebody does: what goes by itself holds no longer than that.
    async fn renew(&mut self, held: &mut HeldTable) {
        let HeldTable::InForce(table) = &*held else { return };
        if table.lasting().next().is_none() {
            return;
        }
        if let Err(error) = self.nft.renew(table).await {
            warn!("what holds for some time in nftables table {} cannot be renewed: {error:#}", table.name);
            *held = HeldTable::Changed;
        }
    }

    fn choose(&mut self, survey: &Survey) {
        let nft = Evidence {
            kubernetes: survey.kubernetes,
            rules: survey.iptables,
            ..self.programs.evidence(Variant::Nft)
        };
        let legacy = Evidence {
            kubernetes: self.legacy.values().any(Saved::has_kubernetes),
            rules: self.legacy.values().any(Saved::has_rules),
            ..self.programs.evidence(Variant::Legacy)
        };
        if let Some((variant, why)) = choose(nft, legacy) {
            info!(%variant, why, "iptables of this machine");
            self.ledger.borrow_mut().chosen = Some(variant);
        }
    }

    async fn read_legacy(&mut self) {
        if self.legacy_read.is_none_or(|read| read.elapsed() >= self.resync) {
            let now = look_at_legacy(&self.programs).await;
            self.keep_legacy(now);
        }
    }

    /// Takes in what was read; `true` when something that matters is not as it was.
    fn keep_legacy(&mut self, now: Legacy) -> bool {
        let before = std::mem::replace(&mut self.legacy, now);
        self.legacy_read = Some(Instant::now());
        let gist = |all: &Legacy| -> Vec<_> {
            all.iter().map(|(family, saved)| (*family, saved.gist(*family))).collect()
        };
        gist(&before) != gist(&self.legacy)
    }

    /// Waits until somebody changed something that matters, or it is time to renew what goes by itself.
    pub async fn changed(&mut self) {
        let renewal = RENEWAL.saturating_sub(self.renewed.elapsed());
        let lasting = self.ledger.borrow().tables.values().any(|(table, _)| table.lasting().next().is_some());
        let mut renewal = pin!(tokio::time::sleep(renewal));
        loop {
            // From the last look, not from now: whoever waits here is often called away by other news.
            let since = self.legacy_read.map(|read| read.elapsed()).unwrap_or_default();
            tokio::select! {
                () = self.nft.changed() => return,
                () = &mut renewal, if lasting => return,
                () = tokio::time::sleep(self.resync.saturating_sub(since)) => {}
            }
            let now = look_at_legacy(&self.programs).await;
            if self.keep_legacy(now) {
                return;
            }
        }
    }

    /// Carries out one step.
    pub async fn apply(&mut self, op: &FirewallOp) -> Result<(), KernelError> {
        let done = match op {
            FirewallOp::Install(home, rules) => self.install(*home, rules).await,
            FirewallOp::Remove(home) => self.remove(*home).await,
            FirewallOp::Table(TableOp::Put(own)) => self.put(&own.table).await,
            FirewallOp::Table(TableOp::ChangeElements { before, after }) => {
                self.change_elements(before, after).await
            }
            FirewallOp::Table(TableOp::Drop(name)) => {
                self.ledger.borrow_mut().tables.remove(name);
                self.nft.drop(*name).await.map_err(failure)
            }
        };
        done.map_err(|failure| explain(op, failure))
    }

    async fn install(&mut self, home: Home, rules: &Rules) -> Result<(), Failure> {
        self.ledger.borrow_mut().applied.remove(&home);
        let possible = self.possible(home, rules).await?;
        let mut last_read = None;
        for _ in 0..ATTEMPTS {
            let written = match home {
                Home(Variant::Nft, family) => {
                    let before = self.nft.generation().await.map_err(failure)?;
                    let commits = self.restore(Variant::Nft, family, Some(&possible)).await?;
                    self.undisturbed(before, commits)
                        .await?
                        .and_then(|survey| survey.homes.get(&home).copied())
                }
                Home(Variant::Legacy, family) => self.write_legacy(family, &possible, &mut last_read).await?,
            };
            if let Some(digest) = written {
                self.ledger.borrow_mut().applied.insert(home, (*rules, digest));
                return Ok(());
            }
        }
        Err(disturbed())
    }

    /// What nftables holds after `commits` transactions of ours; `None` when somebody else made one meanwhile, for then
    /// what is there now need not be what was written.
    async fn undisturbed(&mut self, before: Option<u32>, commits: u32) -> Result<Option<&Survey>, Failure> {
        let survey = self.nft.survey().await.map_err(failure)?;
        let ours = before.map(|before| before.wrapping_add(commits));
        Ok((survey.generation.is_some() && survey.generation == ours).then_some(survey))
    }

    /// Legacy iptables counts no transactions, so what was written is read back. Another version may print it in other
    /// words: what reads the same twice is taken for what was written.
    async fn write_legacy(
        &mut self,
        family: Family,
        rules: &Rules,
        last_read: &mut Option<u64>,
    ) -> Result<Option<u64>, Failure> {
        self.restore(Variant::Legacy, family, Some(rules)).await?;
        let Some(saved) = self.legacy.get(&family) else { return Ok(None) };
        let now = digest(saved);
        let same = saved.holds(rules) || (now.is_some() && *last_read == now);
        *last_read = now;
        Ok(now.filter(|_| same))
    }

    /// Whatever keeps a change of elements from working, the whole table stands on its own.
    async fn change_elements(&mut self, before: &Arc<Table>, after: &OwnTable) -> Result<(), Failure> {
        let name = before.name;
        let held = self.ledger.borrow_mut().tables.remove(&name).filter(|(held, _)| held == before);
        if let Some((_, digest)) = held
            && let Some(change) = before.change_to(&after.table)
            && self.nft.change_elements(&change).await.ok().flatten() == Some(digest.after(&change))
        {
            let applied = (after.table.clone(), digest.after(&change));
            self.ledger.borrow_mut().tables.insert(name, applied);
            return Ok(());
        }
        self.put(&after.table).await
    }

    async fn put(&mut self, table: &Arc<Table>) -> Result<(), Failure> {
        let name = table.name;
        self.ledger.borrow_mut().tables.remove(&name);
        let possible = self.possible_table(table).await;
        for _ in 0..ATTEMPTS {
            let before = self.nft.generation().await.map_err(failure)?;
            self.nft.put(&possible).await.map_err(failure)?;
            let written =
                self.undisturbed(before, 1).await?.and_then(|survey| survey.tables.get(&name).copied());
            if let Some(digest) = written {
                self.ledger.borrow_mut().tables.insert(name, (table.clone(), digest));
                return Ok(());
            }
        }
        Err(disturbed())
    }

    async fn remove(&mut self, home: Home) -> Result<(), Failure> {
        self.ledger.borrow_mut().applied.remove(&home);
        match home {
            Home(Variant::Nft, family) => self.nft.remove_chains(family).await.map_err(failure),
            Home(variant, family) => self.restore(variant, family, None).await.map(drop),
        }
    }

    /// Writes what differs; how many tables that were.
    async fn restore(
        &mut self,
        variant: Variant,
        family: Family,
        rules: Option<&Rules>,
    ) -> Result<u32, Failure> {
        let saved = self.programs.save(variant, family).await?;
        let commits = self.programs.restore(variant, family, &saved, rules).await?;
        if variant == Variant::Legacy {
            self.legacy.remove(&family);
            self.legacy.extend(self.programs.save(variant, family).await.ok().map(|saved| (family, saved)));
        }
        Ok(commits)
    }

    /// The rules as this machine's iptables can have them: random source ports are newer than the rest.
    async fn possible(&mut self, Home(variant, _): Home, rules: &Rules) -> Result<Rules, Failure> {
        let Some(Masquerade { fully_random: true }) = rules.masquerade else { return Ok(*rules) };
        let fully_random = match self.random.get(&Some(variant)) {
            Some(known) => *known,
            None => self.learn(Some(variant), random_fully(&self.programs.version(variant).await?)),
        };
        Ok(Rules { masquerade: Some(Masquerade { fully_random }), ..*rules })
    }

    /// The same of a table, which depends on the kernel only.
    async fn possible_table(&mut self, table: &Arc<Table>) -> Arc<Table> {
        if !table.is_fully_random() {
            return table.clone();
        }
        let fully_random = match self.random.get(&None) {
            Some(known) => *known,
            None => {
                let known = self.nft.would_take(&nftables::fully_random_trial()).await;
                self.learn(None, known)
            }
        };
        if fully_random { table.clone() } else { Arc::new(Table::clone(table).without_full_randomness()) }
    }

    fn learn(&mut self, manager: Option<Variant>, fully_random: bool) -> bool {
        if !fully_random {
            info!("source ports cannot be chosen fully at random here: the kernel's default choice is used");
        }
        self.random.insert(manager, fully_random);
        fully_random
    }
}

fn failure(error: impl Into<anyhow::Error>) -> Failure {
    Failure { cause: format!("{:#}", error.into()), missing: false }
}

fn disturbed() -> Failure {
    failure(anyhow::anyhow!("somebody else changes rules at the same time, again and again"))
}

fn explain(op: &FirewallOp, failure: Failure) -> KernelError {
    let remedy = match op {
        FirewallOp::Install(..) | FirewallOp::Remove(_) if failure.missing => {
            "install the package iptables, or set \"EnableNFTables\": true in net-conf.json, which needs the kernel only"
        }
        FirewallOp::Install(Home(Variant::Legacy, _), _) | FirewallOp::Remove(Home(Variant::Legacy, _)) => {
            "legacy iptables needs CAP_NET_ADMIN, CAP_NET_RAW and a writable /run/xtables.lock"
        }
        FirewallOp::Install(..) | FirewallOp::Remove(_) => {
            "the kernel needs nf_tables with its xtables extensions (nft_compat), and the daemon CAP_NET_ADMIN"
        }
        FirewallOp::Table(op) if op.is_optional() => {
            "strangers are not kept out of the tunnel, and it fills conntrack: the kernel needs nf_tables with inet \
             tables, sets and notrack"
        }
        FirewallOp::Table(_) => "the kernel needs nf_tables with NAT, and the daemon CAP_NET_ADMIN",
    };
    KernelError { remedy: Some(remedy), ..KernelError::new(op.to_string(), failure.cause) }
}
