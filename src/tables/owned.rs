//! Tables that are ours: what is wanted beside what is held, and the steps in between, however many there are.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Element, ElementChange, NatFlags, Set, Statement, Table, TableName};

/// A change of more elements than this is no faster than writing the table anew, and does not fit into one transaction
/// of netlink's.
const MOST: usize = 1000;

/// A table that should be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTable {
    /// What it should say.
    pub table: Arc<Table>,
    /// Packets flow without it.
    pub optional: bool,
    /// What its elements say, for people.
    pub elements: &'static str,
}

/// How a table under a name of ours stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeldTable {
    /// There is one, and it is not what we last put there.
    Changed,
    /// Exactly this is in force.
    InForce(Arc<Table>),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableOp {
    /// Put it in force in one transaction, whatever is there.
    Put(OwnTable),
    /// Change elements of its sets, and nothing else of it.
    ChangeElements {
        /// What is in force.
        before: Arc<Table>,
        /// What is to be.
        after: OwnTable,
    },
    /// Remove what is there.
    Drop(TableName),
}

impl TableOp {
    /// Packets flow without it.
    pub const fn is_optional(&self) -> bool {
        match self {
            Self::Put(table) | Self::ChangeElements { after: table, .. } => table.optional,
            Self::Drop(_) => false,
        }
    }
}

impl fmt::Display for TableOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(own) => write!(f, "put nftables table {} in force", own.table.name),
            Self::ChangeElements { after: OwnTable { table, elements, .. }, .. } => {
                write!(f, "update {elements} (nftables table {})", table.name)
            }
            Self::Drop(name) => write!(f, "remove nftables table {name}"),
        }
    }
}

/// Steps that bring what is wanted in force, in the order of `want`, and steps that remove what is not wanted.
pub fn diff(want: &[OwnTable], held: &BTreeMap<TableName, HeldTable>) -> (Vec<TableOp>, Vec<TableOp>) {
    let put = |own: &OwnTable| match held.get(&own.table.name) {
        Some(HeldTable::InForce(held)) if *held == own.table => None,
        Some(HeldTable::InForce(before)) if before.change_to(&own.table).is_some() => {
            Some(TableOp::ChangeElements { before: before.clone(), after: own.clone() })
        }
        _ => Some(TableOp::Put(own.clone())),
    };
    let unwanted = held.keys().filter(|name| want.iter().all(|own| own.table.name != **name));
    (want.iter().filter_map(put).collect(), unwanted.copied().map(TableOp::Drop).collect())
}

impl Table {
    /// The way from this to `after`; `None` when more differs than elements that come and go, or so many of them that
    /// the table had better be written anew.
    pub fn change_to(&self, after: &Self) -> Option<ElementChange> {
        let but_sets = |table: &Self| (table.name, table.comment);
        let same = but_sets(self) == but_sets(after)
            && self.counters == after.counters
            && self.chains == after.chains
            && self.sets.len() == after.sets.len();
        if !same {
            return None;
        }
        let mut change = ElementChange { table: self.name, removed: Vec::new(), added: Vec::new() };
        for (old, new) in self.sets.iter().zip(&after.sets) {
            if old == new {
                continue;
            }
            if !old.changes() || !old.is_like(new) {
                return None;
            }
            differing(&old.elements, &new.elements, |element, comes| {
                let list = if comes { &mut change.added } else { &mut change.removed };
                list.push((new.name.clone(), element.clone()));
                change.removed.len() + change.added.len() <= MOST
            })?;
        }
        Some(change)
    }

    /// Elements that go by themselves unless somebody renews them, each with its set.
    pub fn lasting(&self) -> impl Iterator<Item = (&str, &Element)> {
        let all =
            self.sets.iter().flat_map(|set| set.elements.iter().map(|element| (set.name.as_str(), element)));
        all.filter(|(_, element)| element.timeout.is_some())
    }

    /// Whether ports are chosen fully at random somewhere in it.
    pub fn is_fully_random(&self) -> bool {
        let mut statements =
            self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
        statements.any(|statement| flags(statement).is_some_and(|flags| flags.fully_random))
    }

    /// The same, where ports are chosen as the kernel does by default instead.
    #[must_use]
    pub fn without_full_randomness(mut self) -> Self {
        let rules = self.chains.iter_mut().flat_map(|chain| &mut chain.rules);
        for statement in rules.flat_map(|rule| &mut rule.statements) {
            if let Statement::Masquerade(flags) | Statement::Nat { flags, .. } = statement {
                flags.fully_random = false;
            }
        }
        self
    }
}

fn flags(statement: &Statement) -> Option<&NatFlags> {
    match statement {
        Statement::Masquerade(flags) | Statement::Nat { flags, .. } => Some(flags),
        _ => None,
    }
}

impl Set {
    /// Whether its elements come and go by our hand, one by one.
    pub const fn changes(&self) -> bool {
        !(self.interval || self.constant || self.dynamic || self.timeouts)
    }

    /// Whether only elements differ.
    fn is_like(&self, other: &Self) -> bool {
        let shape = |set: &Self| {
            (set.interval, set.constant, set.dynamic, set.timeouts, set.timeout, set.size, set.comment)
        };
        (&self.name, &self.key, &self.to) == (&other.name, &other.key, &other.to)
            && shape(self) == shape(other)
    }
}

/// Calls `tell` for each element that only one of two sorted lists has, with whether it comes, until that says stop.
fn differing(old: &[Element], new: &[Element], mut tell: impl FnMut(&Element, bool) -> bool) -> Option<()> {
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return Some(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.cmp(new),
        };
        let (gone, come) = (olds.next_if(|_| order.is_le()), news.next_if(|_| order.is_ge()));
        let goes_on = match (gone, come) {
            (Some(gone), None) => tell(gone, false),
            (None, Some(come)) => tell(come, true),
            _ => true,
        };
        goes_on.then_some(())?;
    }
}
