//! What people and machines can see of the daemon: logs, metrics, health.

pub mod api;
pub mod health;
pub mod log;
pub mod metrics;
pub mod peers;
pub mod refusals;
