//! The CNI plugins, started as a container runtime starts them.

#![expect(clippy::disallowed_methods, reason = "tests of the lab are side effects throughout")]

mod cni_daemon;
mod cni_portmap;
mod cni_reference;
mod cni_robust;
mod cni_verbs;

integration::group!(cni_verbs, cni_daemon, cni_reference, cni_portmap, cni_robust);
