//! How often packet threads may end before the daemon gives up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A packet thread that ends more often than [`MOST`] times in this time will not be helped by another start.
const WINDOW: Duration = Duration::from_secs(60);

/// So many ends in [`WINDOW`] are followed by another start.
const MOST: usize = 3;

/// The ends within the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Notes an end at `now`, and says whether there may be another start.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        self.0.retain(|end| now.saturating_duration_since(*end) < WINDOW);
        self.0.push_back(now);
        self.0.len() <= MOST
    }

    /// Whether none has ended within the last [`WINDOW`].
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        self.0.back().is_none_or(|end| now.saturating_duration_since(*end) >= WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn the_fourth_end_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut restarts = Restarts::default();
        let allowed: Vec<bool> =
            [0, 10, 20, 61, 62, 71, 140].into_iter().map(|second| restarts.allow(at(second))).collect();
        assert_eq!(allowed, [true, true, true, true, false, false, true]);
        assert!(!restarts.is_quiet(at(199)) && restarts.is_quiet(at(200)));
    }
}
