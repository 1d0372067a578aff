//! What the daemon tells and commands print: the one place for the names of fields.
//!
//! Programs read these names from `-o json`, so a field keeps its name and its meaning; a new one gets a default, so that
//! an answer of an older daemon can still be read. The daemon fills these types and knows nothing of how they look on a
//! terminal; the commands print them and know nothing of where they come from.

mod request;
mod routes;
mod status;
mod verify;

pub use request::Request;
pub use routes::{DropView, PodView, RouteState, RouteView, RoutesPart, RoutesView, Traffic};
pub use status::{ConcernView, StatusView};
pub use verify::{DifferenceView, VerifyPart, VerifyView};
