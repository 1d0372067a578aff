//! The watch of all objects of a [`Kind`]: what it says becomes [`News`], and however it ends, it goes on.
//!
//! It begins with a streaming list (a watch that first sends everything there is, for which the server needs little
//! memory), or page by page where the server refuses that, as it does on an etcd before 3.4.31 and 3.5.13. After a break
//! it goes on from the last version seen, so that nothing is missed and nothing sent twice; only when the server does not
//! remember that version (410) is everything read anew.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::StreamExt as _;
use kube::core::WatchEvent;
use kube::core::watch::Bookmark;
use serde::de::DeserializeOwned;
use tracing::{debug, info};

use super::backoff::Backoff;
use super::client::{Api, Events};
use super::trouble::{Cause, Trouble};
use crate::ports::News;
use crate::telemetry::api::ApiMetrics;

/// Seconds that one watch lasts. Random, so that connections spread over API servers again after one was restarted; the
/// client library allows less than 295.
const LASTS: RangeInclusive<u64> = 240..=290;

/// Bookmarks come every minute or so; a server that is silent for longer than this hangs.
const SILENCE: Duration = Duration::from_secs(200);

/// A server that knows nothing of streaming lists never says where the list ends.
const LIST_SILENCE: Duration = Duration::from_secs(10);

/// Everything is read at most this often.
const RELIST: Duration = Duration::from_secs(5);

/// A watch can be refused after it was begun. One that has lived this long was accepted.
const PROBATION: Duration = Duration::from_millis(300);

/// Marks the bookmark that ends the initial part of a streaming list (KEP-3157).
const LIST_END: &str = "k8s.io/initial-events-end";

/// What is watched: objects of one kind, decoded to what is used of them.
pub(super) trait Kind {
    /// Where the API server has them.
    const PATH: &'static str;
    /// What they are called in the log.
    const PLURAL: &'static str;
    /// One of them as it is decoded.
    type Object: DeserializeOwned + Clone + 'static;
    /// What is said of one.
    type Facts;

    /// What tells it from others of its kind.
    fn key(object: &Self::Object) -> String;
    /// `metadata.resourceVersion`.
    fn version(object: &Self::Object) -> Option<&str>;
    /// What matters of it; `None`, with a word in the log, if it is not what it should be.
    fn facts(&self, object: Self::Object) -> Option<Self::Facts>;
}

/// Lists and watches, and says what is new.
pub(super) struct Watcher<K: Kind> {
    kind: K,
    api: Api,
    metrics: ApiMetrics,
    /// Where to go on; `None` when everything has to be read.
    version: Option<String>,
    /// When everything was last read.
    listed: Option<Instant>,
    /// The server refused a streaming list.
    paged: bool,
    watch: Option<Watch<K::Object>>,
    /// Before the next attempt.
    pause: Option<Duration>,
    backoff: Backoff,
    /// The last word was a [`News::Trouble`].
    troubled: bool,
}

/// A running watch.
struct Watch<T> {
    events: Events<T>,
    until: Instant,
    proven: bool,
}

impl<K: Kind> Watcher<K> {
    /// Nothing is asked before the first [`Watcher::next`].
    pub(super) fn new(kind: K, api: Api, metrics: ApiMetrics) -> Self {
        Self {
            kind,
            api,
            metrics,
            version: None,
            listed: None,
            paged: false,
            watch: None,
            pause: None,
            backoff: Backoff::new(),
            troubled: false,
        }
    }

    /// Waits for the next thing to say. What was begun is lost if this is dropped.
    pub(super) async fn next(&mut self) -> News<K::Facts> {
        loop {
            let step = if self.watch.is_some() { self.follow().await } else { self.begin().await };
            let event = step.unwrap_or_else(|trouble| self.interrupted(&trouble));
            if let Some(event) = event {
                self.troubled = matches!(event, News::Trouble(_));
                return event;
            }
        }
    }

    /// Reads everything if need be, and opens a watch.
    async fn begin(&mut self) -> Result<Option<News<K::Facts>>, Trouble> {
        if let Some(pause) = self.pause.take() {
            tokio::time::sleep(pause).await;
        }
        match self.version.clone() {
            Some(version) => {
                self.open(&version, false).await?;
                Ok(None)
            }
            None if self.paged => self.list().await.map(Some),
            None => self.list_by_stream().await.map(Some),
        }
    }

    async fn open(&mut self, version: &str, initial: bool) -> Result<(), Trouble> {
        let lasts = Duration::from_secs(fastrand::u64(LASTS));
        debug!(version, initial, seconds = lasts.as_secs(), "watching {}", K::PLURAL);
        let events = self.api.watch(K::PATH, version, initial, lasts).await?;
        self.watch = Some(Watch { events, until: Instant::now() + lasts, proven: false });
        Ok(())
    }

    async fn list(&mut self) -> Result<News<K::Facts>, Trouble> {
        let mut all = Vec::new();
        let mut next = None;
        let version = loop {
            let page = self.api.page(K::PATH, next).await?;
            self.metrics.heard(SystemTime::now());
            all.extend(page.items.into_iter().filter_map(|object| self.kind.facts(object)));
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                break page.metadata.resource_version;
            }
        };
        Ok(self.listed(version, all))
    }

    async fn list_by_stream(&mut self) -> Result<News<K::Facts>, Trouble> {
        // Any server's cache will do for the first list, and answers at once. Later ones must not be older than what we
        // know already, or what was added meanwhile would be gone for a moment.
        let version = if self.listed.is_some() { "" } else { "0" };
        self.open(version, true).await?;
        let mut all = BTreeMap::new();
        loop {
            match self.event(LIST_SILENCE).await? {
                WatchEvent::Bookmark(bookmark) if ends_list(&bookmark) => {
                    return Ok(self.listed(bookmark.metadata.resource_version, all.into_values().collect()));
                }
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    let key = K::key(&object);
                    all.extend(self.kind.facts(object).map(|facts| (key, facts)));
                }
                // Changes of the moment may come before the end of the list.
                WatchEvent::Deleted(object) => drop(all.remove(&K::key(&object))),
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
        }
    }

    fn listed(&mut self, version: String, all: Vec<K::Facts>) -> News<K::Facts> {
        info!(count = all.len(), server = self.api.url(), "all {} are read", K::PLURAL);
        self.version = Some(version).filter(|version| !version.is_empty());
        self.listed = Some(Instant::now());
        self.accepted();
        News::Reset(all)
    }

    /// Waits for the next thing that the running watch says.
    async fn follow(&mut self) -> Result<Option<News<K::Facts>>, Trouble> {
        let proven = self.watch.as_ref().is_none_or(|watch| watch.proven);
        let event = match self.event(if proven { SILENCE } else { PROBATION }).await {
            Err(trouble) if !proven && trouble.cause == Cause::Idle => return Ok(self.accepted()),
            event => event?,
        };
        Ok(match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.saw(&object);
                self.kind.facts(object).map(|facts| News::Apply(Box::new(facts)))
            }
            WatchEvent::Deleted(object) => {
                self.saw(&object);
                Some(News::Delete(K::key(&object)))
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                self.accepted()
            }
            WatchEvent::Error(status) => return Err(Trouble::status(&status)),
        })
    }

    /// The next event, an error within the watch included among the failures.
    async fn event(&mut self, patience: Duration) -> Result<WatchEvent<K::Object>, Trouble> {
        let Some(watch) = &mut self.watch else { return Err(Trouble::new(Cause::Closed, "")) };
        let event = match tokio::time::timeout(patience, watch.events.next()).await {
            Err(_) => return Err(Trouble::new(Cause::Idle, &format!("{} s", patience.as_secs()))),
            Ok(None) if Instant::now() + Duration::from_secs(2) > watch.until => {
                return Err(Trouble::new(Cause::TimeLimit, ""));
            }
            Ok(None) => return Err(Trouble::new(Cause::Closed, "")),
            Ok(Some(Err(error))) => return Err(Trouble::of(&error)),
            Ok(Some(Ok(WatchEvent::Error(status)))) => return Err(Trouble::status(&status)),
            Ok(Some(Ok(event))) => event,
        };
        self.metrics.heard(SystemTime::now());
        Ok(event)
    }

    fn saw(&mut self, object: &K::Object) {
        if let Some(version) = K::version(object) {
            self.version = Some(version.to_owned());
        }
        self.accepted();
    }

    /// The server goes along: what it refused before is over.
    fn accepted(&mut self) -> Option<News<K::Facts>> {
        self.metrics.heard(SystemTime::now());
        self.backoff.reset();
        if let Some(watch) = &mut self.watch {
            watch.proven = true;
        }
        self.troubled.then_some(News::Restored)
    }

    /// Decides how to go on, and whether that is worth a word.
    fn interrupted(&mut self, trouble: &Trouble) -> Option<News<K::Facts>> {
        self.metrics.restarts.with_label_values(&[trouble.cause.as_str()]).inc();
        debug!(reason = trouble.cause.as_str(), detail = trouble.detail, "the watch of {} ended", K::PLURAL);
        let was_running = self.watch.take().is_some_and(|watch| watch.proven);
        let streaming_refused = self.version.is_none() && !self.paged && refuses_streaming(trouble.cause);
        if streaming_refused {
            info!(
                reason = trouble.detail,
                "the API server refuses streaming lists, so {} are read page by page",
                K::PLURAL
            );
            self.paged = true;
            return None;
        }
        match trouble.cause {
            Cause::TimeLimit => None,
            Cause::Expired => {
                self.version = None;
                // The server answers, so pauses that grew in an outage do not count; only one that forgets at once does.
                let just_listed = self.listed.is_some_and(|at| at.elapsed() < RELIST);
                self.pause = Some(if just_listed { RELIST } else { Backoff::new().pause() });
                None
            }
            // A server that is stopped ends its watches. Whether that is trouble, the next attempt will tell.
            Cause::Closed if was_running => {
                self.pause = Some(self.backoff.pause());
                None
            }
            _ => {
                self.pause = Some(self.backoff.pause().max(trouble.retry_after));
                Some(News::Trouble(self.api.describe(trouble)))
            }
        }
    }
}

fn ends_list(bookmark: &Bookmark) -> bool {
    bookmark.metadata.annotations.get(LIST_END).is_some_and(|value| value == "true")
}

/// How servers say that they cannot do streaming lists: 400 or 422 where they do not know them, an internal error in the
/// stream where their etcd cannot, and silence after the initial events where they ignore the request for them.
fn refuses_streaming(cause: Cause) -> bool {
    matches!(cause, Cause::Server | Cause::Idle)
}
