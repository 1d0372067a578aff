//! Hears about every change of nftables on this machine, iptables over nf_tables included.

use anyhow::Result;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Nft;
use super::survey::{CHAIN_HOOK, CHAIN_NAME, RULE_CHAIN, Survey, TABLE_NAME, concerns};
use super::wire::{self, kind, messages, text};

const NFNLGRP_NFTABLES: u32 = 7;

/// A subscription to nftables' events.
pub(in super::super) struct FirewallEvents {
    socket: netlink_sys::TokioSocket,
}

impl FirewallEvents {
    /// Subscribes.
    pub(in super::super) fn subscribe() -> Result<Self> {
        use netlink_sys::AsyncSocket as _;
        let mut socket = netlink_sys::TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket })
    }

    /// Waits for a change to what is ours, to what calls it, or to a chain that packets pass. kube-proxy's work on
    /// its own chains wakes nobody. A lost event counts as a change.
    pub(in super::super) async fn changed(&mut self, nft: &Nft) {
        use netlink_sys::AsyncSocketExt as _;
        loop {
            match self.socket.recv_from_full().await {
                Ok((buffer, _)) if messages(&buffer).any(|part| matters(&part, &nft.seen)) => return,
                Ok(_) => {}
                // ENOBUFS: the kernel could not keep up with telling us.
                Err(_) => return,
            }
        }
    }
}

fn matters(part: &wire::Part<'_>, seen: &Survey) -> bool {
    let attributes = part.attributes();
    let get = |kind| wire::attribute(attributes, kind).and_then(text);
    let Some(table) = get(TABLE_NAME) else { return false };
    // The kernel says of a new chain where it hangs, and of one that goes its name only.
    let others = |chain: Option<&str>| {
        seen.others
            .iter()
            .any(|(f, t, c)| *f == part.family() && t == table && chain.is_none_or(|chain| chain == c))
    };
    let concerns = |chain| concerns(part.family(), table, chain) || others(chain);
    match part.kind & 0xff {
        kind::NEW_TABLE..=kind::DEL_TABLE => concerns(None),
        kind::NEW_CHAIN..=kind::DEL_CHAIN => {
            wire::attribute(attributes, CHAIN_HOOK).is_some() || concerns(get(CHAIN_NAME))
        }
        kind::NEW_RULE..=kind::DEL_RULE => concerns(get(RULE_CHAIN)),
        // Sets and their elements.
        _ => concerns(Some("")),
    }
}
