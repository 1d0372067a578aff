//! How often what was heard is put in force.
//!
//! A table is built from the whole map, in a time that grows with the cluster. A change that comes alone is in force at
//! once. In a storm, a whole cluster that starts or is deleted, what comes during one table and the rest after it goes into
//! the next: the work is bounded however many changes come, and none of them waits for more than a moment.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::flow::Flow;
use super::spine::Spine;

/// A rest takes so many times as long as the table before it: four fifths of the time are left for other work.
const SHARE: u32 = 4;
/// However long a table took.
const LONGEST: Duration = Duration::from_millis(50);

/// Puts in force what is heard, for good.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
pub(super) async fn adopt(spine: Rc<Spine>, flow: Rc<Flow>) -> Infallible {
    loop {
        spine.news().await;
        let begun = Instant::now();
        flow.adopt_heard();
        tokio::time::sleep(rest(begun.elapsed())).await;
    }
}

fn rest(took: Duration) -> Duration {
    took.saturating_mul(SHARE).min(LONGEST)
}
