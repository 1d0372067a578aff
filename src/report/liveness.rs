//! Whether the daemon should be restarted.

use std::time::{Duration, Instant};

/// A pass over the kernel that takes longer than this is stuck: it consists of a few netlink requests and one `nft`.
const STUCK: Duration = Duration::from_secs(60);

/// Why the daemon should be restarted, if the loop that programs the kernel has been at work on one pass since
/// `busy_since`; `None` while it is not stuck.
pub fn stuck(busy_since: Option<Instant>, now: Instant) -> Option<String> {
    let busy = now.saturating_duration_since(busy_since?);
    (busy > STUCK).then(|| format!("programming the kernel has taken {} s", busy.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn only_a_stuck_loop_fails_liveness() {
        let now = Instant::now();
        assert_eq!(stuck(None, now), None);
        assert_eq!(stuck(Some(now), now + Duration::from_secs(59)), None);
        assert!(stuck(Some(now), now + Duration::from_secs(61)).is_some());
    }
}
