//! Network namespaces, topologies and probes for tests and the demo.

pub mod apiserver;
