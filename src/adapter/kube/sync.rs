//! What to ask the API server next and what its answers mean: the watch without its connections.
//!
//! - Everything is read by a streaming list (a watch that first sends what there is, for which the server needs little
//!   memory), or page by page where the server refuses that, as it does on an etcd before 3.4.31 and 3.5.13. Either is a
//!   consistent read; resourceVersion=0, which any outdated cache may answer, is never asked for.
//! - After a break the watch goes on from the last version seen. Only when the server does not remember that version
//!   (410) is everything read anew.
//! - Versions of one cluster's objects are numbers that grow (KEP-5504). A list that is not as new as what was seen before
//!   proves nothing, so nobody loses a lease by it: it is read again, page by page, and believed when several readings
//!   agree that history was set back, as it is by a restored etcd. An event that is older than the one before breaks the
//!   server's promise, and everything is read anew. To a watch from a version that a server does not have yet it says
//!   nothing at all (seen of Kubernetes 1.36), so one that was away is asked first how far its history goes.
//! - A watch that has been silent for a while may hang, under a connection that lives. It is replaced by one that ends
//!   soon, which a server announces by a bookmark: so each word or end proves that the server is alive, and a silent
//!   one is found within half a minute. In a large cluster a watch is never silent that long, so this costs nothing there.

mod ask;
mod initial;
mod kind;
mod known;

use std::cmp::Ordering;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use fastrand::Rng;
use kube::core::WatchEvent;
use kube::core::watch::Bookmark;
use tracing::{debug, info, warn};

pub(super) use self::ask::{Ask, Step};
use self::initial::Initial;
pub(super) use self::kind::Kind;
use self::known::Known;
use super::backoff::Backoff;
use super::client::Page;
use super::trouble::{Cause, Trouble};
use crate::ports::News;

/// Seconds that a watch lasts. Random, so that connections spread over API servers again after one was restarted; the
/// client library allows less than 295.
const LASTS: RangeInclusive<u64> = 240..=290;
/// Seconds that a watch lasts where nothing happens. Servers send a bookmark 2 s before the end.
const LASTS_IN_SILENCE: u64 = 15;
/// Milliseconds of silence after which it is worth a question whether the server is there.
const SILENCE: RangeInclusive<u64> = 12_000..=15_000;
/// After the end that a watch was to have.
const GRACE: Duration = Duration::from_secs(2);
/// A server that knows nothing of streaming lists never says where the list ends; and one that hangs says nothing.
const LIST_SILENCE: Duration = Duration::from_secs(10);
/// Everything is read at most this often.
const RELIST: Duration = Duration::from_secs(5);
/// A watch can be refused after it was begun. One that has lived this long was accepted.
const PROBATION: Duration = Duration::from_millis(300);
/// A watch that has lived this long was no failure.
const STEADY: Duration = Duration::from_secs(5);
/// Milliseconds between two pages.
const PAGE_PAUSE: RangeInclusive<u64> = 0..=50;
/// A hundred thousand objects; beyond that somebody plays with us.
const PAGES: u32 = 200;
/// So many lists in a row that are older than what was seen, none older than the one before, are a history that was set
/// back.
pub(super) const READINGS: u32 = 5;
/// A server that starts answers 401 and 403 until it has read its roles. If it goes on for longer, it means it.
const WARM_UP: u32 = 3;
/// A server asks to be left alone for a second, or a minute; longer it will not be believed.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Marks the bookmark that ends the initial part of a streaming list (KEP-3157).
const LIST_END: &str = "k8s.io/initial-events-end";

/// Where we are.
pub(super) struct Sync<K: Kind> {
    kind: K,
    rng: Rng,
    phase: Phase<K::Facts>,
    known: Known,
    /// Where to go on; `None` when everything has to be read.
    at: Option<String>,
    /// The newest version that was ever seen.
    seen: Option<String>,
    /// Lists in a row that were older than that, and the version of the last.
    doubts: u32,
    doubted: String,
    /// The server was away. Another history may have come back.
    unsure: bool,
    /// When everything was last read.
    listed: Option<Instant>,
    /// The streaming list that was just refused is read page by page.
    paged: bool,
    /// Until then streaming lists are not tried again: this server takes long to refuse one.
    no_stream_until: Option<Instant>,
    /// Nothing has happened for a while.
    quiet: bool,
    /// Refusals in a row that may be those of a server that starts.
    refusals: u32,
    /// It was seen to work, or to be away: so it may be starting.
    may_start: bool,
    backoff: Backoff,
    /// The last word was a [`News::Trouble`].
    troubled: bool,
}

enum Phase<F> {
    /// Nothing is open.
    Idle { pause: Duration },
    /// A list is being read page by page.
    Paging { next: String, pages: u32, all: Vec<F> },
    /// A watch was asked for, or its initial part is being read.
    Opening { whole: bool, lasts: Duration, all: Initial<F> },
    /// A watch runs.
    Following { since: Instant, until: Instant, proven: bool, spoke: bool },
}

impl<K: Kind> Sync<K> {
    /// At the beginning: everything has to be read. What is older than `seen` will be doubted.
    pub(super) fn new(kind: K, seen: Option<String>, rng: Rng) -> Self {
        Self {
            kind,
            rng,
            phase: Phase::Idle { pause: Duration::ZERO },
            known: Known::default(),
            at: None,
            seen,
            doubts: 0,
            doubted: String::new(),
            unsure: false,
            listed: None,
            paged: false,
            no_stream_until: None,
            quiet: false,
            refusals: 0,
            may_start: false,
            backoff: Backoff::new(),
            troubled: false,
        }
    }

    /// The newest version that was ever seen.
    pub(super) fn seen(&self) -> Option<&str> {
        self.seen.as_deref()
    }

    /// Everything is known, and changes are waited for.
    pub(super) fn follows(&self) -> bool {
        matches!(self.phase, Phase::Following { .. })
    }

    /// What to do next. Its outcome goes to the one of the functions below that fits.
    pub(super) fn next(&mut self, now: Instant) -> Step {
        match &self.phase {
            Phase::Idle { pause } => {
                let pause = *pause;
                Step { pause, ask: self.begin(now + pause) }
            }
            Phase::Paging { next, .. } => {
                let ask = Ask::Page(Some(next.clone()));
                Step { pause: Duration::from_millis(self.rng.u64(PAGE_PAUSE)), ask }
            }
            Phase::Opening { .. } => Step { pause: Duration::ZERO, ask: Ask::Read(LIST_SILENCE) },
            Phase::Following { until, proven, .. } => {
                let patience = match (proven, self.quiet) {
                    (false, _) => PROBATION,
                    (true, false) => Duration::from_millis(self.rng.u64(SILENCE)),
                    (true, true) => until.saturating_duration_since(now) + GRACE,
                };
                Step { pause: Duration::ZERO, ask: Ask::Read(patience) }
            }
        }
    }

    fn begin(&mut self, now: Instant) -> Ask {
        let streams = !self.paged && self.no_stream_until.is_none_or(|until| now >= until);
        // The reading that is to settle a doubt goes another way than the one that raised it.
        if self.at.is_none() && (!streams || self.doubts > 0) {
            return Ask::Page(None);
        }
        let whole = self.at.is_none();
        if self.unsure && !whole {
            return Ask::Version;
        }
        let seconds = if self.quiet && !whole { LASTS_IN_SILENCE } else { self.rng.u64(LASTS) };
        let lasts = Duration::from_secs(seconds);
        self.phase = Phase::Opening { whole, lasts, all: Initial::new() };
        Ask::Watch { version: self.at.clone().unwrap_or_default(), whole, lasts }
    }

    /// The watch that was asked for is open.
    pub(super) fn opened(&mut self, now: Instant) {
        if let Phase::Opening { whole: false, lasts, .. } = self.phase {
            self.phase = Phase::Following { since: now, until: now + lasts, proven: false, spoke: false };
        }
    }

    /// The server's history goes as far as this.
    pub(super) fn reaches(&mut self, version: &str) {
        self.unsure = false;
        self.phase = Phase::idle();
        if self.at.as_deref().and_then(|at| compare(version, at)) == Some(Ordering::Less) {
            debug!(version, "the history of {} ends before what was seen of it", K::PLURAL);
            self.at = None;
        }
    }

    /// A page has come.
    pub(super) fn page(
        &mut self,
        page: Page<K::Object>,
        now: Instant,
    ) -> Result<Option<News<K::Facts>>, Trouble> {
        let (pages, mut all) = match std::mem::replace(&mut self.phase, Phase::idle()) {
            Phase::Paging { pages, all, .. } => (pages + 1, all),
            _ => (1, Vec::new()),
        };
        all.extend(page.items.into_iter().filter_map(|object| self.kind.facts(object)));
        match page.metadata.next.filter(|next| !next.is_empty()) {
            Some(_) if pages >= PAGES => {
                Err(Trouble::new(Cause::BadAnswer, &format!("a list of {pages} pages without an end")))
            }
            Some(next) => {
                self.phase = Phase::Paging { next, pages, all };
                Ok(None)
            }
            None => {
                self.paged = false;
                self.complete(&page.metadata.resource_version, all, now).map(Some)
            }
        }
    }

    /// The open watch said something.
    pub(super) fn said(
        &mut self,
        event: WatchEvent<K::Object>,
        now: Instant,
    ) -> Result<Option<News<K::Facts>>, Trouble> {
        match (&mut self.phase, event) {
            (_, WatchEvent::Error(status)) => Err(Trouble::status(&status)),
            (Phase::Opening { all, lasts, .. }, WatchEvent::Bookmark(bookmark)) => {
                if !ends_list(&bookmark) {
                    return Ok(None);
                }
                let (all, lasts) = (std::mem::take(all), *lasts);
                let news = self.complete(&bookmark.metadata.resource_version, all.into_facts(), now)?;
                self.phase = Phase::Following { since: now, until: now + lasts, proven: true, spoke: true };
                Ok(Some(news))
            }
            (Phase::Opening { all, .. }, WatchEvent::Deleted(object)) => {
                all.note(K::key(&object), K::version(&object), None);
                Ok(None)
            }
            (Phase::Opening { all, .. }, WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let (key, version) = (K::key(&object), K::version(&object).map(str::to_owned));
                all.note(key, version.as_deref(), self.kind.facts(object));
                Ok(None)
            }
            (_, WatchEvent::Bookmark(bookmark)) => {
                self.advance(Some(&bookmark.metadata.resource_version))?;
                Ok(self.accepted())
            }
            (_, WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                let fresh = self.heard(&object)?;
                let restored = self.accepted();
                let facts = if fresh { self.kind.facts(object) } else { None };
                let news = facts.filter(|facts| self.known.is_news(K::name(facts), facts));
                Ok(news.map(|facts| News::Apply(Box::new(facts))).or(restored))
            }
            (_, WatchEvent::Deleted(object)) => {
                let fresh = self.heard(&object)?;
                let restored = self.accepted();
                let key = K::key(&object);
                if fresh {
                    self.known.forget(&key);
                }
                Ok(fresh.then_some(News::Delete(key)).or(restored))
            }
        }
    }

    /// An event: whether it is another than the last.
    fn heard(&mut self, object: &K::Object) -> Result<bool, Trouble> {
        let fresh = self.advance(K::version(object))?;
        if let Phase::Following { spoke, .. } = &mut self.phase {
            *spoke = true;
        }
        self.quiet = false;
        Ok(fresh)
    }

    /// The watch has come to `version`. `false` if it was there already.
    fn advance(&mut self, version: Option<&str>) -> Result<bool, Trouble> {
        let Some(version) = version.filter(|version| !version.is_empty()) else { return Ok(true) };
        let order = self.seen.as_deref().and_then(|seen| compare(version, seen));
        if order == Some(Ordering::Less) {
            let seen = self.seen.as_deref().unwrap_or_default();
            return Err(Trouble::new(Cause::Disorder, &format!("version {version} after {seen}")));
        }
        self.at = Some(version.to_owned());
        self.seen.clone_from(&self.at);
        Ok(order != Some(Ordering::Equal))
    }

    /// Everything has been read, as of `version`.
    fn complete(
        &mut self,
        version: &str,
        all: Vec<K::Facts>,
        now: Instant,
    ) -> Result<News<K::Facts>, Trouble> {
        if version.is_empty() {
            return Err(Trouble::new(Cause::BadAnswer, "a list without a resourceVersion"));
        }
        if let Some(seen) = &self.seen
            && !compare(version, seen).is_some_and(Ordering::is_ge)
        {
            let agrees = compare(version, &self.doubted).is_none_or(Ordering::is_ge);
            self.doubts = if agrees { self.doubts + 1 } else { 1 };
            version.clone_into(&mut self.doubted);
            if self.doubts < READINGS {
                return Err(Trouble::new(Cause::Stale, &format!("version {version}, seen was {seen}")));
            }
            warn!(version, seen, "history was set back, as by a restored etcd: {READINGS} lists agree");
        }
        info!(count = all.len(), version, "all {} are read", K::PLURAL);
        self.at = Some(version.to_owned());
        self.seen.clone_from(&self.at);
        self.doubts = 0;
        self.unsure = false;
        self.listed = Some(now);
        self.may_start = true;
        // The watch that begins with a list is a long one, and its silence has to be asked about again.
        self.quiet = false;
        self.backoff.share_with(all.len());
        self.phase = Phase::idle();
        self.accepted();
        self.known.reset(all.iter().map(|facts| (K::name(facts), facts)));
        Ok(News::Reset(all))
    }

    /// The server goes along: what it refused before is over.
    fn accepted(&mut self) -> Option<News<K::Facts>> {
        self.refusals = 0;
        if let Phase::Following { proven, .. } = &mut self.phase {
            *proven = true;
        }
        std::mem::take(&mut self.troubled).then_some(News::Restored)
    }

    /// The watch was silent for as long as it was to be read.
    pub(super) fn silent(&mut self) -> Result<Option<News<K::Facts>>, Trouble> {
        match self.phase {
            Phase::Following { proven: false, .. } => Ok(self.accepted()),
            Phase::Following { .. } if !self.quiet => {
                debug!("the watch of {} is silent and is replaced", K::PLURAL);
                self.quiet = true;
                self.phase = Phase::idle();
                Ok(None)
            }
            _ => Err(Trouble::new(Cause::Idle, "")),
        }
    }

    /// The open watch ended without a word.
    pub(super) fn ended(&mut self, now: Instant) -> Result<Option<News<K::Facts>>, Trouble> {
        let agreed = match self.phase {
            Phase::Following { until, .. } => now + GRACE > until,
            _ => false,
        };
        Err(Trouble::new(if agreed { Cause::TimeLimit } else { Cause::Closed }, ""))
    }

    /// Something failed. Decides how to go on, and whether that is worth a word.
    pub(super) fn failed(&mut self, trouble: &Trouble, now: Instant) -> Option<News<K::Facts>> {
        let before = std::mem::replace(&mut self.phase, Phase::idle());
        let (mut ran, mut listing) = (false, false);
        match before {
            Phase::Following { since, proven, spoke, .. } => {
                ran = proven;
                if now.saturating_duration_since(since) >= STEADY {
                    self.backoff.reset();
                }
                self.quiet &= !spoke;
            }
            Phase::Opening { whole, .. } => listing = whole,
            Phase::Idle { .. } | Phase::Paging { .. } => {}
        }
        if listing && refuses_streaming(trouble.cause) {
            info!(
                reason = trouble.detail,
                "the API server refuses streaming lists: {} are read page by page",
                K::PLURAL
            );
            self.paged = true;
            if trouble.cause == Cause::Idle {
                self.no_stream_until = Some(now + Duration::from_secs(3600));
            }
            return None;
        }
        self.paged = false;
        if matches!(trouble.cause, Cause::TimeLimit | Cause::Expired | Cause::Disorder) {
            // It answers, so pauses that grew in an outage do not count.
            self.backoff.reset();
        } else {
            // However a watch ended before its time: a server that was stopped may be another one when it is asked next.
            self.unsure = true;
        }
        if trouble.cause == Cause::TimeLimit {
            return None;
        }
        let pause = self.backoff.pause(&mut self.rng).max(trouble.retry_after.min(LONGEST_REST));
        self.phase = Phase::Idle { pause };
        match trouble.cause {
            Cause::Expired | Cause::Disorder => {
                self.at = None;
                if self.listed.is_some_and(|at| now.saturating_duration_since(at) < RELIST) {
                    self.phase = Phase::Idle { pause: RELIST };
                }
                return None;
            }
            // What cannot be understood would be sent again and again; a list may go around it.
            Cause::BadAnswer if ran => self.at = None,
            _ => {}
        }
        // A server that is stopped ends its watches. Whether that is trouble, the next attempt will tell.
        let expected = match trouble.cause {
            Cause::Closed => ran,
            Cause::Unauthorized | Cause::Forbidden => {
                self.refusals += 1;
                self.may_start && self.refusals < WARM_UP
            }
            _ => false,
        };
        self.may_start |= self.refusals == 0;
        (!expected).then(|| {
            self.troubled = true;
            let mut trouble = trouble.clone();
            if trouble.cause == Cause::Forbidden {
                trouble.remedy = K::FORBIDDEN;
            }
            News::Trouble(trouble.to_string())
        })
    }
}

impl<F> Phase<F> {
    fn idle() -> Self {
        Self::Idle { pause: Duration::ZERO }
    }
}

/// Which of two versions is newer. `None` if they are no numbers: then nobody can tell.
fn compare(one: &str, other: &str) -> Option<Ordering> {
    let number = |text: &str| text.parse::<u64>().ok();
    Some(number(one)?.cmp(&number(other)?))
}

fn ends_list(bookmark: &Bookmark) -> bool {
    bookmark.metadata.annotations.get(LIST_END).is_some_and(|value| value == "true")
}

/// How servers say that they cannot do streaming lists: 400 or 422 where they do not know them, an internal error in the
/// stream where their etcd cannot, and silence after the initial events where they ignore the request for them.
fn refuses_streaming(cause: Cause) -> bool {
    matches!(cause, Cause::Server | Cause::Idle)
}

#[cfg(test)]
mod tests;
