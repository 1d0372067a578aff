//! All metrics, in the Prometheus text format. Names begin with `loden_` and stay stable.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use encap::DropReason;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::api::ApiMetrics;
use crate::dataplane::{BATCH_BOUNDS, Lanes, Shared};
use crate::plan::Object;
use crate::plan::firewall::guard;
use encap::offload::{Feature, Features};

/// What a look at the kernel led to: nothing, changes, or changes of which one failed.
pub const PASSES: [&str; 3] = ["quiet", "changed", "failed"];

/// What [`Metrics::render`] makes, as HTTP's Content-Type.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The one thing that is repaired and is no object of the kernel's.
pub const SUBNET_ENV: &str = "subnet_env";

/// Metrics that the control plane keeps, and the registry that also reads the data path's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// How packets get from node to node; always 1.
    pub backend: IntGaugeVec,
    /// Who keeps the traffic rules; always 1.
    pub rules: IntGaugeVec,
    /// Leases in force, the own one included.
    pub leases: IntGauge,
    /// Leases added, removed or changed.
    pub lease_changes: IntCounterVec,
    /// Nodes that were refused, by reason.
    pub refused: IntGaugeVec,
    /// Peers of another backend type.
    pub mismatched: IntGauge,
    /// Nodes whose public address is none that they list.
    pub unlisted: IntGauge,
    /// Pods that are routed by their own address.
    pub host_routes: IntGauge,
    /// Pods outside their node's podCIDR that are not, by reason.
    pub refused_pods: IntGaugeVec,
    /// The lease source can be read.
    pub source_up: IntGauge,
    /// From an event of the lease source to the data path.
    pub event_to_data_path: Histogram,
    /// Kernel objects put right after somebody else changed them.
    pub repairs: IntCounterVec,
    /// Peers that the kernel could not be told of.
    pub failing_peers: IntGauge,
    /// Steps that could not be done and do not stop packets.
    pub kernel_warnings: IntGauge,
    /// How long a look at the kernel and what it led to took.
    pub kernel_pass: Histogram,
    /// Looks at the kernel, by what they led to: see [`PASSES`].
    pub kernel_passes: IntCounterVec,
    /// Steps toward the kernel that were tried.
    pub kernel_writes: IntCounter,
    /// Steps toward the kernel that failed.
    pub kernel_errors: IntCounter,
    /// Entries that the kernel had changed without a word.
    pub kernel_unannounced: IntCounter,
    /// Checksum offload of the tunnel is switched off.
    pub checksum_offload_off: IntGauge,
    /// MTU of the tunnel.
    pub tunnel_mtu: IntGauge,
    /// Datagrams that the socket's receive buffer had no room for.
    pub socket_overflows: IntCounter,
    /// Packets that the tunnel device's queue had no room for.
    pub tunnel_overflows: IntCounter,
    /// Packets that the kernel has kept out of its tunnel, or counted only, in the order of [`guard::REASONS`].
    refused_by_kernel: [IntCounter; 2],
    /// What is wrong now, by code and severity.
    pub concerns: IntGaugeVec,
    /// The daemon is ready.
    pub ready: IntGauge,
}

impl Metrics {
    /// Registers everything. `enforced`: what the kernel's checks refuse is dropped. `refusals` are the labels that [`Metrics::refused`] can have.
    pub fn new(shared: Arc<Shared>, enforced: bool, refusals: &[&str]) -> Result<Self> {
        let registry = Registry::new();
        let metrics = Self::control_plane(&registry).context("cannot register metrics")?;
        for reason in refusals {
            metrics.refused.with_label_values(&[*reason]);
        }
        registry
            .register(Box::new(DataPath {
                shared,
                refused_by_kernel: metrics.refused_by_kernel.clone(),
                enforced,
            }))
            .context("cannot register the data path's metrics")?;
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).context("cannot register process metrics")?;
        Ok(metrics)
    }

    fn control_plane(registry: &Registry) -> prometheus::Result<Self> {
        let build = IntGaugeVec::new(
            Opts::new("loden_build_info", "Version of this daemon; always 1"),
            &["version", "commit"],
        )?;
        let [version, commit] = crate::VERSION;
        build.with_label_values(&[version, commit]).set(1);
        registry.register(Box::new(build))?;

        let seconds = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
        let metrics = Self {
            registry: registry.clone(),
            backend: IntGaugeVec::new(
                Opts::new("loden_backend_info", "The backend, and where it wraps packets; always 1"),
                &["backend", "mode"],
            )?,
            rules: IntGaugeVec::new(
                Opts::new("loden_rules_info", "Who keeps the traffic rules, and in which variant; always 1"),
                &["manager", "variant"],
            )?,
            leases: IntGauge::new("loden_leases", "Leases in force, the node's own included")?,
            lease_changes: IntCounterVec::new(
                Opts::new("loden_lease_changes_total", "Leases added, removed or changed since the start"),
                &["change"],
            )?,
            refused: IntGaugeVec::new(
                Opts::new("loden_refused_nodes", "Nodes whose lease is refused now, by reason"),
                &["reason"],
            )?,
            mismatched: IntGauge::new(
                "loden_backend_mismatches",
                "Nodes that use another backend than this one",
            )?,
            unlisted: IntGauge::new(
                "loden_unlisted_addresses",
                "Public addresses in use that are none of their Node's status.addresses, the node's own included",
            )?,
            host_routes: IntGauge::new(
                "loden_host_routes",
                "Pods outside their node's podCIDR that are routed by their own address (--pod-routes)",
            )?,
            refused_pods: IntGaugeVec::new(
                Opts::new(
                    "loden_refused_pods",
                    "Pods whose host route is refused now, by reason (--pod-routes)",
                ),
                &["reason"],
            )?,
            source_up: IntGauge::new("loden_lease_source_up", "1 while the source of leases can be read")?,
            event_to_data_path: Histogram::with_opts(
                HistogramOpts::new(
                    "loden_event_to_dataplane_seconds",
                    "From a change at the source of leases to its effect in the data path",
                )
                .buckets(seconds.to_vec()),
            )?,
            repairs: IntCounterVec::new(
                Opts::new("loden_repairs_total", "Kernel objects put right after somebody else changed them"),
                &["object"],
            )?,
            failing_peers: IntGauge::new(
                "loden_failing_peers",
                "Peers whose routes or entries the kernel refuses; each is tried again by itself",
            )?,
            kernel_warnings: IntGauge::new(
                "loden_kernel_warnings",
                "Steps that cannot be done and do not stop packets, such as settings under a read-only /proc/sys",
            )?,
            kernel_pass: Histogram::with_opts(
                HistogramOpts::new(
                    "loden_kernel_pass_seconds",
                    "From the first look at the kernel to the last change that it led to",
                )
                .buckets(seconds.to_vec()),
            )?,
            kernel_passes: IntCounterVec::new(
                Opts::new(
                    "loden_kernel_passes_total",
                    "Looks at the kernel: quiet ones found everything in place, the others tried to change it",
                ),
                &["result"],
            )?,
            kernel_writes: IntCounter::new(
                "loden_kernel_writes_total",
                "Steps toward the kernel that were tried; as long as nothing changes there are none",
            )?,
            kernel_unannounced: IntCounter::new(
                "loden_kernel_unannounced_total",
                "Routes, neighbours and forwarding entries that a look at all of them found changed unannounced",
            )?,
            kernel_errors: IntCounter::new(
                "loden_kernel_errors_total",
                "Steps toward the kernel that failed",
            )?,
            checksum_offload_off: IntGauge::new(
                "loden_checksum_offload_disabled",
                "1 while checksum offload of the kernel's tunnel device is kept switched off",
            )?,
            tunnel_mtu: IntGauge::new(
                "loden_tunnel_mtu_bytes",
                "Largest packet that a pod may send through the tunnel",
            )?,
            socket_overflows: IntCounter::new(
                "loden_socket_overflows_total",
                "Datagrams that the kernel dropped because the UDP socket's receive buffer was full",
            )?,
            tunnel_overflows: IntCounter::new(
                "loden_tunnel_overflows_total",
                "Packets that the kernel dropped because the tunnel device's queue was full",
            )?,
            refused_by_kernel: [
                IntCounter::new("unknown_sender", "Part of loden_drops_total")?,
                IntCounter::new("spoofed_source", "Part of loden_drops_total")?,
            ],
            concerns: IntGaugeVec::new(
                Opts::new(
                    "loden_concerns",
                    "What is wrong now, by code and severity: note, degraded, broken",
                ),
                &["code", "severity"],
            )?,
            ready: IntGauge::new("loden_ready", "1 while /readyz answers 200")?,
        };
        // Series that exist from the start can be alerted on before the first event.
        for object in Object::ALL {
            metrics.repairs.with_label_values(&[object.as_str()]);
        }
        metrics.repairs.with_label_values(&[SUBNET_ENV]);
        for result in PASSES {
            metrics.kernel_passes.with_label_values(&[result]);
        }
        for change in ["added", "removed", "changed"] {
            metrics.lease_changes.with_label_values(&[change]);
        }
        registry.register(Box::new(metrics.backend.clone()))?;
        registry.register(Box::new(metrics.rules.clone()))?;
        registry.register(Box::new(metrics.leases.clone()))?;
        registry.register(Box::new(metrics.lease_changes.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.mismatched.clone()))?;
        registry.register(Box::new(metrics.unlisted.clone()))?;
        registry.register(Box::new(metrics.host_routes.clone()))?;
        registry.register(Box::new(metrics.refused_pods.clone()))?;
        registry.register(Box::new(metrics.source_up.clone()))?;
        registry.register(Box::new(metrics.event_to_data_path.clone()))?;
        registry.register(Box::new(metrics.repairs.clone()))?;
        registry.register(Box::new(metrics.failing_peers.clone()))?;
        registry.register(Box::new(metrics.kernel_warnings.clone()))?;
        registry.register(Box::new(metrics.kernel_pass.clone()))?;
        registry.register(Box::new(metrics.kernel_passes.clone()))?;
        registry.register(Box::new(metrics.kernel_writes.clone()))?;
        registry.register(Box::new(metrics.kernel_errors.clone()))?;
        registry.register(Box::new(metrics.kernel_unannounced.clone()))?;
        registry.register(Box::new(metrics.checksum_offload_off.clone()))?;
        registry.register(Box::new(metrics.tunnel_mtu.clone()))?;
        registry.register(Box::new(metrics.socket_overflows.clone()))?;
        registry.register(Box::new(metrics.tunnel_overflows.clone()))?;
        registry.register(Box::new(metrics.concerns.clone()))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        Ok(metrics)
    }

    /// Adds the metrics of the Kubernetes API; `reasons` are the labels that its counters can have.
    pub fn api(&self, reasons: &[&str]) -> Result<ApiMetrics> {
        ApiMetrics::register(&self.registry, reasons)
    }

    /// Notes how long a change took from the source to the data path.
    pub fn observe_latency(&self, latency: Duration) {
        self.event_to_data_path.observe(latency.as_secs_f64());
    }

    /// Lets a counter of the kernel's, which may start anew with its device, show in one of ours.
    pub fn follow(counter: &IntCounter, seen: &mut u64, now: u64) {
        counter.inc_by(now.checked_sub(*seen).unwrap_or(now));
        *seen = now;
    }

    /// Counts packets that the kernel has kept out of its tunnel, or counted only, in the order of [`guard::REASONS`].
    /// Returns how many there were by now.
    pub fn count_refused_by_kernel(&self, more: [u64; 2]) -> [u64; 2] {
        self.refused_by_kernel.iter().zip(more).for_each(|(counter, more)| counter.inc_by(more));
        self.refused_by_kernel.each_ref().map(IntCounter::get)
    }

    /// The page that Prometheus scrapes.
    pub fn render(&self) -> Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).context("cannot encode metrics")?;
        String::from_utf8(text).context("metrics are no UTF-8")
    }
}

/// Reads the lanes at each scrape; nothing is counted twice.
struct DataPath {
    shared: Arc<Shared>,
    refused_by_kernel: [IntCounter; 2],
    /// What the kernel refused it dropped, rather than counted only.
    enforced: bool,
}

impl DataPath {
    /// What the kernel refused for a reason, if that is what it did.
    fn refused(&self, dropped: bool, lane: &str, reason: DropReason) -> u64 {
        let at = guard::REASONS.iter().position(|name| *name == reason.as_str());
        let count = at.filter(|_| lane == "rx" && dropped == self.enforced);
        count.map_or(0, |at| self.refused_by_kernel[at].get())
    }
}

impl Collector for DataPath {
    fn desc(&self) -> Vec<&Desc> {
        // Nothing to check for consistency: the families are made afresh at each scrape.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let lanes = [("tx", &self.shared.tx), ("rx", &self.shared.rx)];
        let each = |read: fn(&Lanes) -> u64| {
            lanes.iter().map(|(name, lane)| counter(&[("direction", name)], read(lane))).collect()
        };
        let by_reason = |read: fn(&Lanes, DropReason) -> u64, dropped: bool| {
            let pairs =
                lanes.iter().flat_map(|lane| DropReason::ALL.iter().map(move |reason| (lane, *reason)));
            pairs
                .map(|((name, lane), reason)| {
                    let count = read(lane, reason) + self.refused(dropped, name, reason);
                    counter(&[("direction", name), ("reason", reason.as_str())], count)
                })
                .collect()
        };
        vec![
            family("loden_packets_total", "Inner packets carried", MetricType::COUNTER, each(Lanes::packets)),
            family(
                "loden_bytes_total",
                "Bytes of inner packets carried",
                MetricType::COUNTER,
                each(Lanes::bytes),
            ),
            family(
                "loden_drops_total",
                "Packets dropped by the daemon or by its rules before the kernel's tunnel, by reason",
                MetricType::COUNTER,
                by_reason(Lanes::drops, true),
            ),
            family(
                "loden_source_check_flagged_total",
                "Packets delivered that SourceCheck enforce would have dropped",
                MetricType::COUNTER,
                by_reason(Lanes::flagged, false),
            ),
            family(
                "loden_icmp_errors_sent_total",
                "ICMP errors written back to pods that sent what cannot be carried",
                MetricType::COUNTER,
                each(Lanes::answers),
            ),
            family(
                "loden_queue_packets_total",
                "Inner packets carried by each thread of the data path",
                MetricType::COUNTER,
                lanes.iter().flat_map(|(name, lanes)| by_queue(name, lanes)).collect(),
            ),
            family(
                "loden_offload_active",
                "1 for each offload that the data path uses now",
                MetricType::GAUGE,
                Feature::ALL.map(|feature| offload(feature, self.shared.offloads.active())).to_vec(),
            ),
            family(
                "loden_batch_packets",
                "Packets taken per batch",
                MetricType::HISTOGRAM,
                lanes.iter().map(|(name, lane)| batches(name, lane)).collect(),
            ),
        ]
    }
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
    let label = |(name, value): &(&str, &str)| {
        let mut label = LabelPair::default();
        label.set_name((*name).into());
        label.set_value((*value).into());
        label
    };
    pairs.iter().map(label).collect()
}

fn counter(pairs: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = Metric::from_label(labels(pairs));
    let mut counter = prometheus::proto::Counter::default();
    // Exact up to 2^53 packets, which a 100 Gb/s link needs decades for.
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

fn by_queue(direction: &str, lanes: &Lanes) -> Vec<Metric> {
    let labelled = lanes
        .by_queue()
        .enumerate()
        .map(|(queue, packets)| counter(&[("direction", direction), ("queue", &queue.to_string())], packets));
    labelled.collect()
}

fn offload(feature: Feature, active: Features) -> Metric {
    let mut metric = Metric::from_label(labels(&[("offload", feature.as_str())]));
    let mut gauge = prometheus::proto::Gauge::default();
    gauge.set_value(f64::from(u8::from(active.has(feature))));
    metric.set_gauge(gauge);
    metric
}

fn batches(direction: &str, lane: &Lanes) -> Metric {
    let mut total = 0;
    let buckets = BATCH_BOUNDS.iter().zip(lane.batches()).map(|(bound, count)| {
        total += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound as f64);
        bucket.set_cumulative_count(total);
        bucket
    });
    let mut histogram = prometheus::proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(total);
    histogram.set_sample_sum(lane.received() as f64);
    let mut metric = Metric::from_label(labels(&[("direction", direction)]));
    metric.set_histogram(histogram);
    metric
}
