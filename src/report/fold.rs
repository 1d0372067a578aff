//! Equal events, of which many are told in one line with a count.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::words::lasting;

/// Events are told once no equal one has come for this long.
const QUIET: Duration = Duration::from_secs(1);
/// Or once the first has waited for this long.
const LONGEST: Duration = Duration::from_secs(10);

/// Events that wait to be told, by what they say.
#[derive(Debug, Default)]
pub(super) struct Fold(BTreeMap<String, Run>);

#[derive(Debug, Clone, Copy)]
struct Run {
    count: u64,
    first: Instant,
    last: Instant,
}

impl Fold {
    /// Notes that `text` happened.
    pub(super) fn note(&mut self, text: String, now: Instant) {
        let run = self.0.entry(text).or_insert(Run { count: 0, first: now, last: now });
        run.count += 1;
        run.last = now;
    }

    /// What is to be told by now; everything, if nothing will be asked again.
    pub(super) fn due(&mut self, now: Instant, everything: bool) -> Vec<String> {
        let due = |_: &String, run: &mut Run| {
            everything
                || now.saturating_duration_since(run.last) >= QUIET
                || now.saturating_duration_since(run.first) >= LONGEST
        };
        self.0.extract_if(.., due).map(|(text, run)| run.told(text)).collect()
    }
}

impl Run {
    fn told(self, text: String) -> String {
        match self.count {
            1 => text,
            count => {
                let time = self.last.saturating_duration_since(self.first).max(Duration::from_secs(1));
                format!("{text} ({count} times in {})", lasting(time))
            }
        }
    }
}
