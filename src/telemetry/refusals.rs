//! A line in the log when the source check drops datagrams.
//!
//! The data path must not log, so it leaves the last refused sender beside its counters. A flood of strangers makes one
//! line a minute. NAT between nodes looks the same from here, and the line names the address that gives it away.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use encap::DropReason;

use crate::dataplane::Lanes;

/// The shortest time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

const REASONS: [DropReason; 2] = [DropReason::UnknownSender, DropReason::SpoofedSource];

/// What was said last.
#[derive(Debug, Default)]
pub struct Refusals {
    counted: [u64; 2],
    said: Option<Instant>,
}

impl Refusals {
    /// The line that is due now, if any.
    pub fn look(&mut self, rx: &Lanes, now: Instant) -> Option<String> {
        let counts = REASONS.map(|reason| rx.drops(reason));
        self.due(counts, rx.last_refused(), now)
    }

    /// The line that is due now, if any: `counts` of unknown senders and of spoofed sources so far, the last `from`.
    pub fn due(&mut self, counts: [u64; 2], from: Option<IpAddr>, now: Instant) -> Option<String> {
        let recently = self.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE);
        if counts == self.counted || recently {
            return None;
        }
        let news = REASONS.iter().zip(counts).zip(self.counted).filter(|((_, now), before)| now > before);
        let parts: Vec<String> = news
            .map(|((reason, now), before)| format!("{} {reason} ({})", now - before, reason.help()))
            .collect();
        self.counted = counts;
        self.said = Some(now);
        let from = from.map_or_else(String::new, |from| format!(", the last from {from}"));
        Some(format!("datagrams refused{from}: {}", parts.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn one_line_a_minute_with_address_count_and_remedy() {
        let start = Instant::now();
        let from = Some(IpAddr::from([192, 0, 2, 66]));
        let mut refusals = Refusals::default();
        assert_eq!(refusals.due([0, 0], None, start), None);
        let line = refusals.due([3, 0], from, start).unwrap();
        for part in ["192.0.2.66", "3 unknown_sender", "NAT"] {
            assert!(line.contains(part), "{line}");
        }
        assert_eq!(refusals.due([9, 1], from, start + Duration::from_secs(59)), None);
        let line = refusals.due([9, 1], from, start + Duration::from_secs(61)).unwrap();
        assert!(line.contains("6 unknown_sender") && line.contains("1 spoofed_source"), "{line}");
        assert_eq!(refusals.due([9, 1], from, start + Duration::from_secs(200)), None);
    }
}
