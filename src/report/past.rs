//! What comes and goes again and again is told in few lines.

use std::time::{Duration, Instant};

use super::words::lasting;

/// What was told stays untold for this long at first, and for twice as long each time it has come again meanwhile.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// So often it is told at once all the same: new words of something are news, and somebody may be mending it.
const AT_ONCE: u8 = 3;

/// When something was last told, and how often it has come since.
#[derive(Debug, Clone)]
pub(super) struct Past {
    told: Instant,
    pause: Duration,
    /// How often it was told at once since it was quiet.
    at_once: u8,
    /// How often it came without being told.
    untold: u64,
    /// What it said last.
    text: String,
}

impl Past {
    /// Told for the first time.
    pub(super) fn new(now: Instant) -> Self {
        Self { told: now, pause: PAUSE.0, at_once: 1, untold: 0, text: String::new() }
    }

    /// It came again. Whether that is to be told at once.
    pub(super) fn again(&mut self, text: &str, now: Instant) -> bool {
        if self.changed(now) {
            return true;
        }
        self.untold += 1;
        text.clone_into(&mut self.text);
        false
    }

    /// It says something else than it was told. Whether that is to be told at once.
    pub(super) fn changed(&mut self, now: Instant) -> bool {
        if self.untold == 0 && self.is_over(now) {
            *self = Self::new(now);
            return true;
        }
        let at_once = self.untold == 0 && self.at_once < AT_ONCE;
        if at_once {
            self.at_once += 1;
            self.told = now;
        }
        at_once
    }

    /// The pause is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.told) >= self.pause
    }

    /// How often it came during the pause that is over now, in words with what it said; `None` while the pause lasts or
    /// if it did not come.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        if self.untold == 0 || !self.is_over(now) {
            return None;
        }
        let times =
            if self.untold == 1 { "once more".to_owned() } else { format!("{} times more", self.untold) };
        let said =
            format!("{} ({times} in {})", self.text, lasting(now.saturating_duration_since(self.told)));
        self.told = now;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.untold = 0;
        Some(said)
    }

    /// Nothing is left that anybody would miss.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        self.untold == 0 && self.is_over(now)
    }
}
