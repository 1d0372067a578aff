//! Pauses between attempts: growing, and random, so that a cluster's daemons do not come back all at once.

use std::time::Duration;

/// Bounds of a pause. The upper one is how late a change may be applied after an outage.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// The pause before the next attempt.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(SHORTEST)
    }

    /// An attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.0 = SHORTEST;
    }

    /// An attempt failed: how long to wait now, between half and all of a time that doubles up to five seconds.
    pub(super) fn pause(&mut self) -> Duration {
        let bound = self.0;
        self.0 = (bound * 2).min(LONGEST);
        bound.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_start_over_after_a_success() {
        let mut backoff = Backoff::new();
        let mut bound = SHORTEST;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} of {bound:?}");
            bound = (bound * 2).min(LONGEST);
        }
        assert_eq!(bound, LONGEST);
        backoff.reset();
        assert!(backoff.pause() <= SHORTEST);
    }
}
