//! What is known of this machine's nftables: the tables and chains that matter here, read once and kept by what the
//! kernel announces. After somebody's change only the rules of the chains that it touched are read again; the
//! thousands of chains of a proxy are never asked for a second time.

use std::collections::{BTreeMap, BTreeSet};

use encap::Family;
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableMessage,
};

use super::message::{INET, IPV4, IPV6, message};
use super::own_table::{self, Members};
use super::rule::{CHAIN_NAME, Chain, NF_INET_FORWARD, NF_INET_LOCAL_IN, RULE_CHAIN, Rule, TABLE_NAME};
use crate::adapter::netlink::socket::Socket;
use crate::adapter::netlink::wire::{Error, Nfnetlink, Part, attribute, number, parts, text};
use crate::plan::firewall::iptables::Table;
use crate::tables::TableName;

/// What the numbers of nftables' messages begin with.
const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
/// `NFTA_GEN_ID`.
pub(super) const GENERATION: u16 = 1;
/// `NFTA_SET_NAME` and `NFTA_SET_ELEM_LIST_SET`.
const SET_NAME: u16 = 2;

/// Message types, from `enum nf_tables_msg_types`.
mod kind {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DEL_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const DEL_CHAIN: u16 = 5;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const DEL_RULE: u16 = 8;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const DEL_SET: u16 = 11;
    pub(super) const NEW_ELEMENT: u16 = 12;
    pub(super) const DEL_ELEMENT: u16 = 14;
    pub(super) const NEW_GENERATION: u16 = 15;
}

/// What a table or a chain is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A chain of a table of ours.
    Own(TableName),
    /// Our chain in a table of iptables.
    Ours(Family, Table),
    /// The chain of iptables that calls ours.
    Caller(Family, Table),
    /// Somebody else's chain that packets to this machine, or through it, pass.
    Foreign,
}

/// A chain that matters.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) chain: Chain,
    pub(super) role: Role,
    /// `None` while they are to be read.
    rules: Option<Vec<Rule>>,
}

impl Kept {
    pub(super) fn rules(&self) -> &[Rule] {
        self.rules.as_deref().unwrap_or_default()
    }

    /// Somebody else's chain that drops by its policy refuses packets whatever its rules say.
    fn has_to_be_read(&self) -> bool {
        self.rules.is_none() && !(self.role == Role::Foreign && self.chain.drops)
    }
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    /// The tables that are ours where they are there.
    own: &'static [TableName],
    /// Tables and chains have been read, and what was announced since is in.
    complete: bool,
    /// The last transaction of which all is in.
    generation: Option<u32>,
    /// Tables of ours and of iptables, by family and name.
    pub(super) tables: BTreeSet<(u8, String)>,
    /// Chains that matter, by family, table and name.
    pub(super) chains: BTreeMap<(u8, String, String), Kept>,
    /// What is in the sets of our tables, of such as have been read.
    pub(super) members: BTreeMap<TableName, Members>,
    /// Kubernetes has chains in iptables over nf_tables. When it takes them away is not followed.
    pub(super) kubernetes: bool,
}

impl Ruleset {
    /// One in which these tables are ours.
    pub(super) fn of(own: &'static [TableName]) -> Self {
        Self { own, ..Self::default() }
    }

    /// Everything is to be read anew.
    pub(super) fn forget(&mut self) {
        *self = Self::of(self.own);
    }

    /// Which table of ours this is.
    pub(super) fn own(&self, family: u8, table: &str) -> Option<TableName> {
        self.own.iter().copied().find(|own| own.family.number() == family && own.name == table)
    }

    /// Those of our tables that are there.
    pub(super) fn own_tables(&self) -> impl Iterator<Item = TableName> {
        self.tables.iter().filter_map(|(family, name)| self.own(*family, name))
    }

    /// Whether a transaction comes after all that is known.
    pub(super) fn has_to_hear_of(&self, transaction: u32) -> bool {
        self.generation.is_some_and(|known| transaction.wrapping_sub(known).cast_signed() > 0)
    }

    /// Takes in a datagram of announcements; whether anything in it matters here.
    pub(super) fn hear(&mut self, datagram: &[u8]) -> bool {
        let mut news = false;
        for part in parts(datagram) {
            let Ok(part) = part else {
                self.forget();
                return true;
            };
            news |= self.take(&part);
        }
        news
    }

    fn take(&mut self, part: &Part<'_>) -> bool {
        let get = |kind| attribute(part.attributes(), kind);
        let Some(kind) = part.kind.checked_sub(NFTABLES) else { return false };
        if kind == kind::NEW_GENERATION {
            // What was announced before the look is heard after it.
            if let Some(id) = get(GENERATION).and_then(number).filter(|id| self.has_to_hear_of(*id)) {
                self.generation = Some(id);
            }
            return false;
        }
        let Some(table) = get(TABLE_NAME).and_then(text) else { return false };
        let family = part.family();
        match kind {
            kind::NEW_TABLE => self.add_table(family, table),
            kind::DEL_TABLE => self.remove_table(family, table),
            kind::NEW_CHAIN => Chain::read(part).is_some_and(|chain| self.add_chain(chain)),
            kind::DEL_CHAIN => get(CHAIN_NAME)
                .and_then(text)
                .is_some_and(|chain| self.chains.remove(&key(family, table, chain)).is_some()),
            kind::NEW_RULE..=kind::DEL_RULE => {
                let chain = get(RULE_CHAIN).and_then(text).unwrap_or_default();
                let kept = self.chains.get_mut(&key(family, table, chain));
                kept.map(|kept| kept.rules = None).is_some()
            }
            _ => {
                let Some(own) = self.own(family, table) else { return false };
                let set = get(SET_NAME).and_then(text).unwrap_or_default();
                let anew = match kind {
                    kind::NEW_SET..=kind::DEL_SET => true,
                    kind::NEW_ELEMENT..=kind::DEL_ELEMENT => {
                        self.members.get(&own).is_some_and(|members| members.sets.contains(set))
                    }
                    _ => false,
                };
                if anew {
                    self.members.remove(&own);
                }
                true
            }
        }
    }

    fn add_table(&mut self, family: u8, table: &str) -> bool {
        let matters = self.own(family, table).is_some() || iptables_table(family, table).is_some();
        if matters {
            self.tables.insert((family, table.to_owned()));
        }
        matters
    }

    fn remove_table(&mut self, family: u8, table: &str) -> bool {
        let chains = self.chains.len();
        self.chains.retain(|(of, name, _), _| *of != family || name != table);
        if let Some(own) = self.own(family, table) {
            self.members.remove(&own);
        }
        self.tables.remove(&(family, table.to_owned())) || self.chains.len() != chains
    }

    fn add_chain(&mut self, chain: Chain) -> bool {
        self.kubernetes |= chain.family == IPV4 && chain.name.starts_with("KUBE-");
        // A chain that has got another name.
        let renamed = |kept: &Kept| {
            let known = &kept.chain;
            known.handle == chain.handle
                && known.name != chain.name
                && (known.family, &known.table) == (chain.family, &chain.table)
        };
        let before = self.chains.len();
        self.chains.retain(|_, kept| !renamed(kept));
        let lost = self.chains.len() != before;
        let key = key(chain.family, &chain.table, &chain.name);
        let Some(role) = self.role(&chain) else { return self.chains.remove(&key).is_some() || lost };
        // A chain that was there has another policy now, and its rules.
        let rules = self.chains.remove(&key).and_then(|kept| kept.rules);
        self.chains.insert(key, Kept { chain, role, rules });
        true
    }

    /// Reads what is not known.
    pub(super) async fn read(
        &mut self,
        socket: &mut Socket<Nfnetlink>,
        generation: u32,
    ) -> Result<(), Error> {
        if !self.complete {
            self.forget();
            self.generation = Some(generation);
            let all = message(0, NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() }));
            let tables = socket.dump(&all, |part| {
                let name = attribute(part.attributes(), TABLE_NAME).and_then(text)?;
                Some((part.family(), name.to_owned()))
            });
            for (family, table) in tables.await? {
                self.add_table(family, &table);
            }
            // The kernel sends those of all tables or of none (`nf_tables_dump_chains`): it is asked once.
            let all = message(0, NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }));
            socket
                .dump(&all, |part| {
                    Chain::read(part).map(|chain| self.add_chain(chain));
                    None::<()>
                })
                .await?;
            self.complete = true;
        }
        for kept in self.chains.values_mut().filter(|kept| kept.has_to_be_read()) {
            kept.rules = Some(rules(socket, &kept.chain).await?);
        }
        let unread = self.own_tables().filter(|own| !self.members.contains_key(own));
        for own in unread.collect::<Vec<_>>() {
            self.members.insert(own, own_table::members(socket, own).await?);
        }
        Ok(())
    }

    fn role(&self, chain: &Chain) -> Option<Role> {
        let (family, table, name) = (chain.family, chain.table.as_str(), chain.name.as_str());
        if let Some(own) = self.own(family, table) {
            return Some(Role::Own(own));
        }
        match iptables_table(family, table) {
            Some((family, table)) if name == table.chain() => return Some(Role::Ours(family, table)),
            Some((family, table)) if name == table.caller() => return Some(Role::Caller(family, table)),
            _ => {}
        }
        let passed = matches!(chain.hook, Some(NF_INET_FORWARD | NF_INET_LOCAL_IN));
        (passed && matches!(family, INET | IPV4 | IPV6)).then_some(Role::Foreign)
    }
}

fn key(family: u8, table: &str, chain: &str) -> (u8, String, String) {
    (family, table.to_owned(), chain.to_owned())
}

/// The rules of one chain, in order.
async fn rules(socket: &mut Socket<Nfnetlink>, chain: &Chain) -> Result<Vec<Rule>, Error> {
    let attributes =
        vec![RuleAttribute::Table(chain.table.clone()), RuleAttribute::Chain(chain.name.clone())];
    let request = message(chain.family, NfTablesMessage::GetRule(RuleMessage { attributes }));
    let rules = socket.dump(&request, |part| {
        // Kernels that do not know how to select send everything.
        let is = |kind, name: &str| attribute(part.attributes(), kind).and_then(text) == Some(name);
        (is(TABLE_NAME, &chain.table) && is(RULE_CHAIN, &chain.name)).then(|| Rule::read(part))
    });
    rules.await
}

/// Which of iptables' tables this is, and whose packets go through it.
pub(super) fn iptables_table(family: u8, name: &str) -> Option<(Family, Table)> {
    let family = ip_family(family)?;
    Table::ALL.into_iter().find(|table| table.name() == name).map(|table| (family, table))
}

pub(super) fn ip_family(family: u8) -> Option<Family> {
    match family {
        IPV4 => Some(Family::V4),
        IPV6 => Some(Family::V6),
        _ => None,
    }
}
