//! Rules of others that keep ours from being reached.
//!
//! They are not ours to move: rules of two programs that each want to be first would never come to rest. They are
//! named instead, and a FORWARD policy of DROP in iptables is opened from within.

use std::collections::BTreeMap;

use encap::Family;

use super::{Firewall, Home, Manager, Rules, Variant};

/// What others have put in the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// In the order they were found.
    pub obstacles: Vec<Obstacle>,
    /// A chain that refuses packets to this machine unless it knows them, by name.
    pub refuses_input: Option<String>,
}

/// Where in the packet path a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets for others.
    Forward,
    /// Packets about to leave, to be masqueraded.
    Postrouting,
}

/// A chain of somebody else that lets no packet get as far as our rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The chain, such as `ip filter FORWARD`.
    pub chain: String,
    /// Where it hangs.
    pub hook: Hook,
    /// Address family of the packets; `None` for both.
    pub family: Option<Family>,
    /// It is the built-in chain of this iptables.
    pub variant: Option<Variant>,
    /// A rule without condition, before our jump or at the chain's end, in words such as `DROP`; `None` when it is
    /// the chain's policy that drops.
    pub rule: Option<&'static str>,
}

impl Obstacle {
    /// The family whose packets pass when our accepting chain is called from this one.
    pub(super) fn opened_by(&self) -> Option<Family> {
        self.family.filter(|_| self.variant.is_some() && self.hook == Hook::Forward && self.rule.is_none())
    }

    /// What is the matter, and what to do about it; `None` when it is nothing to us.
    pub(super) fn trouble(&self, want: &Firewall, homes: &BTreeMap<Home, Rules>) -> Option<String> {
        let concerned = |rules: &&Rules| {
            self.family.is_none_or(|family| family == rules.family())
                && match self.hook {
                    Hook::Forward => true,
                    Hook::Postrouting => rules.masquerade.is_some(),
                }
        };
        let networks: Vec<String> =
            want.rules.iter().filter(concerned).map(|rules| rules.cluster.to_string()).collect();
        if networks.is_empty() {
            return None;
        }
        let networks = networks.join(" and ");
        let chain = &self.chain;
        let opened = |variant| {
            let ours = |family| homes.get(&Home(variant, family)).is_some_and(|rules| rules.forward);
            self.opened_by().is_some_and(ours)
        };
        match (self.hook, self.rule) {
            (Hook::Forward, None) if self.variant.is_some_and(opened) => None,
            (Hook::Forward, None) => Some(format!(
                "chain {chain} drops forwarded packets unless a rule of its own accepts them (FORWARD policy DROP): \
                 if pods cannot reach each other, accept {networks} there"
            )),
            (Hook::Forward, Some(rule)) => Some(format!(
                "a rule in chain {chain} refuses every forwarded packet that comes to it ({rule}), before any rule \
                 for pods: if pods cannot reach each other, accept {networks} above it"
            )),
            (Hook::Postrouting, rule) => {
                // A table of our own has its own place in the packet path, and is asked whatever this one says.
                (want.manager == Manager::Iptables).then(|| {
                    format!(
                        "a rule in chain {chain} takes every packet ({}) before the jump to FLANNEL-POSTRTG: traffic \
                         from {networks} to other networks is not masqueraded; put a condition on that rule, or \
                         move it behind the jump",
                        rule.unwrap_or("policy")
                    )
                })
            }
        }
    }
}
