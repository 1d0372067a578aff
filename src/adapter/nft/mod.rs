//! nftables: `nft -f -` writes our tables, netlink says what stands and removes what is to go.

mod events;
mod survey;
mod wire;

use anyhow::Result;
use encap::Family;

pub(super) use self::events::FirewallEvents;
pub(super) use self::survey::Survey;
use self::survey::{CHAIN_NAME, RULE_CHAIN, RULE_HANDLE, TABLE_NAME, number_of};
use self::wire::{Message, NFPROTO_INET, kind};
use super::program::{self, Failure};
use crate::plan::firewall::iptables::Table;
use crate::plan::firewall::{OWN_TABLE, nftables};

/// Reads nftables, and remembers what it read for as long as nothing changes.
#[derive(Debug, Default)]
pub(super) struct Nft {
    seen: Survey,
}

impl Nft {
    /// What is there now. One small request as long as nobody changes anything.
    pub(super) fn survey(&mut self) -> Result<&Survey> {
        let now = survey::generation()?;
        if now.is_none() || now != self.seen.generation {
            self.seen = survey::survey()?;
        }
        Ok(&self.seen)
    }
}

/// Puts a ruleset in force, in one transaction.
pub(super) async fn load(script: &str) -> Result<(), Failure> {
    program::run("nft", &["-f", "-"], script).await.map(drop)
}

/// Whether the kernel and `nft` take this ruleset; nothing is changed.
pub(super) async fn would_load(script: &str) -> bool {
    program::run("nft", &["--check", "-f", "-"], script).await.is_ok()
}

/// Removes our own table.
pub(super) fn remove_own_table() -> Result<()> {
    wire::commit(vec![Message::new(kind::DEL_TABLE, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE)])
}

/// Removes flannel's table.
pub(super) fn remove_table(family: Family) -> Result<()> {
    let name = nftables::table(family).split(' ').nth(1).unwrap_or_default();
    wire::commit(vec![Message::new(kind::DEL_TABLE, number_of(family)).text(TABLE_NAME, name)])
}

/// Removes our chains from the tables of iptables over nf_tables, and the rules that call them. No iptables program
/// is needed for it.
pub(super) fn remove_chains(survey: &Survey, family: Family) -> Result<()> {
    let message = |kind, table: Table| Message::new(kind, number_of(family)).text(TABLE_NAME, table.name());
    let calls = survey.calls.iter().filter(|(of, ..)| *of == family).map(|(_, table, handle)| {
        message(kind::DEL_RULE, *table).text(RULE_CHAIN, table.caller()).number64(RULE_HANDLE, *handle)
    });
    let chains = survey.chains.iter().filter(|(of, _)| *of == family).flat_map(|(_, table)| {
        let flush = message(kind::DEL_RULE, *table).text(RULE_CHAIN, table.chain());
        [flush, message(kind::DEL_CHAIN, *table).text(CHAIN_NAME, table.chain())]
    });
    wire::commit(calls.chain(chains).collect())
}
