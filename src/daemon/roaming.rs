//! The external interface while the daemon runs: its address may change, it may go and another take its place, and what
//! should be may come back.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info};

use super::concerns::Concerns;
use super::interface::Search;
use super::parts::Parts;
use super::setup::Setup;
use super::spine::Spine;
use super::underlay::Underlay;
use crate::adapter::interfaces::Changes;
use crate::config::iface::{Decision, ExternalInterface};
use crate::lease::Snapshot;
use crate::report::Code;

/// An address that is replaced is gone for a moment.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two looks: where many pods start, something is announced all the time.
const REST: Duration = Duration::from_millis(800);
/// How often to see whether the Nodes are others.
const GLANCE: Duration = Duration::from_secs(1);

/// Looks whether the external interface is still the right one.
pub(super) struct Roaming {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    concerns: Concerns,
    search: Search,
    /// The map at the last look.
    seen: Option<Arc<Snapshot>>,
    /// How long to wait until the next one, if nothing happens.
    pause: Option<Duration>,
}

impl Roaming {
    pub(super) fn new(parts: &Parts, search: Search) -> Self {
        Self {
            setup: parts.setup.clone(),
            spine: parts.spine.clone(),
            underlay: parts.underlay.clone(),
            concerns: parts.concerns.clone(),
            search,
            seen: None,
            pause: None,
        }
    }

    /// Waits until something may matter: the kernel announces a change, the Nodes are others, or the pause is over.
    async fn wait(&mut self, changes: &mut Changes) {
        let limit = tokio::time::sleep(self.pause.unwrap_or(Duration::MAX));
        tokio::pin!(limit);
        loop {
            let map = self.spine.snapshot();
            if self.seen.replace(map.clone()).is_none_or(|seen| !Arc::ptr_eq(&seen, &map)) {
                return;
            }
            tokio::select! {
                () = &mut limit => return,
                announced = timeout(GLANCE, changes.next()) => if announced.is_ok() {
                    tokio::time::sleep(SETTLE).await;
                    changes.skip();
                    return;
                },
            }
        }
    }

    /// Looks once. `Some` is another interface to use, or another address of it.
    async fn look(&mut self) -> Option<ExternalInterface> {
        let below = self.underlay.below()?;
        let now = &below.external;
        let (trouble, remark, next) = match self.search.look(Some(now)).await {
            Ok(Decision::Use { external, remark }) => {
                self.pause = None;
                match self.check(now, external) {
                    Ok(next) => (None, remark, next),
                    Err(text) => (Some(text), remark, None),
                }
            }
            Ok(Decision::Wait { text, at_most }) => {
                self.pause = Some(self.search.rest(at_most));
                (Some(text), None, None)
            }
            Ok(Decision::Refused(error)) => {
                self.pause = Some(self.search.rest(None));
                (Some(error.to_string()), None, None)
            }
            // What cannot be told changes nothing: it is looked at again.
            Err(error) => {
                debug!("the external interface cannot be looked at: {error:#}");
                self.pause = Some(REST);
                return None;
            }
        };
        let trouble = trouble.map(|text| format!("the node's address is gone: {text}"));
        self.concerns.set(Code::NoAddress, trouble);
        self.concerns.set(Code::AddressInDoubt, remark);
        next
    }

    /// `next` if it is another than `now`, or why it cannot be used.
    fn check(
        &self,
        now: &ExternalInterface,
        next: ExternalInterface,
    ) -> Result<Option<ExternalInterface>, String> {
        if next.is_same_as(now) {
            return Ok(None);
        }
        let networks = self.setup.conf.networks();
        self.setup.backend.check_interface(&next, &networks).map_err(|error| error.to_string())?;
        if next.address().is_none() {
            return Err(format!("{} has no address", next.name));
        }
        info!(name = next.name, address = ?next.address(), mtu = next.narrowest, reason = next.reason, "the external interface changed");
        Ok(Some(next))
    }
}

/// Says when another interface or address has to be used, for as long as anybody listens.
pub(super) async fn roam(
    mut roaming: Roaming,
    mut changes: Changes,
    moved: mpsc::UnboundedSender<ExternalInterface>,
) -> Result<()> {
    while !moved.is_closed() {
        roaming.wait(&mut changes).await;
        if let Some(next) = roaming.look().await {
            let _ = moved.send(next);
        }
        // Whoever listens has to take it over before the next look.
        tokio::time::sleep(REST).await;
    }
    Ok(())
}
