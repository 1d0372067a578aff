//! Gathers what decides which interface carries the overlay, and keeps in mind for how long it has been missing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use encap::{Family, Prefix};
use tokio::time::Instant;

use super::concerns::Concerns;
use super::parts::Parts;
use super::setup::Setup;
use super::spine::Spine;
use crate::adapter::interfaces::{self, Changes};
use crate::backend::Devices;
use crate::config::iface::{Decision, ExternalInterface, Flags, OwnNode, Situation, decide};
use crate::lease::{NodeFacts, Snapshot};
use crate::report::Code;

/// Of more peers than this, one of each link is asked for its way.
const MOST_ASKED: usize = 256;
/// What is waited for is looked for again although nobody announced a change.
const RETRY: Duration = Duration::from_secs(5);

/// The search for the external interface.
pub(super) struct Search {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    concerns: Concerns,
    /// What a flannel had published when this daemon began: an upgrade stays on that interface.
    evidence: Option<Vec<IpAddr>>,
    /// Since when what should be is missing.
    missing: Option<Instant>,
}

impl Search {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            setup: parts.setup.clone(),
            spine: parts.spine.clone(),
            concerns: parts.concerns.clone(),
            evidence: None,
            missing: None,
        }
    }

    /// Whether the command line says which one.
    pub(super) fn is_asked_for(&self) -> bool {
        let args = &self.setup.args;
        !args.iface.is_empty() || !args.iface_regex.is_empty() || args.iface_can_reach.is_some()
    }

    /// Fails if the command line asks for what is not there.
    pub(super) async fn check_flags(&mut self) -> Result<()> {
        match self.look(None).await? {
            Decision::Refused(error) => Err(error.into()),
            Decision::Use { .. } | Decision::Wait { .. } => Ok(()),
        }
    }

    /// Waits for the first one. Meanwhile people are told what is missing.
    pub(super) async fn first(&mut self, changes: &mut Changes) -> Result<ExternalInterface> {
        loop {
            let pause = match self.look(None).await? {
                Decision::Use { external, remark } => {
                    self.concerns.clear(Code::NoAddress);
                    self.concerns.set(Code::AddressInDoubt, remark);
                    return Ok(external);
                }
                Decision::Refused(error) => bail!(error),
                Decision::Wait { text, at_most } => {
                    self.concerns.set(Code::NoAddress, Some(format!("waiting for an address: {text}")));
                    self.rest(at_most)
                }
            };
            let _ = tokio::time::timeout(pause, changes.next()).await;
        }
    }

    /// How long to rest before the next look, if nothing is announced.
    pub(super) fn rest(&self, at_most: Option<Duration>) -> Duration {
        let gone = self.missing.map_or(Duration::ZERO, |since| since.elapsed());
        at_most.map_or(RETRY, |time| time.saturating_sub(gone)).clamp(Duration::from_millis(50), RETRY)
    }

    /// Decides for the machine as it is now; `now` is what is in use.
    pub(super) async fn look(&mut self, now: Option<&ExternalInterface>) -> Result<Decision> {
        let (setup, snapshot) = (self.setup.clone(), self.spine.snapshot());
        let args = &setup.args;
        let node = snapshot.own_facts.as_deref().map(|facts| self.own_node(facts));
        let interfaces = interfaces::list().await?;
        let mut ways = interfaces::ways(peers(&snapshot).into_iter()).await?;
        let ours = tunnels(&setup);
        ways.retain(|way| !interfaces.iter().any(|found| found.index == *way && ours.contains(&found.name)));
        let can_reach = match args.iface_can_reach {
            Some(address) => Some((address, interfaces::reaching(address).await?)),
            None => None,
        };
        let decision = decide(&Situation {
            flags: Flags {
                iface: &args.iface,
                iface_regex: &args.iface_regex,
                can_reach,
                public_ip: args.public_ip,
                public_ip6: args.public_ipv6,
            },
            node: node.as_ref(),
            interfaces: &interfaces,
            default_routes: &interfaces::default_routes().await?,
            ways: &ways,
            now,
            missing_for: self.missing.map_or(Duration::ZERO, |since| since.elapsed()),
        });
        match decision {
            Decision::Use { .. } => self.missing = None,
            Decision::Wait { .. } | Decision::Refused(_) => {
                self.missing.get_or_insert_with(Instant::now);
            }
        }
        Ok(decision)
    }

    fn own_node(&mut self, facts: &NodeFacts) -> OwnNode {
        let said = &facts.annotations;
        let text = |value: &Option<String>| value.as_deref().map(str::trim).unwrap_or_default().to_owned();
        let address = |value: &Option<String>| text(value).parse::<IpAddr>().ok();
        let by_loden = said.loden.is_some();
        let annotated = || [&said.public_ip, &said.public_ipv6].into_iter().filter_map(address).collect();
        let evidence = self.evidence.get_or_insert_with(|| if by_loden { Vec::new() } else { annotated() });
        let overwrites = [(Family::V4, &said.public_ip_overwrite), (Family::V6, &said.public_ipv6_overwrite)];
        OwnNode {
            public_ip: text(&said.node_public_ip).parse().ok(),
            public_ip6: text(&said.node_public_ipv6).parse().ok(),
            overwritten: overwrites
                .into_iter()
                .filter(|(_, value)| !text(value).is_empty())
                .map(|(family, _)| family)
                .collect(),
            annotated_by_loden: evidence.is_empty() && by_loden,
            annotated: evidence.clone(),
            internal_ips: facts.internal_ips.clone(),
            addresses: facts.addresses.clone(),
        }
    }
}

/// Where packets for other nodes go: all of them, or one of each link.
fn peers(map: &Snapshot) -> BTreeSet<IpAddr> {
    let all: BTreeSet<IpAddr> = map.peers.iter().flat_map(|lease| lease.public_ips()).collect();
    if all.len() <= MOST_ASKED {
        return all;
    }
    let mut links = BTreeSet::new();
    let link =
        |ip: &IpAddr| Prefix::new(*ip, if ip.is_ipv4() { 24 } else { 64 }).ok().map(|prefix| prefix.last());
    all.into_iter().filter(|ip| links.insert(link(ip))).take(MOST_ASKED).collect()
}

/// Names of our own devices, which are no way to a peer.
fn tunnels(setup: &Setup) -> Vec<String> {
    match setup.backend.devices(&setup.families()) {
        Devices::None => Vec::new(),
        Devices::Tun { name } => vec![name],
        Devices::Vxlan { names, .. } => names.into_iter().map(|(_, name)| name).collect(),
    }
}
