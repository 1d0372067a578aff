//! What people and machines can see of the daemon: logs and metrics.

pub mod api;
pub mod log;
pub mod metrics;
pub mod peers;
pub mod refusals;
