//! What is known of each peer: counters of both directions and when it was last heard.
//!
//! The data path counts by [`PeerId`]; once a second the lanes are folded into a concurrent map, where commands
//! and metrics read without going near the data path.

use std::time::SystemTime;

use dashmap::DashMap;
use encap::PeerId;

use crate::dataplane::{PeerTotals, Shared};

/// State of one peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerState {
    /// Sent to the peer.
    pub tx: PeerTotals,
    /// Received from the peer.
    pub rx: PeerTotals,
    /// When a packet of the peer was last counted. It is exact to the second, because that is how often we look.
    pub last_seen: Option<SystemTime>,
}

/// State of all peers that ever were accepted, by id.
#[derive(Debug, Default)]
pub struct Peers(DashMap<PeerId, PeerState>);

impl Peers {
    /// Takes over the counters of `peers` as they are now.
    pub fn fold(&self, shared: &Shared, peers: impl Iterator<Item = PeerId>, now: SystemTime) {
        for peer in peers {
            let (tx, rx) = (shared.tx.peer(peer), shared.rx.peer(peer));
            // In a large cluster a node exchanges packets with few others.
            if (tx, rx) == Default::default() {
                continue;
            }
            let mut state = self.0.entry(peer).or_default();
            if rx.packets != state.rx.packets {
                state.last_seen = Some(now);
            }
            state.tx = tx;
            state.rx = rx;
        }
    }

    /// State of one peer.
    pub fn get(&self, peer: PeerId) -> PeerState {
        self.0.get(&peer).map(|state| *state).unwrap_or_default()
    }

    /// Forgets peers for which `keep` says no.
    pub fn retain(&self, keep: impl Fn(PeerId) -> bool) {
        self.0.retain(|peer, _| keep(*peer));
    }
}
