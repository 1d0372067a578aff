//! The source of leases, for as long as the daemon runs.

use std::convert::Infallible;
use std::rc::Rc;

use super::concerns::Concerns;
use super::spine::Spine;
use crate::ports::{Arrival, LeaseEvent, LeaseSource};
use crate::report::{Code, Concern};
use crate::telemetry::metrics::Metrics;

/// Takes in all that the source says, for good.
pub(super) async fn follow(
    mut leases: impl LeaseSource,
    spine: Rc<Spine>,
    concerns: Concerns,
    metrics: Rc<Metrics>,
) -> Infallible {
    loop {
        hear(leases.next().await, &spine, &concerns, &metrics);
    }
}

/// Takes in one thing that the source said, and says how the source does.
pub(super) fn hear(arrival: Arrival, spine: &Spine, concerns: &Concerns, metrics: &Metrics) {
    match &arrival.event {
        LeaseEvent::Trouble(text) => {
            concerns.raise(Concern::new(Code::SourceUnreadable, text));
            metrics.source_up.set(0);
        }
        LeaseEvent::Remembered(_, saved) => {
            let text = format!("started from cache, with the nodes of {saved}");
            concerns.raise(Concern::new(Code::StartedFromCache, text));
        }
        _ => {
            concerns.clear(Code::SourceUnreadable);
            concerns.clear(Code::StartedFromCache);
            metrics.source_up.set(1);
        }
    }
    spine.hear(arrival.event, arrival.at);
}
