//! The brain of the lower half: what the kernel should hold, and the steps from what it holds now.
//!
//! Pure: [`desired`] turns configuration, the own lease and the external interface's MTU into a [`Desired`]
//! state; [`diff`] compares it with what was [`Observed`] and returns ordered [`Op`]s. The reconcile loop runs
//! the same two functions at start, after a change, and when somebody else touched the kernel, so a repair is
//! not a special case.

mod desired;
mod diff;
pub mod firewall;

pub use desired::{Desired, Intent, TunnelSpec, desired, tunnel_mtu};
pub use diff::{LinkState, Object, Observed, Op, TunnelState, diff};
