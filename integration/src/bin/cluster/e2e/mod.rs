//! What is proved on a running cluster, row by row. Each row stands for itself: it makes what it needs and says what it saw.

mod ask;
mod change;
mod objects;
mod reach;
mod restart;
mod services;
mod stage;

use std::process::ExitCode;

use anyhow::Result;

use crate::report::{Outcome, Report};
use crate::spec::Layout;
use stage::Stage;

type Row = (&'static str, fn(&Stage<'_>) -> Result<Outcome>);

/// In this order: what breaks things comes last.
const ROWS: [Row; 24] = [
    ("pods reach pods: TCP and UDP, untranslated", reach::pods_to_pods),
    ("nodes reach pods", reach::nodes_to_pods),
    ("pods reach nodes", reach::pods_to_nodes),
    ("2,000 bytes over UDP and HTTP between nodes", reach::large),
    ("dual-stack: pods reach pods over IPv6", reach::pods_to_pods_6),
    ("egress to an outside host comes from the node", reach::egress),
    ("ClusterIP spreads over all endpoints, TCP and UDP", services::cluster_ip),
    ("NodePort on the pod's own and on other nodes", services::node_port),
    ("headless Service has every pod's address", services::headless),
    ("ExternalName is an alias", services::external_name),
    ("session affinity keeps a client on one pod", services::affinity),
    ("endpoints change, the Service follows", services::endpoints),
    ("every pod resolves names at every CoreDNS pod", services::dns),
    ("HostPort reaches the pod", services::host_port),
    ("a proxy pod behind a Service forwards to another node", services::ingress),
    ("kube-proxy restarts under load", restart::kube_proxy),
    ("kubelet restarts under load", restart::kubelet),
    ("containerd restarts under load", restart::containerd),
    ("flanneld restarts under load", restart::flanneld),
    ("the DaemonSet's pods are replaced under load", restart::rollout),
    ("the API server is not needed by pods that run", restart::pods_without_api),
    ("a node is drained, deleted and comes back", change::node_comes_back),
    ("all pairs again, after all of this", reach::pods_to_pods),
    ("every daemon is ready, without errors in its log", restart::flanneld_healthy),
];

/// # Errors
/// When no cluster is up, or the pods of the suite do not start.
pub(crate) fn run(layout: &Layout, only: &str) -> Result<ExitCode> {
    let stage = Stage::set(layout)?;
    let mut report = Report::new(format_args!("end to end: {}", stage.spec));
    for (claim, check) in ROWS.iter().filter(|(claim, _)| claim.contains(only)) {
        report.row(claim, || check(&stage));
    }
    for (claim, outcome) in stage.other_backends()? {
        report.row(&claim, || Ok(outcome));
    }
    Ok(report.close())
}
