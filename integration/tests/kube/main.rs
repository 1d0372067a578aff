//! Leases from a real API server, and everything that can go wrong between it and the daemon.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod kube_address;
mod kube_cold;
mod kube_credentials;
mod kube_events;
mod kube_families;
mod kube_faults;
mod kube_map;
mod kube_misbehaves;
mod kube_moves;
mod kube_own_node;
mod kube_pods;
mod kube_start;
mod takeover;

integration::group!(
    kube_start,
    kube_own_node,
    kube_map,
    kube_events,
    kube_moves,
    kube_address,
    kube_pods,
    kube_families,
    kube_faults,
    kube_misbehaves,
    kube_cold,
    kube_credentials,
    takeover
);
