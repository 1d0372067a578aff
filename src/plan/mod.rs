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
mod object;
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
pub use object::{
    BLACKHOLE_METRIC, Device, Hop, LinkKind, LinkSpec, LinkState, Object, ROUTE_PROTOCOL, Route, RouteKey,
    Vxlan, Wanted,
};
pub use observed::{Observed, Watched};
pub use op::{LinkChange, Op, Stage};
