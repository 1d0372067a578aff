//! nftables: what stands there, and how our tables are written and removed. All of it is netlink; no program is run.

mod message;
mod own_table;
mod rule;
mod ruleset;
mod survey;
pub mod tables;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use encap::Family;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};
use nix::errno::Errno;

use self::message::{message, number_of, remove};
pub use self::own_table::GuardCounters;
use self::own_table::Members;
pub(super) use self::own_table::TableDigest;
use self::ruleset::{GENERATION, Ruleset};
pub(super) use self::survey::Survey;
use super::netlink::socket::{Announcements, Socket};
use super::netlink::transactions::Transactions;
use super::netlink::wire::{Change, Error, Nfnetlink, attribute, number};
use crate::plan::firewall::iptables::Table;
use crate::ports::FaultKind;
use crate::tables::{ElementChange, Table as Wanted, TableName};

const NFNLGRP_NFTABLES: u32 = 7;

/// How often a look is begun anew while others change rules. On a machine that never rests the last look counts: the
/// announcement of the next change is on its way.
const LOOKS: usize = 5;

/// How long the kernel may count a transaction before it tells of it.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

/// Reads and changes nftables, and keeps what it read in step with what is announced.
pub(super) struct Nft {
    /// `None` where this kernel has no nfnetlink at all.
    questions: Option<Socket<Nfnetlink>>,
    transactions: Transactions,
    announcements: Option<Announcements<Nfnetlink>>,
    ruleset: Ruleset,
    seen: Survey,
}

impl Nft {
    /// Connects and subscribes; nothing is read yet. `own` are the tables that are ours.
    pub(super) fn open(own: &'static [TableName]) -> Result<Self> {
        // Subscribed before the first look, so that no change falls in between.
        let announcements = unless_unsupported(Announcements::subscribe(&[NFNLGRP_NFTABLES]))
            .context("cannot hear about changes of nftables")?;
        Ok(Self { announcements, ..Self::beside(own)? })
    }

    /// Connects for a single look.
    pub(super) fn beside(own: &'static [TableName]) -> Result<Self> {
        Ok(Self {
            questions: unless_unsupported(Socket::open()).context("cannot ask about nftables")?,
            transactions: Transactions::default(),
            announcements: None,
            ruleset: Ruleset::of(own),
            seen: Survey::default(),
        })
    }

    /// What is there now. One small request as long as nobody changes anything.
    pub(super) async fn survey(&mut self) -> Result<&Survey, Error> {
        for _ in 0..LOOKS {
            let now = self.generation().await?;
            if now.is_some() && now == self.seen.generation {
                break;
            }
            let Some((now, questions)) = now.zip(self.questions.as_mut()) else {
                self.ruleset.forget();
                self.seen = Survey::default();
                break;
            };
            catch_up(&mut self.ruleset, self.announcements.as_mut(), now).await;
            self.ruleset.read(questions, now).await?;
            self.seen = survey::of(&self.ruleset);
            if self.generation().await? == Some(now) {
                self.seen.generation = Some(now);
                break;
            }
        }
        Ok(&self.seen)
    }

    /// Number of the last transaction; `None` when the kernel has no nf_tables.
    pub(super) async fn generation(&mut self) -> Result<Option<u32>, Error> {
        let Some(questions) = &mut self.questions else { return Ok(None) };
        let request = message(0, NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }));
        let id = questions.get(&request, |part| attribute(part.attributes(), GENERATION).and_then(number));
        match id.await {
            // Nobody takes messages about nftables, and no module that would (`nfnetlink_rcv_msg`).
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(None),
            Err(error) if error.kind() == FaultKind::Unsupported => Ok(None),
            answer => answer,
        }
    }

    /// Waits for a change to what is ours, to what calls it, or to a chain that packets pass. kube-proxy's work on
    /// its own chains wakes nobody. A lost announcement counts as a change.
    pub(super) async fn changed(&mut self) {
        let Some(announcements) = &mut self.announcements else { return std::future::pending().await };
        loop {
            match announcements.next().await {
                Ok(datagram) if !self.ruleset.hear(datagram) => {}
                Ok(_) => return,
                // The kernel could not keep up with telling us.
                Err(_) => return self.ruleset.forget(),
            }
        }
    }

    /// Changes elements of a table of ours; says how it stands then. As long as nobody else changes anything at the same
    /// moment, that is known without reading it back.
    pub(super) async fn change_elements(&mut self, change: &ElementChange) -> Result<Option<TableDigest>> {
        let name = change.table;
        let before = self.generation().await?;
        let unchanged = before.is_some() && before == self.seen.generation;
        let known = self.seen.tables.get(&name).copied().filter(|_| unchanged);
        self.commit(tables::change_elements(change)).await?;
        let after = before.map(|before| before.wrapping_add(1));
        let sets = self.ruleset.members.get(&name).map(|members| members.sets.clone());
        if let (Some(table), Some(sets), Some(now)) = (known, sets, after)
            && self.generation().await? == after
        {
            catch_up(&mut self.ruleset, self.announcements.as_mut(), now).await;
            self.ruleset.members.insert(name, Members { sets, digest: table.after(change).members });
        }
        Ok(self.survey().await?.tables.get(&name).copied())
    }

    /// Puts a table of ours in force, whatever is there under its name.
    pub(super) async fn put(&mut self, table: &Wanted) -> Result<()> {
        self.commit(tables::put(table)).await
    }

    /// Removes a table of ours.
    pub(super) async fn drop(&mut self, table: TableName) -> Result<()> {
        self.commit(tables::drop(table)).await
    }

    /// Lets those elements of a table that go by themselves last as long as in the beginning.
    pub(super) async fn renew(&mut self, table: &Wanted) -> Result<()> {
        self.commit(tables::renew(table)).await
    }

    /// Whether this kernel would take a table; nothing is changed.
    pub(super) async fn would_take(&mut self, table: &Wanted) -> bool {
        let mut changes = tables::put(table);
        // A transaction that ends with something impossible is always refused: where, says whether it is only that.
        let last = changes.len();
        let nowhere =
            vec![ChainAttribute::Table(table.name.name.into()), ChainAttribute::Name("nowhere".into())];
        let inner = NfTablesMessage::DeleteChain(ChainMessage { attributes: nowhere });
        changes.push(remove(table.name.family.number(), inner));
        matches!(self.transactions.commit(changes).await, Err(Error::Aborted { at, .. }) if at == last)
    }

    /// Removes our chains from the tables of iptables over nf_tables, and the rules that call them. No iptables program
    /// is needed for it.
    pub(super) async fn remove_chains(&mut self, family: Family) -> Result<()> {
        let rules = |table: Table, chain: &str, handle: Option<u64>| {
            let names = [RuleAttribute::Table(table.name().into()), RuleAttribute::Chain(chain.into())];
            let attributes = names.into_iter().chain(handle.map(RuleAttribute::Handle)).collect();
            remove(number_of(family), NfTablesMessage::DeleteRule(RuleMessage { attributes }))
        };
        let chain = |table: Table| {
            let attributes =
                vec![ChainAttribute::Table(table.name().into()), ChainAttribute::Name(table.chain().into())];
            remove(number_of(family), NfTablesMessage::DeleteChain(ChainMessage { attributes }))
        };
        let survey = self.survey().await?;
        let calls = survey.calls.iter().filter(|(of, ..)| *of == family);
        let calls = calls.map(|(_, table, handle)| rules(*table, table.caller(), Some(*handle)));
        let chains = survey.chains.iter().filter(|(of, _)| *of == family);
        let chains = chains.flat_map(|(_, table)| [rules(*table, table.chain(), None), chain(*table)]);
        let removals = calls.chain(chains).collect();
        self.commit(removals).await
    }

    async fn commit(&mut self, changes: Vec<Change<Nfnetlink>>) -> Result<()> {
        Ok(self.transactions.commit(changes).await?)
    }
}

/// Takes in what was announced up to a transaction; where that cannot be had, everything is to be read anew.
async fn catch_up(
    ruleset: &mut Ruleset,
    announcements: Option<&mut Announcements<Nfnetlink>>,
    transaction: u32,
) {
    let Some(announcements) = announcements else { return ruleset.forget() };
    while let Some(heard) = announcements.waiting() {
        match heard {
            Ok(datagram) => {
                ruleset.hear(datagram);
            }
            Err(_) => ruleset.forget(),
        }
    }
    while ruleset.has_to_hear_of(transaction) {
        match tokio::time::timeout(TOLD_WITHIN, announcements.next()).await {
            Ok(Ok(datagram)) => {
                ruleset.hear(datagram);
            }
            _ => ruleset.forget(),
        }
    }
}

/// What a kernel has of a protocol that it may be built without.
fn unless_unsupported<T>(opened: io::Result<T>) -> Result<Option<T>, Error> {
    match opened.map_err(Error::Socket) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == FaultKind::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads what the guard has met. Apart from `Nft`, because it is read between two passes over the kernel; the connection is
/// kept, because closing one can wait for the kernel's own cleaning.
#[derive(Default)]
pub struct GuardReader(Option<Socket<Nfnetlink>>);

impl GuardReader {
    /// What the guard has dropped or counted; `None` without table, or with one that checks nothing.
    pub async fn counters(&mut self) -> Result<Option<GuardCounters>> {
        Ok(own_table::counters(self.socket()?).await?)
    }

    /// Who was refused by the guard last, as far as it is remembered.
    pub async fn last_refused(&mut self) -> Result<Option<IpAddr>> {
        Ok(own_table::last_refused(self.socket()?).await?)
    }

    fn socket(&mut self) -> Result<&mut Socket<Nfnetlink>> {
        let socket = self.0.take().map_or_else(Socket::open, Ok)?;
        Ok(self.0.insert(socket))
    }
}
