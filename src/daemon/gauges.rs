//! What is read once a second because nobody tells: the kernel's own drops, and who was refused.

use std::net::IpAddr;
use std::time::Instant;

use encap::SourceCheck;
use prometheus::IntCounter;
use tracing::warn;

use super::data_path::DataPath;
use super::state::State;
use crate::adapter::firewall::{GuardCounters, GuardReader};
use crate::adapter::netlink;
use crate::report::Code;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::refusals::Refusals;
use encap::offload::Features;

/// Last readings.
pub(super) struct Gauges {
    tunnel: u32,
    tunnel_drops: u64,
    socket_drops: u64,
    refusals: Refusals,
    failed_offloads: Features,
}

impl Gauges {
    pub(super) fn new(tunnel: u32) -> Self {
        Self {
            tunnel,
            tunnel_drops: 0,
            socket_drops: 0,
            refusals: Refusals::default(),
            failed_offloads: Features::NONE,
        }
    }

    /// A fresh device counts from zero.
    pub(super) fn new_tunnel(&mut self, index: u32) {
        self.tunnel = index;
        self.tunnel_drops = 0;
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) async fn read(&mut self, state: &State, data_path: &DataPath) {
        if let Some(now) = data_path.overflows() {
            Metrics::follow(&state.metrics.socket_overflows, &mut self.socket_drops, now);
        }
        if let Some(now) = netlink::queue_drops(self.tunnel).await {
            Metrics::follow(&state.metrics.tunnel_overflows, &mut self.tunnel_drops, now);
        }
        let failed = state.shared.offloads.failed();
        if failed != self.failed_offloads {
            self.failed_offloads = failed;
            let refused = (failed != Features::NONE).then(|| {
                format!("the kernel refused offloads that it had agreed to; the data path does without them: {failed}")
            });
            state.concerns.set(Code::OffloadRefused, refused);
        }
        if let Some(text) = self.refusals.look(&state.shared.rx, Instant::now()) {
            warn!("{text}");
        }
    }
}

/// What the kernel has kept out of its tunnel.
pub(super) struct Doors {
    reader: GuardReader,
    seen: GuardCounters,
    /// Who was refused last.
    sender: Option<IpAddr>,
    refusals: Refusals,
}

impl Doors {
    /// From now on: what a table of an earlier daemon has counted is not ours to count again.
    pub(super) async fn new() -> Self {
        let mut reader = GuardReader::default();
        let seen = reader.counters().await.ok().flatten().unwrap_or_default();
        Self { reader, seen, sender: None, refusals: Refusals::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) async fn read(&mut self, state: &State) {
        if state.backend.door().is_none_or(|door| door.kernel_checks.is_none()) {
            return;
        }
        // Without a table there is nothing to count, and the pass over the kernel says why there is none.
        let Ok(Some(now)) = self.reader.counters().await else { return };
        let before = if self.seen.table == now.table { self.seen.packets } else { [0; 2] };
        for ((counter, before), now) in state.metrics.refused_by_kernel.iter().zip(before).zip(now.packets) {
            counter.inc_by(now.saturating_sub(before));
        }
        if now != self.seen {
            self.seen = now;
            self.sender = self.reader.last_refused().await.ok().flatten();
        }
        // What was only counted has arrived.
        if state.conf.source_check != SourceCheck::Enforce {
            return;
        }
        let counts = state.metrics.refused_by_kernel.each_ref().map(IntCounter::get);
        if let Some(text) = self.refusals.due(counts, self.sender, Instant::now()) {
            warn!("{text}");
        }
    }
}
