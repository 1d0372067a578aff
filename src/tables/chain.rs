//! Chains, and where they hang in the path of packets.

use super::Rule;

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name in the table.
    pub name: String,
    /// For people.
    pub comment: Option<&'static str>,
    /// Where packets enter it; `None` for one that only other chains call.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain that other chains call.
    pub fn regular(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), comment: None, base: None, rules }
    }

    /// A chain that packets enter at `base`.
    pub fn base(name: impl Into<String>, base: Base, rules: Vec<Rule>) -> Self {
        Self { base: Some(base), ..Self::regular(name, rules) }
    }

    /// The same with a comment.
    #[must_use]
    pub fn comment(self, comment: &'static str) -> Self {
        Self { comment: Some(comment), ..self }
    }
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: Kind,
    /// At which point.
    pub hook: Hook,
    /// Before which others: the lower, the earlier. See [`priority`].
    pub priority: i32,
    /// What becomes of a packet that no rule decides about.
    pub policy: Policy,
}

impl Base {
    /// A chain that filters, and accepts what no rule decides about.
    pub const fn filter(hook: Hook, priority: i32) -> Self {
        Self { kind: Kind::Filter, hook, priority, policy: Policy::Accept }
    }

    /// A chain that translates addresses: only the first packet of a connection comes to it.
    pub const fn nat(hook: Hook, priority: i32) -> Self {
        Self { kind: Kind::Nat, hook, priority, policy: Policy::Accept }
    }
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Let packets pass or not.
    Filter,
    /// Translate addresses.
    Nat,
    /// Have packets of this machine routed anew.
    Route,
}

impl Kind {
    /// What nft and the kernel call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// A point in the path of packets, with its number `NF_INET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are netfilter's")]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

impl Hook {
    /// What nft calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// What becomes of a packet that no rule decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It is lost.
    Drop = 0,
    /// It passes.
    Accept = 1,
}

impl Policy {
    /// What nft calls it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Accept => "accept",
        }
    }
}

/// The usual priorities of base chains, by their names in nft (`enum nf_ip_hook_priorities`).
#[expect(missing_docs, reason = "the names are netfilter's")]
pub mod priority {
    pub const RAW: i32 = -300;
    pub const MANGLE: i32 = -150;
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SECURITY: i32 = 50;
    pub const SRCNAT: i32 = 100;
}
