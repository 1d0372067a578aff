//! Metrics of the Kubernetes API as a source of leases; absent with any other source.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use prometheus::{Gauge, IntCounterVec, Opts, Registry};

/// Handles on the metrics; clones share them.
#[derive(Debug, Clone)]
pub struct ApiMetrics {
    /// Watches that ended or could not be started, by reason.
    pub restarts: IntCounterVec,
    /// Writes to our own Node that failed, by reason.
    pub publish_errors: IntCounterVec,
    repairs: IntCounterVec,
    /// Attempts to write an Event on a refused Node, by what became of it.
    pub events: IntCounterVec,
    last_contact: Gauge,
}

impl ApiMetrics {
    /// Registers them. `reasons` are the labels that the counters can have.
    pub fn register(registry: &Registry, reasons: &[&str]) -> Result<Self> {
        Self::build(registry, reasons).context("cannot register the API's metrics")
    }

    fn build(registry: &Registry, reasons: &[&str]) -> prometheus::Result<Self> {
        let metrics = Self {
            restarts: IntCounterVec::new(
                Opts::new(
                    "loden_watch_restarts_total",
                    "Watches of the Kubernetes API that ended or could not be started, by reason",
                ),
                &["reason"],
            )?,
            publish_errors: IntCounterVec::new(
                Opts::new(
                    "loden_publish_errors_total",
                    "Writes to the node's own Node that failed, by reason",
                ),
                &["reason"],
            )?,
            repairs: IntCounterVec::new(
                Opts::new(
                    "loden_node_repairs_total",
                    "What somebody else changed on the node's own Node and was put right, by object",
                ),
                &["object"],
            )?,
            events: IntCounterVec::new(
                Opts::new(
                    "loden_node_events_total",
                    "Events on refused Nodes: created, known (another daemon was first), or failed",
                ),
                &["result"],
            )?,
            last_contact: Gauge::new(
                "loden_api_last_contact_timestamp_seconds",
                "When the Kubernetes API was last heard, in seconds since 1970; 0 if never",
            )?,
        };
        for reason in reasons {
            metrics.restarts.with_label_values(&[*reason]);
            metrics.publish_errors.with_label_values(&[*reason]);
        }
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.publish_errors.clone()))?;
        for object in ["annotation", "condition"] {
            metrics.repairs.with_label_values(&[object]);
        }
        registry.register(Box::new(metrics.repairs.clone()))?;
        for result in ["created", "known", "failed"] {
            metrics.events.with_label_values(&[result]);
        }
        registry.register(Box::new(metrics.events.clone()))?;
        registry.register(Box::new(metrics.last_contact.clone()))?;
        Ok(metrics)
    }

    /// So many annotations, and maybe the condition, were put right.
    pub fn repaired(&self, annotations: usize, condition: bool) {
        self.repairs.with_label_values(&["annotation"]).inc_by(annotations as u64);
        self.repairs.with_label_values(&["condition"]).inc_by(condition.into());
    }

    /// The API said something at `now`.
    pub fn heard(&self, now: SystemTime) {
        self.last_contact.set(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}
