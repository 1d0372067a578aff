//! One node in the index: what it asks for and what it holds, family by family.

use std::sync::Arc;

use encap::Family;

use crate::lease::check::{Candidate, Fault};
use crate::lease::{ByFamily, Lease, NodeFacts};

#[derive(Debug)]
pub(super) struct Node {
    pub(super) facts: Arc<NodeFacts>,
    pub(super) standing: Standing,
    pub(super) sides: ByFamily<Side>,
    /// What peers hold, in the form that is published. `None` for our own node, to which nothing is sent.
    pub(super) lease: Option<Arc<Lease>>,
}

/// How the node as a whole is judged.
#[derive(Debug)]
pub(super) enum Standing {
    /// Each family by itself.
    Peer,
    /// Nothing that could be granted. It keeps what it holds.
    Bad(Fault),
    /// Nothing that could work: it runs this other backend. It says itself that nobody listens there any more, so
    /// it holds nothing.
    Mismatch(String),
    /// It does not run flanneld. One that did keeps what it holds, as its annotation may have been removed by mistake,
    /// and flannel does not put it back.
    Unmanaged,
}

/// One family of a node.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) asks: Asks,
    pub(super) held: Option<Arc<Candidate>>,
}

/// What one family of a node asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing of its own: the node has no pods of this family, or [`Standing`] says it all.
    #[default]
    Nothing,
    /// What it holds.
    Held,
    /// Something it cannot have while others hold a part of it.
    Waiting(Arc<Candidate>),
    /// Nothing that could be granted. It keeps what it holds.
    Bad(Fault),
}

/// What a node holds.
pub(super) type Holding = ByFamily<Option<Arc<Candidate>>>;

/// Sorts those who wait: no date last, then date, then name, then family.
pub(super) type Seniority = (bool, String, Arc<str>, Family);

impl Node {
    pub(super) fn new(facts: NodeFacts) -> Self {
        Self { facts: Arc::new(facts), standing: Standing::Peer, sides: ByFamily::default(), lease: None }
    }

    pub(super) fn holding(&self) -> Holding {
        ByFamily::of(|family| self.sides.get(family).held.clone())
    }

    /// Whether both families are asked for.
    pub(super) fn has_both(&self) -> bool {
        self.sides.iter().all(|(_, side)| side.asks != Asks::Nothing)
    }

    pub(super) fn holds_anything(&self) -> bool {
        self.sides.iter().any(|(_, side)| side.held.is_some())
    }
}

pub(super) fn seniority(name: &Arc<str>, facts: &NodeFacts, family: Family) -> Seniority {
    (facts.created.is_none(), facts.created.clone().unwrap_or_default(), Arc::clone(name), family)
}
