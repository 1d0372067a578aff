//! All that is wrong now, and what is to be logged about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::fold::Fold;
use super::past::Past;
use super::words::lasting;
use super::{Code, Concern, Severity, Subject};

/// Of what is raised or over at once, so many are named in the log; a command names all.
const NAMED: usize = 20;

/// How a line of the log is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something is wrong.
    Warn,
    /// Something is well again.
    Info,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How it is meant.
    pub level: Level,
    /// What it is about; `None` for what is no concern.
    pub code: Option<Code>,
    /// What it says.
    pub text: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Every accepted lease is programmed.
    Ready,
    /// The same, but not everything is well.
    Degraded(String),
    /// Before the first apply, or our own device, socket or programming has failed.
    NotReady(String),
}

impl Readiness {
    /// HTTP status and body, the latter flannel's own words where it has any.
    pub fn answer(&self) -> (u16, String) {
        match self {
            Self::Ready => (200, "flanneld is ready".into()),
            Self::Degraded(worries) => (200, format!("degraded: {worries}")),
            Self::NotReady(reason) => (503, format!("flanneld is not ready yet: {reason}")),
        }
    }
}

type Key = (Code, Subject);

/// A concern on the board.
#[derive(Debug)]
struct Raised {
    concern: Concern,
    since: Instant,
    /// Whether the log has it.
    told: bool,
    /// Whether it says something else by now than the log has.
    reworded: bool,
}

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Board {
    raised: BTreeMap<Key, Raised>,
    /// What was told lately, so that it is not told again at once.
    past: BTreeMap<Key, Past>,
    events: Fold,
    lines: Vec<Line>,
}

impl Board {
    /// Says that something is wrong, or in what way it is wrong now.
    pub fn raise(&mut self, concern: Concern, now: Instant) {
        if self.put(concern.clone(), now) {
            self.warn(concern.code, concern.text);
        }
    }

    /// Says that something is not wrong, or not any more.
    pub fn clear(&mut self, code: Code, subject: &Subject, now: Instant) {
        if let Some(over) = self.remove(&(code, subject.clone()), now) {
            self.lines.push(over);
        }
    }

    /// Raises the concern, or clears what it would be about this node.
    pub fn set(&mut self, code: Code, text: Option<String>, now: Instant) {
        match text {
            Some(text) => self.raise(Concern::new(code, text), now),
            None => self.clear(code, &Subject::Here, now),
        }
    }

    /// Says that of these codes exactly these concerns hold.
    pub fn replace(&mut self, codes: &[Code], concerns: Vec<Concern>, now: Instant) {
        let held: BTreeSet<Key> =
            concerns.iter().map(|concern| (concern.code, concern.subject.clone())).collect();
        let of_codes = |key: &&Key| codes.contains(&key.0) && !held.contains(*key);
        let gone: Vec<Key> = self.raised.keys().filter(of_codes).cloned().collect();
        let over: Vec<Line> = gone.iter().filter_map(|key| self.remove(key, now)).collect();
        let fresh: Vec<Concern> =
            concerns.into_iter().filter(|concern| self.put(concern.clone(), now)).collect();
        let fresh = fresh.into_iter().map(|concern| Line {
            level: Level::Warn,
            code: Some(concern.code),
            text: concern.text,
        });
        self.tell_some(fresh.collect());
        self.tell_some(over);
    }

    /// Says that something happened which is over already. Equal ones are told in one line.
    pub fn happened(&mut self, text: String, now: Instant) {
        self.events.note(text, now);
    }

    /// Sees to what has waited for its time. To be called about once a second.
    pub fn tick(&mut self, now: Instant) {
        let told = self.events.due(now, false);
        self.tell_events(told);
        for (key, past) in &mut self.past {
            let due = past.due(now);
            let raised = self.raised.get_mut(key).filter(|raised| !raised.told || raised.reworded);
            let line = match (due, raised) {
                (Some(said), Some(raised)) => {
                    (raised.told, raised.reworded) = (true, false);
                    Line { level: Level::Warn, code: Some(key.0), text: said }
                }
                (Some(said), None) => {
                    Line { level: Level::Info, code: Some(key.0), text: format!("came and went: {said}") }
                }
                // It has other words by now.
                (None, Some(raised)) if past.changed(now) => {
                    (raised.told, raised.reworded) = (true, false);
                    Line { level: Level::Warn, code: Some(key.0), text: raised.concern.text.clone() }
                }
                (None, _) => continue,
            };
            self.lines.push(line);
        }
        let raised = &self.raised;
        self.past.retain(|key, past| raised.contains_key(key) || !past.is_forgotten(now));
    }

    /// Tells what still waits, at the end of the daemon.
    pub fn finish(&mut self, now: Instant) {
        let told = self.events.due(now, true);
        self.tell_events(told);
    }

    /// Takes the lines for the log that have come together.
    pub fn lines(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.lines)
    }

    /// All that is wrong now, in the order of codes, and since when.
    pub fn concerns(&self) -> impl Iterator<Item = (&Concern, Instant)> {
        self.raised.values().map(|raised| (&raised.concern, raised.since))
    }

    /// What is the matter in this respect with this subject.
    pub fn text(&self, code: Code, subject: &Subject) -> Option<&str> {
        self.raised.get(&(code, subject.clone())).map(|raised| raised.concern.text.as_str())
    }

    /// What is the matter in this respect with this node.
    pub fn here(&self, code: Code) -> Option<&str> {
        self.text(code, &Subject::Here)
    }

    /// What is the matter in this respect, whatever the subject.
    pub fn texts(&self, code: Code) -> impl Iterator<Item = &str> {
        self.concerns()
            .filter(move |(concern, _)| concern.code == code)
            .map(|(concern, _)| concern.text.as_str())
    }

    /// How many concerns there are of each code and severity; at least a zero for each code's usual severity.
    pub fn counts(&self) -> BTreeMap<(Code, Severity), u64> {
        let mut counts: BTreeMap<_, u64> =
            Code::ALL.iter().map(|code| ((*code, code.severity()), 0)).collect();
        for (concern, _) in self.concerns() {
            *counts.entry((concern.code, concern.severity)).or_default() += 1;
        }
        counts
    }

    /// Whether pods on this node can be served.
    pub fn readiness(&self) -> Readiness {
        let broken = self.told(Severity::Broken);
        if let Some(first) = broken.into_iter().next() {
            return Readiness::NotReady(first);
        }
        let worries = self.told(Severity::Degraded);
        if worries.is_empty() { Readiness::Ready } else { Readiness::Degraded(worries.join("; ")) }
    }

    /// What is as bad as this, code by code. Where many subjects are concerned, the first stands for all.
    fn told(&self, severity: Severity) -> Vec<String> {
        let mut by_code: BTreeMap<Code, Vec<&str>> = BTreeMap::new();
        for (concern, _) in self.concerns().filter(|(concern, _)| concern.severity == severity) {
            by_code.entry(concern.code).or_default().push(&concern.text);
        }
        let told = by_code.into_iter().map(|(code, texts)| match code.called(texts.len()) {
            "" => texts.join("; "),
            called => {
                let first = texts.first().copied().unwrap_or_default();
                format!("{} {called} (see `flanneld routes`): {first}", texts.len())
            }
        });
        told.collect()
    }

    /// Puts it on the board. Whether it is to be told now.
    fn put(&mut self, concern: Concern, now: Instant) -> bool {
        let key = (concern.code, concern.subject.clone());
        if concern.code.over().is_empty() {
            let since = self.raised.get(&key).map_or(now, |raised| raised.since);
            self.raised.insert(key, Raised { concern, since, told: false, reworded: false });
            return false;
        }
        if let Some(raised) = self.raised.get_mut(&key) {
            let same = raised.concern.text == concern.text;
            raised.concern = concern;
            let due = !same && self.past.get_mut(&key).is_none_or(|past| past.changed(now));
            raised.told |= due;
            raised.reworded = !due && (!same || raised.reworded);
            return due;
        }
        let told = match self.past.get_mut(&key) {
            None => {
                self.past.insert(key.clone(), Past::new(now));
                true
            }
            Some(past) => past.again(&concern.text, now),
        };
        self.raised.insert(key, Raised { concern, since: now, told, reworded: false });
        told
    }

    /// Takes it off the board; a line for the log if it was told.
    fn remove(&mut self, key: &Key, now: Instant) -> Option<Line> {
        let raised = self.raised.remove(key)?;
        let over = key.0.over();
        if over.is_empty() || !raised.told {
            return None;
        }
        let lasted = lasting(now.saturating_duration_since(raised.since));
        let text = match &key.1 {
            Subject::Named(name) if *name != raised.concern.text => format!("{name}: {over} after {lasted}"),
            Subject::Named(_) | Subject::Here => format!("{over} after {lasted}"),
        };
        Some(Line { level: Level::Info, code: Some(key.0), text })
    }

    fn warn(&mut self, code: Code, text: String) {
        self.lines.push(Line { level: Level::Warn, code: Some(code), text });
    }

    fn tell_events(&mut self, told: Vec<String>) {
        let lines = told.into_iter().map(|text| Line { level: Level::Warn, code: None, text });
        self.tell_some(lines.collect());
    }

    fn tell_some(&mut self, lines: Vec<Line>) {
        let more = lines.len().saturating_sub(NAMED);
        let level = lines.first().map_or(Level::Info, |line| line.level);
        let code = lines.first().and_then(|line| line.code);
        self.lines.extend(lines.into_iter().take(NAMED));
        if more > 0 {
            let text = format!("and {more} more of this kind (see `flanneld routes`)");
            self.lines.push(Line { level, code, text });
        }
    }
}

#[cfg(test)]
mod tests;
