//! What the kernel is to be made to hold: setup, own lease, external interface and peers as one value.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use encap::{Prefix, SourceCheck};
use tokio::sync::watch;

use super::send_news;
use super::setup::Setup;
use super::spine::Spine;
use super::underlay::Underlay;
use crate::lease::{ByFamily, Snapshot, fib};
use crate::plan::Intent;
use crate::plan::firewall::{Check, Firewall, Guard, Manager, Masquerade, Senders};

/// The goal of the loop that programs the kernel.
pub(super) struct Goal {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    wanted: watch::Sender<Option<Arc<Intent>>>,
}

impl Goal {
    pub(super) fn new(setup: Rc<Setup>, spine: Rc<Spine>, underlay: Rc<Underlay>) -> Self {
        Self { setup, spine, underlay, wanted: watch::Sender::new(None) }
    }

    /// Hears of each goal that is another than the one before.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<Intent>>> {
        self.wanted.subscribe()
    }

    /// Brings it up to what is known now. There is none before there is an own lease and an external interface.
    pub(super) fn publish(&self) {
        if let Some(intent) = self.intent() {
            send_news(&self.wanted, Some(Arc::new(intent)));
        }
    }

    /// The same goal once more: the loop takes that as the wish that it looks at everything.
    pub(super) fn look_again(&self) {
        self.wanted.send_modify(|_| {});
    }

    fn intent(&self) -> Option<Intent> {
        let Setup { args, conf, backend, former, .. } = &*self.setup;
        let (own, below) = (self.spine.own_prefixes(), self.underlay.below()?);
        if own.is_empty() {
            return None;
        }
        let (map, external) = (self.spine.snapshot(), &below.external);
        Some(Intent {
            backend: *backend,
            external: external.index,
            external_name: external.name.clone(),
            narrowest: external.narrowest,
            local: ByFamily { v4: external.addr.map(IpAddr::V4), v6: external.addr6.map(IpAddr::V6) },
            networks: conf.networks(),
            former: former.clone(),
            firewall: firewall(&self.setup, &map, &own),
            own_prefixes: own,
            tx_checksum: below.tx_checksum,
            vtep: below.vtep,
            // What goes through this process is looked up there: to the kernel all peers are one device.
            peers: if backend.kernel_knows_peers() { map.peers.clone() } else { Vec::new() },
            blackhole: args.ip_blackhole_route,
        })
    }
}

fn firewall(setup: &Setup, map: &Snapshot, own: &[Prefix]) -> Firewall {
    let Setup { args, conf, .. } = setup;
    let manager = if conf.enable_nftables { Manager::Nftables } else { Manager::Iptables };
    let masquerade = Masquerade { fully_random: !args.ip_masq_fully_random_disable };
    let masquerade = args.ip_masq.then_some(masquerade);
    let rules = Firewall::new(manager, &conf.networks(), own, masquerade, args.iptables_forward_rules);
    Firewall { guard: guard(setup, map), ..rules }
}

/// The doors of the tunnel. Where this process unwraps packets it checks them itself.
fn guard(setup: &Setup, map: &Snapshot) -> Option<Guard> {
    let conf = &setup.conf;
    let check =
        |vni| Check { vni, networks: conf.networks(), enforce: conf.source_check == SourceCheck::Enforce };
    let door = setup.backend.door()?;
    let senders = fib::senders(map).map(|(addr, lease)| (addr, lease.prefixes().copied().collect()));
    let check = door.kernel_checks.filter(|_| conf.source_check != SourceCheck::Off).map(check);
    Some(Guard { port: door.port, senders: Senders::new(senders), untracked: true, check })
}
