//! The brain of the lower half: what the kernel should hold, and the steps from what it holds now.
//!
//! Pure: [`desired`] turns configuration, leases and what was seen of the external interface into a [`Desired`]
//! state; [`diff`] compares it with what was [`Observed`] and returns ordered [`Op`]s. The reconcile loop runs
//! the same two functions at start, after a change, and when somebody else touched the kernel, so a repair is
//! not a special case.

mod belief;
mod checksum;
mod desired;
mod diff;
pub mod firewall;
mod host;
mod intent;
#[cfg(test)]
pub(crate) mod model;
pub mod object;
mod observed;
mod op;
pub mod verify;

pub use belief::{Announced, Belief, Parts};
pub use checksum::broken_offload;
#[cfg(test)]
pub(crate) use desired::tests::intent as sample_intent;
pub use desired::{Desired, PlanError, desired};
pub use diff::diff;
pub use host::HostFacts;
pub use intent::{ALIAS, Intent, Vtep};
pub use object::link::{LinkChange, LinkKind, LinkSpec, LinkState, Vxlan};
pub use object::route::{BLACKHOLE_METRIC, Hop, ROUTE_PROTOCOL, Route, RouteKey};
pub use object::{Device, Object, Stage, Wanted};
pub use observed::{Observed, Watched};
pub use op::Op;
