//! What our own Node is to carry, so that peers and the scheduler know of us, and what it lacks of that.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::watch;

use super::applied::Applied;
use super::concerns::Concerns;
use super::send_news;
use super::setup::Setup;
use super::spine::Spine;
use super::underlay::Underlay;
use crate::adapter::kube::publish::Publication;
use crate::lease::annotation::Published;
use crate::lease::{LodenCaps, NodeFacts};
use crate::report::Code;

/// Keeps account of what is to be written to our own Node.
pub(super) struct OwnNode {
    setup: Rc<Setup>,
    spine: Rc<Spine>,
    underlay: Rc<Underlay>,
    applied: Rc<Applied>,
    concerns: Concerns,
    /// What it lacks; nothing as long as nobody is to write it.
    lacking: watch::Sender<Option<Publication>>,
    /// What it was last seen to carry, when it lacked nothing.
    confirmed: RefCell<Option<Carried>>,
}

/// The uid of a Node, and keys and values of annotations.
type Carried = (String, Vec<(String, String)>);

impl OwnNode {
    pub(super) fn new(
        setup: Rc<Setup>,
        spine: Rc<Spine>,
        underlay: Rc<Underlay>,
        applied: Rc<Applied>,
        concerns: Concerns,
    ) -> Self {
        let (lacking, confirmed) = (watch::Sender::new(None), RefCell::default());
        Self { setup, spine, underlay, applied, concerns, lacking, confirmed }
    }

    /// Hears of what it lacks.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Publication>> {
        self.lacking.subscribe()
    }

    /// Compares it with what it should carry, once packets can be taken: from then on peers send to us.
    pub(super) fn check(&self) {
        let early = self.concerns.first(&[Code::Starting, Code::StartedFromCache]).is_some();
        if !self.setup.args.kube_subnet_mgr || early {
            return;
        }
        // A Node that is gone is written again when it is back.
        let facts = self.spine.own_facts();
        match facts.map_or(Ok(None), |facts| self.lacks(&facts)) {
            Ok(lacking) => {
                if lacking.is_none() {
                    self.concerns.clear(Code::OwnNodeUnwritten);
                }
                send_news(&self.lacking, lacking);
            }
            Err(text) => {
                let text = format!("{text}; what was published before stays");
                self.concerns.set(Code::OwnNodeUnwritten, Some(text));
            }
        }
    }

    fn lacks(&self, facts: &NodeFacts) -> Result<Option<Publication>, String> {
        let Setup { node, args, conf, backend, .. } = &*self.setup;
        let [version, _] = crate::VERSION;
        let caps = LodenCaps {
            version: version.into(),
            mtu: self.applied.mtu(),
            ipv6: true,
            ecn: true,
            partial_checksum: conf.partial_checksum,
            flow_ports: true,
            backend: backend.told_apart().map(str::to_owned),
        };
        let (public_ip, public_ipv6) = self.underlay.public_ips();
        let vtep_macs = self.applied.vtep_macs();
        let published = Published { backend, public_ip, public_ipv6, vtep_macs, caps: &caps };
        let prefix = &args.kube_annotation_prefix;
        let bad = |(name, error)| format!("own Node {node}: annotation {}: {error}", prefix.key(name));
        let annotations = published.lacking(prefix, &facts.annotations).map_err(bad)?;
        let wanted = (facts.uid.clone(), published.render(prefix, &facts.annotations).map_err(bad)?);
        let network_available = args.set_node_network_unavailable && !facts.network_available;
        if annotations.is_empty() && !network_available {
            self.confirmed.replace(Some(wanted));
            return Ok(None);
        }
        // It had all this already: somebody took it away.
        let repair = self.confirmed.borrow().as_ref() == Some(&wanted);
        Ok(Some(Publication { node: node.clone(), annotations, network_available, repair }))
    }
}
