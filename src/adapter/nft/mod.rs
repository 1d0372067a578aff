//! nftables: `nft -f -` writes our tables, netlink says what stands and removes what is to go.

mod events;
mod own_table;
mod survey;
mod wire;

use std::net::IpAddr;

use anyhow::Result;
use encap::Family;

pub(super) use self::events::FirewallEvents;
pub use self::own_table::GuardCounters;
pub(super) use self::own_table::OwnTable;
use self::own_table::{DATA_VALUE, ELEMENT_KEY, LIST_ELEMENT, SET_ELEMENTS, SET_NAME};
pub(super) use self::survey::Survey;
use self::survey::{CHAIN_NAME, RULE_CHAIN, RULE_HANDLE, TABLE_NAME, number_of};
use self::wire::{Connection, Message, NFPROTO_INET, kind};
use super::program::{self, Failure};
use crate::plan::firewall::guard::{self, Update};
use crate::plan::firewall::iptables::Table;
use crate::plan::firewall::{OWN_TABLE, nftables};

/// `NFTA_SET_ELEM_TIMEOUT`.
const ELEMENT_TIMEOUT: u16 = 4;

/// Reads and changes nftables, and remembers what it read for as long as nothing changes.
pub(super) struct Nft {
    connection: Connection,
    seen: Survey,
}

impl Nft {
    /// Connects; nothing is read yet.
    pub(super) fn open() -> Result<Self> {
        Ok(Self { connection: Connection::open()?, seen: Survey::default() })
    }

    /// What is there now. One small request as long as nobody changes anything.
    pub(super) fn survey(&mut self) -> Result<&Survey> {
        let now = self.generation()?;
        if now.is_none() || now != self.seen.generation {
            self.seen = survey::survey(&mut self.connection)?;
        }
        Ok(&self.seen)
    }

    /// Number of the last transaction; `None` when the kernel has no nf_tables.
    pub(super) fn generation(&mut self) -> Result<Option<u32>> {
        survey::generation(&mut self.connection)
    }

    /// Changes who may send into the tunnel; says how our table stands then. As long as nobody else changes anything at
    /// the same moment, that is known without reading it back.
    pub(super) fn change_members(&mut self, update: &Update) -> Result<Option<OwnTable>> {
        let before = self.generation()?;
        own_table::change(&mut self.connection, update)?;
        let alone = before.is_some() && before == self.seen.generation;
        if alone && self.generation()? == before.map(|before| before.wrapping_add(1)) {
            self.seen.generation = before.map(|before| before.wrapping_add(1));
            self.seen.own_table = self.seen.own_table.map(|table| table.after(update));
        }
        Ok(self.survey()?.own_table)
    }

    /// Removes our own table.
    pub(super) fn remove_own_table(&mut self) -> Result<()> {
        let table = Message::new(kind::DEL_TABLE, NFPROTO_INET).text(TABLE_NAME, OWN_TABLE);
        self.connection.commit(vec![table])
    }

    /// Lets the guard's checks hold for another five minutes. A timeout begins anew with its element, so the element is
    /// replaced; adding it first makes the deletion valid when it has expired.
    pub(super) fn renew_guard(&mut self) -> Result<()> {
        let element = |kind| {
            Message::new(kind, NFPROTO_INET)
                .text(TABLE_NAME, OWN_TABLE)
                .text(SET_NAME, guard::GUARDED)
                .nested(SET_ELEMENTS, |list| {
                    list.nested(LIST_ELEMENT, |element| {
                        let protocol = [libc::IPPROTO_UDP as u8];
                        let millis = guard::GUARDED_FOR.as_millis() as u64;
                        let keyed = element.nested(ELEMENT_KEY, |key| key.bytes(DATA_VALUE, &protocol));
                        if kind == kind::NEW_ELEMENT {
                            keyed.number64(ELEMENT_TIMEOUT, millis)
                        } else {
                            keyed
                        }
                    })
                })
        };
        let add = || element(kind::NEW_ELEMENT).create();
        self.connection.commit(vec![add(), element(kind::DEL_ELEMENT), add()])
    }

    /// Removes flannel's table.
    pub(super) fn remove_table(&mut self, family: Family) -> Result<()> {
        let name = nftables::table(family).split(' ').nth(1).unwrap_or_default();
        self.connection.commit(vec![Message::new(kind::DEL_TABLE, number_of(family)).text(TABLE_NAME, name)])
    }

    /// Removes our chains from the tables of iptables over nf_tables, and the rules that call them. No iptables program
    /// is needed for it.
    pub(super) fn remove_chains(&mut self, family: Family) -> Result<()> {
        let message =
            |kind, table: Table| Message::new(kind, number_of(family)).text(TABLE_NAME, table.name());
        let survey = self.survey()?;
        let calls = survey.calls.iter().filter(|(of, ..)| *of == family).map(|(_, table, handle)| {
            message(kind::DEL_RULE, *table).text(RULE_CHAIN, table.caller()).number64(RULE_HANDLE, *handle)
        });
        let chains = survey.chains.iter().filter(|(of, _)| *of == family).flat_map(|(_, table)| {
            let flush = message(kind::DEL_RULE, *table).text(RULE_CHAIN, table.chain());
            [flush, message(kind::DEL_CHAIN, *table).text(CHAIN_NAME, table.chain())]
        });
        let removals = calls.chain(chains).collect();
        self.connection.commit(removals)
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

/// Reads what the guard has met. Apart from `Nft`, because it is read between two passes over the kernel; the connection is
/// kept, because closing one can wait for the kernel's own cleaning.
#[derive(Default)]
pub struct GuardReader(Option<Connection>);

impl GuardReader {
    /// What the guard has dropped or counted; `None` without table, or with one that checks nothing.
    pub fn counters(&mut self) -> Result<Option<GuardCounters>> {
        self.ask(own_table::counters)
    }

    /// Who was refused by the guard last, as far as it is remembered.
    pub fn last_refused(&mut self) -> Result<Option<IpAddr>> {
        self.ask(own_table::last_refused)
    }

    /// A connection that failed is not used again.
    fn ask<T>(&mut self, question: impl Fn(&mut Connection) -> Result<T>) -> Result<T> {
        let mut connection = self.0.take().map_or_else(Connection::open, Ok)?;
        let answer = question(&mut connection)?;
        self.0 = Some(connection);
        Ok(answer)
    }
}
