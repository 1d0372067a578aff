//! The tunnel in the daemon's own process: its device, its offloads, and what it refuses.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod forged_mtu;
mod injection;
mod offload;
mod udp_backend;
mod vxlan_userspace;

integration::group!(udp_backend, vxlan_userspace, offload, injection, forged_mtu);
