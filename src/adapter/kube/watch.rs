//! The watch of all Nodes: what it says becomes lease events, and however it ends, it goes on.
//!
//! It begins with a streaming list (a watch that first sends everything there is, for which the server needs little
//! memory), or page by page where the server refuses that, as it does on an etcd before 3.4.31 and 3.5.13. After a break
//! it goes on from the last version seen, so that nothing is missed and nothing sent twice; only when the server does not
//! remember that version (410) is everything read anew.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{self, Stream, StreamExt as _};
use kube::core::WatchEvent;
use kube::core::watch::Bookmark;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::client::{Api, Events};
use super::trouble::{Cause, Trouble};
use crate::config::AnnotationPrefix;
use crate::lease::{NodeFacts, NodeObject};
use crate::ports::{Arrival, LeaseEvent, LeaseSource};
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

/// A [`LeaseSource`] that watches the Nodes of a cluster.
pub struct KubeNodes {
    /// Holds the future of the next event, so that [`KubeNodes::next`] can be dropped while it waits without losing it.
    arrivals: Pin<Box<dyn Stream<Item = Arrival>>>,
}

impl KubeNodes {
    /// Annotations are taken from under `prefix`. Nothing is asked before the first [`KubeNodes::next`].
    pub fn new(api: Api, prefix: AnnotationPrefix, metrics: ApiMetrics) -> Self {
        let watcher = Watcher {
            api,
            prefix,
            metrics,
            version: None,
            listed: None,
            paged: false,
            watch: None,
            pause: None,
            backoff: Backoff::new(),
            troubled: false,
        };
        let arrivals = stream::unfold(watcher, async |mut watcher| {
            let event = watcher.next().await;
            Some((Arrival { event, at: Instant::now() }, watcher))
        });
        Self { arrivals: Box::pin(arrivals) }
    }
}

impl LeaseSource for KubeNodes {
    async fn next(&mut self) -> Arrival {
        match self.arrivals.next().await {
            Some(arrival) => arrival,
            None => std::future::pending().await,
        }
    }
}

struct Watcher {
    api: Api,
    prefix: AnnotationPrefix,
    metrics: ApiMetrics,
    /// Where to go on; `None` when everything has to be read.
    version: Option<String>,
    /// When everything was last read.
    listed: Option<Instant>,
    /// The server refused a streaming list.
    paged: bool,
    watch: Option<Watch>,
    /// Before the next attempt.
    pause: Option<Duration>,
    backoff: Backoff,
    /// The last word was a [`LeaseEvent::Trouble`].
    troubled: bool,
}

/// A running watch.
struct Watch {
    events: Events,
    until: Instant,
    proven: bool,
}

impl Watcher {
    async fn next(&mut self) -> LeaseEvent {
        loop {
            let step = if self.watch.is_some() { self.follow().await } else { self.begin().await };
            let event = step.unwrap_or_else(|trouble| self.interrupted(&trouble));
            if let Some(event) = event {
                self.troubled = matches!(event, LeaseEvent::Trouble(_));
                return event;
            }
        }
    }

    /// Reads everything if need be, and opens a watch.
    async fn begin(&mut self) -> Result<Option<LeaseEvent>, Trouble> {
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
        debug!(version, initial, seconds = lasts.as_secs(), "watching Nodes");
        let events = self.api.watch(version, initial, lasts).await?;
        self.watch = Some(Watch { events, until: Instant::now() + lasts, proven: false });
        Ok(())
    }

    async fn list(&mut self) -> Result<LeaseEvent, Trouble> {
        let mut nodes = Vec::new();
        let mut next = None;
        let version = loop {
            let page = self.api.page(next).await?;
            self.metrics.heard(SystemTime::now());
            nodes.extend(page.items.into_iter().filter_map(|object| self.facts(object)));
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                break page.metadata.resource_version;
            }
        };
        Ok(self.listed(version, nodes))
    }

    async fn list_by_stream(&mut self) -> Result<LeaseEvent, Trouble> {
        // Any server's cache will do for the first list, and answers at once. Later ones must not be older than what we
        // know already, or nodes that were added meanwhile would lose their leases for a moment.
        let version = if self.listed.is_some() { "" } else { "0" };
        self.open(version, true).await?;
        let mut nodes = BTreeMap::new();
        loop {
            match self.event(LIST_SILENCE).await? {
                WatchEvent::Bookmark(bookmark) if ends_list(&bookmark) => {
                    return Ok(self.listed(bookmark.metadata.resource_version, nodes.into_values().collect()));
                }
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    nodes.extend(self.facts(object).map(|facts| (facts.name.clone(), facts)));
                }
                // Changes of the moment may come before the end of the list.
                WatchEvent::Deleted(object) => drop(nodes.remove(object.name())),
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
        }
    }

    fn listed(&mut self, version: String, nodes: Vec<NodeFacts>) -> LeaseEvent {
        info!(nodes = nodes.len(), server = self.api.url(), "all Nodes are read");
        self.version = Some(version).filter(|version| !version.is_empty());
        self.listed = Some(Instant::now());
        self.accepted();
        LeaseEvent::Reset(nodes)
    }

    /// Waits for the next thing that the running watch says.
    async fn follow(&mut self) -> Result<Option<LeaseEvent>, Trouble> {
        let proven = self.watch.as_ref().is_none_or(|watch| watch.proven);
        let event = match self.event(if proven { SILENCE } else { PROBATION }).await {
            Err(trouble) if !proven && trouble.cause == Cause::Idle => return Ok(self.accepted()),
            event => event?,
        };
        Ok(match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.saw(&object);
                self.facts(object).map(|facts| LeaseEvent::Apply(Box::new(facts)))
            }
            WatchEvent::Deleted(object) => {
                self.saw(&object);
                Some(LeaseEvent::Delete(object.name().to_owned()))
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                self.accepted()
            }
            WatchEvent::Error(status) => return Err(Trouble::status(&status)),
        })
    }

    /// The next event, an error within the watch included among the failures.
    async fn event(&mut self, patience: Duration) -> Result<WatchEvent<NodeObject>, Trouble> {
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

    fn saw(&mut self, object: &NodeObject) {
        if let Some(version) = object.version() {
            self.version = Some(version.to_owned());
        }
        self.accepted();
    }

    /// The server goes along: what it refused before is over.
    fn accepted(&mut self) -> Option<LeaseEvent> {
        self.metrics.heard(SystemTime::now());
        self.backoff.reset();
        if let Some(watch) = &mut self.watch {
            watch.proven = true;
        }
        self.troubled.then_some(LeaseEvent::Restored)
    }

    fn facts(&self, object: NodeObject) -> Option<NodeFacts> {
        match object.facts(&self.prefix) {
            Ok(facts) => Some(facts),
            Err(flaw) => {
                warn!("a Node is left out: {flaw}");
                None
            }
        }
    }

    /// Decides how to go on, and whether that is worth a word.
    fn interrupted(&mut self, trouble: &Trouble) -> Option<LeaseEvent> {
        self.metrics.restarts.with_label_values(&[trouble.cause.as_str()]).inc();
        debug!(reason = trouble.cause.as_str(), detail = trouble.detail, "the watch of Nodes ended");
        let was_running = self.watch.take().is_some_and(|watch| watch.proven);
        let streaming_refused = self.version.is_none() && !self.paged && refuses_streaming(trouble.cause);
        if streaming_refused {
            info!(
                reason = trouble.detail,
                "the API server refuses streaming lists, so Nodes are read page by page"
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
                Some(LeaseEvent::Trouble(self.api.describe(trouble)))
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
