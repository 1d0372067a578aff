//! The watch of all objects of a [`Kind`]: carries out what [`Sync`] asks for.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fastrand::Rng;
use tokio::sync;
use tracing::debug;

use super::client::Api;
use super::rest::Rest;
use super::sync::{Ask, Kind, Sync};
use super::trouble::Trouble;
use super::wire::Events;
use crate::lease::FromProtobuf;
use crate::ports::News;
use crate::telemetry::api::ApiMetrics;

/// The newest version that was seen; shared by clones.
pub type Seen = Arc<sync::watch::Sender<Option<String>>>;

/// Lists and watches, and says what is new.
pub(super) struct Watcher<K: Kind> {
    sync: Sync<K>,
    api: Api,
    metrics: ApiMetrics,
    watch: Option<Events>,
    seen: Seen,
    rest: Arc<Rest>,
}

impl<K: Kind<Object: FromProtobuf>> Watcher<K> {
    /// Nothing is asked before the first [`Watcher::next`]. What is older than the version in `seen` will be doubted.
    pub(super) fn new(kind: K, seen: Seen, api: Api, metrics: ApiMetrics, rest: Arc<Rest>) -> Self {
        let sync = Sync::new(kind, seen.borrow().clone(), Rng::new());
        Self { sync, api, metrics, watch: None, seen, rest }
    }

    /// Waits for the next thing to say, and says when it came. What was begun is lost if this is dropped.
    pub(super) async fn next(&mut self) -> (News<K::Facts>, Instant) {
        loop {
            let step = self.sync.next(Instant::now());
            if !matches!(step.ask, Ask::Read(_)) {
                self.watch = None;
            }
            if !step.pause.is_zero() {
                tokio::time::sleep(step.pause).await;
            }
            let news = self.ask(step.ask).await.unwrap_or_else(|trouble| self.failed(&trouble));
            self.seen.send_if_modified(|seen| {
                let modified = seen.as_deref() != self.sync.seen();
                if modified {
                    *seen = self.sync.seen().map(str::to_owned);
                }
                modified
            });
            self.rest.allow(news.is_none() && self.sync.follows());
            let Some(news) = news else { continue };
            let news = match news {
                News::Trouble(text) => News::Trouble(self.api.describe(&text)),
                news => news,
            };
            let now = Instant::now();
            return (news, now.checked_sub(self.rest.waited()).unwrap_or(now));
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Option<News<K::Facts>>, Trouble> {
        match ask {
            Ask::Watch { version, whole, lasts } => {
                debug!(version, whole, seconds = lasts.as_secs(), "watching {}", K::PLURAL);
                self.watch = Some(self.api.watch(K::COLLECTION, &version, whole, lasts).await?);
                self.metrics.heard(SystemTime::now());
                self.sync.opened(Instant::now());
                Ok(None)
            }
            Ask::Page(next) => {
                let page = self.api.page(K::COLLECTION, next).await?;
                self.metrics.heard(SystemTime::now());
                self.sync.page(page, Instant::now())
            }
            Ask::Version => {
                let version = self.api.version(K::COLLECTION).await?;
                self.metrics.heard(SystemTime::now());
                self.sync.reaches(&version);
                Ok(None)
            }
            Ask::Read(patience) => {
                let Some(watch) = &mut self.watch else { return self.sync.ended(Instant::now()) };
                let said = tokio::select! {
                    said = tokio::time::timeout(patience, watch.next()) => said,
                    () = self.api.given_up() => Ok(None),
                };
                match said {
                    Err(_) => self.sync.silent(),
                    Ok(None) => self.sync.ended(Instant::now()),
                    Ok(Some(Err(trouble))) => Err(trouble),
                    Ok(Some(Ok(event))) => {
                        self.metrics.heard(SystemTime::now());
                        self.sync.said(event, Instant::now())
                    }
                }
            }
        }
    }

    fn failed(&mut self, trouble: &Trouble) -> Option<News<K::Facts>> {
        self.metrics.restarts.with_label_values(&[trouble.cause.as_str()]).inc();
        debug!(reason = trouble.cause.as_str(), detail = trouble.detail, "the watch of {} ended", K::PLURAL);
        self.sync.failed(trouble, Instant::now())
    }
}
