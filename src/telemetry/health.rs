//! Readiness and liveness, told from what is known rather than latched.

use std::time::{Duration, Instant};

/// A pass over the kernel that takes longer than this is stuck: it consists of a few netlink requests and one `nft`.
const STUCK: Duration = Duration::from_secs(60);

/// Everything that decides readiness.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Why no own lease is known; `None` once there was one.
    pub waiting: Option<String>,
    /// The own lease was known and is not any more, or is not usable; the data path goes on with the last good one.
    pub own_trouble: Option<String>,
    /// Why the lease source cannot be read; the last known leases stay in force.
    pub source_trouble: Option<String>,
    /// The leases are those that an earlier daemon knew; the source has said nothing yet.
    pub from_cache: Option<String>,
    /// Why our own Node does not carry what peers need to know of us; peers that know us already are not affected.
    pub publish_trouble: Option<String>,
    /// The backend runs in a way that nobody asked for.
    pub backend_note: Option<String>,
    /// Peers that were refused.
    pub refused: usize,
    /// Peers of another backend type.
    pub mismatched: usize,
    /// Why Pods cannot be read; the last known host routes stay in force.
    pub pods_trouble: Option<String>,
    /// Pods outside their node's podCIDR that cannot be routed.
    pub refused_pods: usize,
    /// What of others keeps traffic rules from working, and what to do about it.
    pub firewall_trouble: Option<String>,
    /// The kernel held everything that it should at least once.
    pub applied: bool,
    /// Peers that the kernel could not be told of; it is tried again for each.
    pub failing_peers: usize,
    /// Settings of the host that stop packets, and what to do about them.
    pub host_trouble: Option<String>,
    /// Why the kernel does not hold what it should.
    pub kernel_trouble: Option<String>,
    /// Why there is no interface that packets could leave by.
    pub external_trouble: Option<String>,
    /// Why the data path does not run.
    pub data_path_trouble: Option<String>,
    /// Why subnet.env could not be written.
    pub subnet_file_trouble: Option<String>,
    /// Since when the loop that programs the kernel has been at work on one pass.
    pub busy_since: Option<Instant>,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Every accepted lease is programmed.
    Ready,
    /// The same, but not everything is well.
    Degraded(String),
    /// Before the first apply, or our own device, socket or programming has failed.
    NotReady(String),
}

impl Health {
    /// Whether pods on this node can be served.
    pub fn readiness(&self) -> Readiness {
        let fatal = [
            &self.waiting,
            &self.external_trouble,
            &self.data_path_trouble,
            &self.kernel_trouble,
            &self.subnet_file_trouble,
        ];
        if let Some(reason) = fatal.into_iter().flatten().next() {
            return Readiness::NotReady(reason.clone());
        }
        if !self.applied {
            return Readiness::NotReady("the kernel is not programmed yet".into());
        }
        let mut worries: Vec<String> = [
            &self.from_cache,
            &self.own_trouble,
            &self.source_trouble,
            &self.pods_trouble,
            &self.publish_trouble,
            &self.firewall_trouble,
            &self.host_trouble,
            &self.backend_note,
        ]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
        if self.failing_peers > 0 {
            worries.push(format!("{} not programmed (see `flanneld routes`)", nodes(self.failing_peers)));
        }
        if self.refused > 0 {
            worries.push(format!("{} refused (see `flanneld routes`)", nodes(self.refused)));
        }
        if self.mismatched > 0 {
            worries
                .push(format!("{} of another backend type (see `flanneld routes`)", nodes(self.mismatched)));
        }
        if self.refused_pods > 0 {
            let pods = if self.refused_pods == 1 { "pod" } else { "pods" };
            worries
                .push(format!("{} {pods} refused a host route (see `flanneld routes`)", self.refused_pods));
        }
        if worries.is_empty() { Readiness::Ready } else { Readiness::Degraded(worries.join("; ")) }
    }

    /// Why the daemon should be restarted; `None` while no loop is stuck.
    pub fn stuck(&self, now: Instant) -> Option<String> {
        let busy = now.saturating_duration_since(self.busy_since?);
        (busy > STUCK).then(|| format!("programming the kernel has taken {} s", busy.as_secs()))
    }
}

fn nodes(count: usize) -> String {
    if count == 1 { "1 node".into() } else { format!("{count} nodes") }
}

impl Readiness {
    /// HTTP status and body, the latter flannel's own words where it has any.
    pub fn answer(&self) -> (u16, String) {
        match self {
            Self::Ready => (200, "flanneld is ready".into()),
            Self::Degraded(worries) => (200, format!("degraded: {worries}")),
            Self::NotReady(reason) => (503, format!("flanneld is not ready yet: {reason}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Health {
        Health { applied: true, ..Health::default() }
    }

    #[test]
    fn not_ready_before_the_first_apply() {
        assert_eq!(Health::default().readiness().answer().0, 503);
        assert_eq!(good().readiness(), Readiness::Ready);
    }

    #[test]
    fn trouble_that_leaves_the_data_path_alone_degrades() {
        let health = Health { source_trouble: Some("nodes.yaml line 3".into()), refused: 2, ..good() };
        let (status, body) = health.readiness().answer();
        assert_eq!(status, 200);
        assert!(body.starts_with("degraded: nodes.yaml line 3; 2 nodes refused"), "{body}");
    }

    #[test]
    fn own_failures_are_not_ready_even_after_a_first_success() {
        for broken in [
            Health { kernel_trouble: Some("x".into()), ..good() },
            Health { data_path_trouble: Some("x".into()), ..good() },
            Health { subnet_file_trouble: Some("x".into()), ..good() },
            Health { waiting: Some("x".into()), ..good() },
        ] {
            assert_eq!(broken.readiness().answer().0, 503);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn only_a_stuck_loop_fails_liveness() {
        let now = Instant::now();
        assert_eq!(good().stuck(now), None);
        let busy = Health { busy_since: Some(now), ..good() };
        assert_eq!(busy.stuck(now + Duration::from_secs(59)), None);
        assert!(busy.stuck(now + Duration::from_secs(61)).is_some());
    }
}
