//! What the kernel is to be made to hold: configuration, own lease, external interface and peers as one value.

use std::net::IpAddr;
use std::sync::Arc;

use encap::{Family, Prefix, SourceCheck};

use super::state::State;
use crate::backend::Devices;
use crate::config::iface::ExternalInterface;
use crate::lease::{ByFamily, fib};
use crate::plan::firewall::{Check, Firewall, Guard, Manager, Masquerade, Senders};
use crate::plan::{Intent, Vtep};

impl State {
    /// Says which interface carries the overlay; its addresses are ours.
    pub(super) fn set_external(&self, external: ExternalInterface) {
        let v4 = [external.addr, external.public_ip].into_iter().flatten().map(IpAddr::V4);
        let v6 = [external.addr6, external.public_ip6].into_iter().flatten().map(IpAddr::V6);
        let own: Vec<IpAddr> = v4.chain(v6).collect();
        self.decide_checksum(&external);
        if self.external.replace(Some(external)).is_none() {
            self.vtep.set(self.vteps());
        }
        let change = self.spine.set_own_addresses(&own);
        self.adopt(&change);
        self.publish_goal();
    }

    /// Our own Node is read once, at the start: afterwards the device that is in force decides, and whoever writes
    /// something else there is corrected.
    pub(super) fn vteps(&self) -> ByFamily<Vtep> {
        let facts = self.spine.own_facts();
        let published = facts.as_ref().map(|facts| facts.annotations.vtep_macs()).unwrap_or_default();
        let uid = facts.as_ref().map(|facts| facts.uid.as_str()).filter(|uid| !uid.is_empty());
        ByFamily::of(|family| {
            let of = |device: String| Vtep {
                published: *published.get(family),
                derived: Vtep::derive(uid.unwrap_or(&self.node), &device),
            };
            self.backend.vtep_name(family).map(of).unwrap_or_default()
        })
    }

    pub(super) fn publish_goal(&self) {
        let Some(intent) = self.intent() else { return };
        self.goals.send_if_modified(|goal| {
            let modified = goal.as_deref() != Some(&intent);
            if modified {
                *goal = Some(Arc::new(intent));
            }
            modified
        });
    }

    fn intent(&self) -> Option<Intent> {
        let (own, external) = (self.spine.own_prefixes(), self.external.borrow());
        let external = external.as_ref().filter(|_| !own.is_empty())?;
        // What goes through this process is looked up there: to the kernel all peers are one device.
        let peers =
            if self.backend.kernel_knows_peers() { self.spine.snapshot().peers.clone() } else { Vec::new() };
        Some(Intent {
            backend: self.backend,
            external: external.index,
            external_name: external.name.clone(),
            local: ByFamily { v4: external.addr.map(IpAddr::V4), v6: external.addr6.map(IpAddr::V6) },
            networks: self.conf.networks(),
            former: self.former.clone(),
            firewall: self.firewall(&own),
            own_prefixes: own,
            tx_checksum: self.tx_checksum.get(),
            vtep: self.vtep.get(),
            peers,
            blackhole: self.args.ip_blackhole_route,
        })
    }

    fn firewall(&self, own: &[Prefix]) -> Firewall {
        let manager = if self.conf.enable_nftables { Manager::Nftables } else { Manager::Iptables };
        let masquerade = Masquerade { fully_random: !self.args.ip_masq_fully_random_disable };
        let masquerade = self.args.ip_masq.then_some(masquerade);
        let networks = self.conf.networks();
        let rules = Firewall::new(manager, &networks, own, masquerade, self.args.iptables_forward_rules);
        Firewall { guard: self.guard(), ..rules }
    }

    /// The doors of the tunnel. Where this process unwraps packets it checks them itself.
    fn guard(&self) -> Option<Guard> {
        let check = |vni| Check {
            vni,
            networks: self.conf.networks(),
            enforce: self.conf.source_check == SourceCheck::Enforce,
        };
        let door = self.backend.door()?;
        let snapshot = self.spine.snapshot();
        let senders =
            fib::senders(&snapshot).map(|(addr, lease)| (addr, lease.prefixes().copied().collect()));
        let check = door.kernel_checks.filter(|_| self.conf.source_check != SourceCheck::Off).map(check);
        Some(Guard { port: door.port, senders: Senders::new(senders), untracked: true, check })
    }

    /// The device that packets for peers leave by, for people.
    pub(super) fn tunnel_name(&self) -> String {
        let families: Vec<Family> = self.conf.networks().iter().map(|net| Family::of(net.addr())).collect();
        match self.backend.devices(&families) {
            Devices::Tun { name } => name,
            Devices::Vxlan { names, .. } => {
                names.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" and ")
            }
            Devices::None => {
                self.external.borrow().as_ref().map(|external| external.name.clone()).unwrap_or_default()
            }
        }
    }
}
