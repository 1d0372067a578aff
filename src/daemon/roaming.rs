//! The external interface while the daemon runs: its address may change, and it may go and another take its place.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use encap::Family;
use tokio::sync::mpsc;
use tracing::info;

use super::concerns::Concerns;
use super::interface;
use super::parts::Parts;
use super::setup::Setup;
use super::spine::Spine;
use super::underlay::Underlay;
use crate::adapter::interfaces::{self, Changes};
use crate::config::iface::{ExternalInterface, Interface};
use crate::report::Code;

/// An address that is replaced is gone for a moment.
const SETTLE: Duration = Duration::from_millis(200);
/// One that a DHCP client takes away and gives back is gone for longer. Only then is another interface looked for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Without an interface to use, it is looked for again although nobody announced a change.
const RETRY: Duration = Duration::from_secs(5);

/// Looks whether the external interface can still be used.
pub(super) struct Roaming {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    concerns: Concerns,
}

impl Roaming {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            setup: parts.setup.clone(),
            spine: parts.spine.clone(),
            underlay: parts.underlay.clone(),
            concerns: parts.concerns.clone(),
        }
    }
}

/// Says when another interface or address has to be used, for as long as anybody listens.
///
/// # Errors
/// The kernel does not announce changes of addresses.
pub(super) async fn roam(roaming: Roaming, moved: mpsc::UnboundedSender<ExternalInterface>) -> Result<()> {
    let mut changes = interfaces::changes().context("cannot follow the node's addresses")?;
    while !moved.is_closed() {
        wait(&mut changes, &roaming).await;
        let looked = look(&roaming).await;
        let trouble = match looked {
            Ok(None) => None,
            Ok(Some(external)) => {
                info!(name = external.name, address = ?external.address(), reason = external.reason, "the external interface changed");
                let _ = moved.send(external);
                // Whoever listens has to take it over before the next look.
                tokio::time::sleep(SETTLE).await;
                None
            }
            Err(error) => Some(format!("the node's address is gone: {error:#}")),
        };
        roaming.concerns.set(Code::NoAddress, trouble);
    }
    Ok(())
}

/// Waits for something that may matter.
async fn wait(changes: &mut Changes, roaming: &Roaming) {
    loop {
        let lost = roaming.concerns.here(Code::NoAddress).is_some();
        let Ok(device) = tokio::time::timeout(RETRY, changes.next()).await else {
            if lost { return } else { continue }
        };
        let ours = roaming.underlay.below().map(|below| below.external.index);
        if lost || device.is_none() || device == ours {
            tokio::time::sleep(SETTLE).await;
            changes.skip();
            return;
        }
    }
}

/// What to use in place of the present interface, if that cannot be used any more.
async fn look(roaming: &Roaming) -> Result<Option<ExternalInterface>> {
    let Roaming { setup, spine, underlay, .. } = roaming;
    let Some(below) = underlay.below() else { return Ok(None) };
    let (now, families) = (&below.external, setup.families());
    let interfaces = interfaces::list().await?;
    if holds(&interfaces, now, &families) {
        return Ok(None);
    }
    if !interfaces.iter().any(|interface| interface.index == now.index && interface.has_address()) {
        tokio::time::sleep(PATIENCE).await;
        if holds(&interfaces::list().await?, now, &families) {
            return Ok(None);
        }
    }
    let facts = spine.own_facts();
    let next = interface::external(&setup.args, facts.as_deref()).await?;
    setup.backend.check_interface(&next, &setup.conf.networks())?;
    next.address().context("no interface has an address")?;
    Ok(Some(next))
}

/// Whether every address in use is still there, and none has come back of a family that lost its own.
fn holds(interfaces: &[Interface], external: &ExternalInterface, families: &[Family]) -> bool {
    let addresses = [external.addr.map(IpAddr::V4), external.addr6.map(IpAddr::V6)];
    interfaces.iter().filter(|interface| interface.index == external.index).any(|interface| {
        let held = |ip| interface.addrs.iter().any(|address| address.ip == ip);
        let missing = |family: &&Family| external.addresses(**family).is_none();
        addresses.into_iter().flatten().all(held)
            && !families.iter().filter(missing).any(|family| interface.has_address_of(*family))
    })
}
