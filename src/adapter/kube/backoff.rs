//! Pauses between attempts: random, so that a cluster's daemons do not come back all at once, and never so short that
//! one of them is a burden.

use std::time::Duration;

use fastrand::Rng;

/// No attempt but the first after a success comes earlier than this after the one before.
const SHORTEST: Duration = Duration::from_secs(1);
/// The second pause is at most this long, and so is each that follows unless there are many daemons: it decides how late
/// a change is applied when an outage is over.
const LONG: Duration = Duration::from_secs(2);
/// A first attempt may come at once, but those of several daemons not together.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Each daemon of a cluster adds this much to the time over which all of them come back: an API server sees at most some
/// 170 of them per second.
const SHARE: Duration = Duration::from_millis(6);
/// However many there are.
const LONGEST: Duration = Duration::from_secs(30);

/// The pause before the next attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    crowd: Duration,
}

impl Backoff {
    /// For a daemon that may be alone.
    pub(super) fn new() -> Self {
        Self { failures: 0, crowd: Duration::ZERO }
    }

    /// So many daemons ask the same server.
    pub(super) fn share_with(&mut self, daemons: usize) {
        let daemons = u32::try_from(daemons).unwrap_or(u32::MAX);
        self.crowd = SHARE.saturating_mul(daemons).min(LONGEST);
    }

    /// An attempt succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// An attempt failed, or a connection ended: how long to wait now.
    pub(super) fn pause(&mut self, rng: &mut Rng) -> Duration {
        let doubled = LONG.saturating_mul(1 << self.failures.saturating_sub(1).min(8));
        let (least, most) = match self.failures {
            0 => (Duration::ZERO, AT_ONCE.max(self.crowd)),
            _ => (SHORTEST, doubled.min(LONG.max(self.crowd))),
        };
        self.failures = self.failures.saturating_add(1);
        least + (most - least).mul_f64(rng.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(backoff: &mut Backoff, rng: &mut Rng) -> Vec<Duration> {
        backoff.reset();
        (0..20).map(|_| backoff.pause(rng)).collect()
    }

    #[test]
    fn the_first_comes_soon_and_the_others_once_a_second_or_less() {
        let (mut backoff, mut rng) = (Backoff::new(), Rng::with_seed(1));
        for _ in 0..100 {
            let pauses = pauses(&mut backoff, &mut rng);
            assert!(pauses[0] <= AT_ONCE);
            assert!(pauses[1..].iter().all(|pause| (SHORTEST..=LONG).contains(pause)), "{pauses:?}");
        }
    }

    #[test]
    fn five_thousand_daemons_spread_over_half_a_minute() {
        let (mut backoff, mut rng) = (Backoff::new(), Rng::with_seed(1));
        backoff.share_with(5000);
        let firsts: Vec<_> = (0..5000).map(|_| pauses(&mut backoff, &mut rng)[0].as_secs()).collect();
        for second in 0..30 {
            let together = firsts.iter().filter(|first| **first == second).count();
            assert!((100..250).contains(&together), "{together} come within one second");
        }
        let last = pauses(&mut backoff, &mut rng);
        assert!(last.iter().all(|pause| *pause <= LONGEST), "{last:?}");
    }
}
