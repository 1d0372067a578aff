//! What is read once a second because nobody tells: the kernel's own drops, and who was refused.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use encap::SourceCheck;
use tracing::warn;

use super::concerns::Concerns;
use super::data_path::DataPath;
use super::parts::Parts;
use super::setup::Setup;
use crate::adapter::firewall::{GuardCounters, GuardReader};
use crate::adapter::netlink;
use crate::dataplane::Shared;
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
    shared: Arc<Shared>,
    metrics: Rc<Metrics>,
    concerns: Concerns,
}

impl Gauges {
    pub(super) fn new(parts: &Parts, tunnel: u32) -> Self {
        Self {
            tunnel,
            tunnel_drops: 0,
            socket_drops: 0,
            refusals: Refusals::default(),
            failed_offloads: Features::NONE,
            shared: parts.shared.clone(),
            metrics: parts.metrics.clone(),
            concerns: parts.concerns.clone(),
        }
    }

    /// A fresh device counts from zero.
    pub(super) fn new_tunnel(&mut self, index: u32) {
        self.tunnel = index;
        self.tunnel_drops = 0;
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) async fn read(&mut self, data_path: &DataPath) {
        if let Some(now) = data_path.overflows() {
            Metrics::follow(&self.metrics.socket_overflows, &mut self.socket_drops, now);
        }
        if let Some(now) = netlink::queue_drops(self.tunnel).await {
            Metrics::follow(&self.metrics.tunnel_overflows, &mut self.tunnel_drops, now);
        }
        let failed = self.shared.offloads.failed();
        if failed != self.failed_offloads {
            self.failed_offloads = failed;
            let refused = (failed != Features::NONE).then(|| {
                format!("the kernel refused offloads that it had agreed to; the data path does without them: {failed}")
            });
            self.concerns.set(Code::OffloadRefused, refused);
        }
        if let Some(text) = self.refusals.look(&self.shared.rx, Instant::now()) {
            warn!("{text}");
        }
    }
}

/// What the kernel has kept out of its tunnel.
pub(super) struct Doors {
    metrics: Rc<Metrics>,
    /// What was refused was dropped as well.
    enforced: bool,
    reader: GuardReader,
    seen: GuardCounters,
    /// Who was refused last.
    sender: Option<IpAddr>,
    refusals: Refusals,
}

impl Doors {
    /// From now on: what a table of an earlier daemon has counted is not ours to count again. `None` where the kernel
    /// checks nothing.
    pub(super) async fn new(setup: &Setup, metrics: Rc<Metrics>) -> Option<Self> {
        setup.backend.door()?.kernel_checks?;
        let enforced = setup.conf.source_check == SourceCheck::Enforce;
        let mut reader = GuardReader::default();
        let seen = reader.counters().await.ok().flatten().unwrap_or_default();
        Some(Self { metrics, enforced, reader, seen, sender: None, refusals: Refusals::default() })
    }

    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) async fn read(&mut self) {
        // Without a table there is nothing to count, and the pass over the kernel says why there is none.
        let Ok(Some(now)) = self.reader.counters().await else { return };
        let before = if self.seen.table == now.table { self.seen.packets } else { [0; 2] };
        let more = std::array::from_fn(|at| now.packets[at].saturating_sub(before[at]));
        let counts = self.metrics.count_refused_by_kernel(more);
        if now != self.seen {
            self.seen = now;
            self.sender = self.reader.last_refused().await.ok().flatten();
        }
        // What was only counted has arrived.
        if !self.enforced {
            return;
        }
        if let Some(text) = self.refusals.due(counts, self.sender, Instant::now()) {
            warn!("{text}");
        }
    }
}
