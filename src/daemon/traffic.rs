//! What the data path has carried and dropped, peer by peer.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use encap::{DropReason, PeerId};

use super::spine::Spine;
use crate::dataplane::Shared;
use crate::telemetry::peers::{PeerState, Peers};

/// The counters of the data path, and the state of each peer that comes from them.
pub(super) struct Traffic {
    spine: Rc<Spine>,
    shared: Arc<Shared>,
    peers: Peers,
}

impl Traffic {
    pub(super) fn new(spine: Rc<Spine>, shared: Arc<Shared>) -> Self {
        Self { spine, shared, peers: Peers::default() }
    }

    /// Folds the data path's counters into the state of each peer.
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) fn fold(&self) {
        let map = self.spine.snapshot();
        self.peers.fold(&self.shared, map.peers.iter().map(|lease| lease.id), SystemTime::now());
    }

    /// Forgets peers that are none any more.
    pub(super) fn forget_others(&self) {
        let map = self.spine.snapshot();
        let ids: BTreeSet<PeerId> = map.peers.iter().map(|lease| lease.id).collect();
        self.peers.retain(|peer| ids.contains(&peer));
    }

    /// State of one peer.
    pub(super) fn of(&self, peer: PeerId) -> PeerState {
        self.peers.get(peer)
    }

    /// How many packets were dropped in each direction and for each reason.
    pub(super) fn drops(&self) -> impl Iterator<Item = (&'static str, DropReason, u64)> {
        let lanes = [("tx", &self.shared.tx), ("rx", &self.shared.rx)];
        lanes.into_iter().flat_map(|(direction, lane)| {
            DropReason::ALL.map(|reason| (direction, reason, lane.drops(reason)))
        })
    }
}
