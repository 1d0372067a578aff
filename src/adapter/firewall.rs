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
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use encap::Family;
use tracing::{info, warn};

pub use self::ledger::Look;
use self::ledger::{Ledger, Legacy, digest, look_at_legacy};
use super::iptables::{Programs, Saved};
use super::nft::{self, Nft, Survey};
pub use super::nft::{GuardCounters, GuardReader};
use super::program::Failure;
use crate::plan::firewall::iptables::random_fully;
use crate::plan::firewall::{
    Evidence, FirewallOp, FirewallState, Guard, HeldGuard, Home, Masquerade, Rules, Variant, choose, nftables,
};
use crate::ports::KernelError;

/// How often rules are written when somebody else changes rules at the same moment.
const ATTEMPTS: u32 = 4;

/// How often the guard's checks are told to hold on: five of it may fail before they let go.
const RENEWAL: Duration = Duration::from_secs(60);

/// The firewall of this network namespace.
pub struct Firewall {
    nft: Nft,
    /// How often legacy iptables is read.
    resync: Duration,
    programs: Programs,
    ledger: Rc<RefCell<Ledger>>,
    /// When the guard's checks were last told to hold on.
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
        Ok(Self {
            nft: Nft::open()?,
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
        Look { ledger: self.ledger.clone(), programs: self.programs.clone() }
    }

    /// How everything stands.
    pub async fn observe(&mut self) -> Result<FirewallState> {
        self.read_legacy().await;
        let survey = self.nft.survey().await.context("cannot ask the kernel about nftables")?.clone();
        if self.ledger.borrow().chosen.is_none() {
            self.choose(&survey);
        }
        let mut state = self.ledger.borrow().state(survey, &self.legacy, &self.programs);
        if let Some(HeldGuard::InForce(guard)) = &state.guard
            && guard.check.is_some()
            && !self.renew().await
        {
            state.guard = Some(HeldGuard::Changed);
        }
        Ok(state)
    }

    /// To look at our own table is also to say that somebody does: its checks hold no longer than that.
    async fn renew(&mut self) -> bool {
        if self.renewed.elapsed() < RENEWAL {
            return true;
        }
        if let Err(error) = self.nft.renew_guard().await {
            warn!("the checks of who sends into the tunnel cannot be renewed: {error:#}");
            return false;
        }
        self.renewed = Instant::now();
        true
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

    /// Waits until somebody changed something that matters, or it is time to say that the guard is looked after.
    pub async fn changed(&mut self) {
        let renewal = RENEWAL.saturating_sub(self.renewed.elapsed());
        let guarded = self.ledger.borrow().guard.as_ref().is_some_and(|(guard, _)| guard.check.is_some());
        let mut renewal = pin!(tokio::time::sleep(renewal));
        loop {
            // From the last look, not from now: whoever waits here is often called away by other news.
            let since = self.legacy_read.map(|read| read.elapsed()).unwrap_or_default();
            tokio::select! {
                () = self.nft.changed() => return,
                () = &mut renewal, if guarded => return,
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
            FirewallOp::InstallGuard(guard) => self.install_guard(guard).await,
            FirewallOp::UpdateGuard { before, after } => self.update_guard(before, after).await,
            FirewallOp::RemoveGuard => {
                self.ledger.borrow_mut().guard = None;
                self.nft.remove_own_table().await.map_err(failure)
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
                Home::Nftables(_) => {
                    let before = self.nft.generation().await.map_err(failure)?;
                    nft::load(&nftables::script(&possible)).await?;
                    self.undisturbed(before, 1).await?.and_then(|survey| survey.homes.get(&home).copied())
                }
                Home::Iptables(Variant::Nft, family) => {
                    let before = self.nft.generation().await.map_err(failure)?;
                    let commits = self.restore(Variant::Nft, family, Some(&possible)).await?;
                    self.undisturbed(before, commits)
                        .await?
                        .and_then(|survey| survey.homes.get(&home).copied())
                }
                Home::Iptables(Variant::Legacy, family) => {
                    self.write_legacy(family, &possible, &mut last_read).await?
                }
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

    /// Whatever keeps a change of members from working, the whole table stands on its own.
    async fn update_guard(&mut self, before: &Guard, after: &Guard) -> Result<(), Failure> {
        let held = self.ledger.borrow_mut().guard.take().filter(|(held, _)| held == before);
        if let Some((_, table)) = held
            && let Some(update) = after.update(before)
            && self.nft.change_members(&update).await.ok().flatten() == Some(table.after(&update))
        {
            self.ledger.borrow_mut().guard = Some((after.clone(), table.after(&update)));
            return Ok(());
        }
        self.install_guard(after).await
    }

    async fn install_guard(&mut self, guard: &Guard) -> Result<(), Failure> {
        self.ledger.borrow_mut().guard = None;
        let before = self.nft.generation().await.map_err(failure)?;
        nft::load(&guard.script()).await?;
        let table = self.undisturbed(before, 1).await?.and_then(|survey| survey.own_table);
        self.ledger.borrow_mut().guard = Some((guard.clone(), table.ok_or_else(disturbed)?));
        self.renewed = Instant::now();
        Ok(())
    }

    async fn remove(&mut self, home: Home) -> Result<(), Failure> {
        self.ledger.borrow_mut().applied.remove(&home);
        match home {
            Home::Nftables(family) => self.nft.remove_table(family).await.map_err(failure),
            Home::Iptables(Variant::Nft, family) => self.nft.remove_chains(family).await.map_err(failure),
            Home::Iptables(variant, family) => self.restore(variant, family, None).await.map(drop),
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

    /// The rules as this machine can have them: random source ports are newer than the rest.
    async fn possible(&mut self, home: Home, rules: &Rules) -> Result<Rules, Failure> {
        let Some(Masquerade { fully_random: true }) = rules.masquerade else { return Ok(*rules) };
        let key = match home {
            Home::Iptables(variant, _) => Some(variant),
            Home::Nftables(_) => None,
        };
        let fully_random = match self.random.get(&key) {
            Some(known) => *known,
            None => {
                let known = match key {
                    Some(variant) => random_fully(&self.programs.version(variant).await?),
                    None => nft::would_load(nftables::FULLY_RANDOM_TRIAL).await,
                };
                if !known {
                    info!(
                        "source ports cannot be chosen fully at random here: the kernel's default choice is used"
                    );
                }
                self.random.insert(key, known);
                known
            }
        };
        Ok(Rules { masquerade: Some(Masquerade { fully_random }), ..*rules })
    }
}

fn failure(error: impl Into<anyhow::Error>) -> Failure {
    Failure { cause: format!("{:#}", error.into()), missing: false }
}

fn disturbed() -> Failure {
    failure(anyhow::anyhow!("somebody else changes rules at the same time, again and again"))
}

fn explain(op: &FirewallOp, failure: Failure) -> KernelError {
    let home = match op {
        FirewallOp::Install(home, _) | FirewallOp::Remove(home) => Some(home),
        _ => None,
    };
    let remedy = match (home, failure.missing) {
        (Some(Home::Iptables(..)), true) => {
            "install the package iptables, or set \"EnableNFTables\": true in net-conf.json, which needs nftables only"
        }
        (None, true) => {
            "strangers are not kept out of the tunnel, and it fills conntrack: install the package nftables"
        }
        (None, false) => {
            "strangers are not kept out of the tunnel, and it fills conntrack: the kernel needs nf_tables with inet \
             tables, sets and notrack"
        }
        (_, true) => {
            "install the package nftables, or run without --ip-masq and with --iptables-forward-rules=false"
        }
        (Some(Home::Iptables(Variant::Legacy, _)), false) => {
            "legacy iptables needs CAP_NET_ADMIN, CAP_NET_RAW and a writable /run/xtables.lock"
        }
        (Some(Home::Iptables(Variant::Nft, _)), false) => {
            "the kernel needs nf_tables with its xtables extensions (nft_compat), and the daemon CAP_NET_ADMIN"
        }
        _ => "the kernel needs nf_tables with NAT, and the daemon CAP_NET_ADMIN",
    };
    KernelError { remedy: Some(remedy), ..KernelError::new(op.to_string(), failure.cause) }
}
