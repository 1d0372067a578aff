//! Leases from a file of Node manifests, watched for changes.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};

use super::file;
use crate::config::AnnotationPrefix;
use crate::lease::manifest;
use crate::ports::{Arrival, LeaseEvent, LeaseSource};

/// A writer that does not replace the file atomically is given this long to finish.
const SETTLE: Duration = Duration::from_millis(10);

/// How often to look although no event came: a symbolic link may lead to a directory that is not watched.
const SAFETY: Duration = Duration::from_secs(5);

/// A file system that does not answer for so long hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A [`LeaseSource`] that says the whole map again whenever the file's content changes.
pub struct NodesFile {
    path: PathBuf,
    prefix: AnnotationPrefix,
    events: Option<EventStream<Vec<u8>>>,
    /// What was last read, good or bad; `None` before the first look.
    last: Option<Result<String, String>>,
    seen: Seen,
}

impl NodesFile {
    /// Watches the directory of `path`, which sees the file replaced, also through a ConfigMap's symbolic links.
    pub fn new(path: &Path, prefix: AnnotationPrefix) -> Self {
        let events = watch(file::directory(path));
        if let Err(error) = &events {
            tracing::warn!("changes of {} are seen within 5 s instead of at once: {error:#}", path.display());
        }
        Self { path: path.into(), prefix, events: events.ok(), last: None, seen: Seen(None) }
    }

    /// Reads the file; `None` when it says what it said before.
    async fn look(&mut self) -> Option<LeaseEvent> {
        let path = self.path.clone();
        let read = apart(move || file::read(&path, manifest::MAX_BYTES as u64)).await;
        let read = read.and_then(|read| read.map_err(|error| format!("{error:#}")));
        if self.last.as_ref() == Some(&read) {
            return None;
        }
        let trouble = |cause: &dyn Display| LeaseEvent::Trouble(format!("{}: {cause}", self.path.display()));
        let event = match &read {
            Ok(text) => match manifest::decode(text, &self.prefix) {
                Ok(nodes) => LeaseEvent::Reset(nodes),
                Err(error) => trouble(&error),
            },
            Err(error) => trouble(error),
        };
        self.last = Some(read);
        Some(event)
    }

    async fn stamp(&self) -> Seen {
        let path = self.path.clone();
        apart(move || Seen::of(&path)).await.unwrap_or(Seen(None))
    }

    /// Waits until the directory or, looked at now and then, the file itself has changed.
    async fn changed(&mut self) -> Instant {
        loop {
            let event = async {
                match &mut self.events {
                    Some(events) => drop(events.next().await),
                    None => std::future::pending().await,
                }
            };
            if tokio::time::timeout(SAFETY, event).await.is_ok() {
                let at = Instant::now();
                tokio::time::sleep(SETTLE).await;
                self.seen = self.stamp().await;
                return at;
            }
            let now = self.stamp().await;
            if now != self.seen {
                self.seen = now;
                return Instant::now();
            }
        }
    }
}

/// Asks the file system on a thread of its own: one that hangs, as over a network, keeps nobody else waiting.
async fn apart<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let asked = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(ask)).await;
    let late = |_| format!("it cannot be read within {} s: does its file system hang?", PATIENCE.as_secs());
    asked.map_err(late)?.map_err(|error| error.to_string())
}

/// What tells one version of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Seen(Option<(u64, u64, i64, i64, u64)>);

impl Seen {
    fn of(path: &Path) -> Self {
        let meta = std::fs::metadata(path).ok();
        Self(meta.map(|meta| (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len())))
    }
}

impl LeaseSource for NodesFile {
    async fn next(&mut self) -> Arrival {
        let mut at = Instant::now();
        loop {
            if let Some(event) = self.look().await {
                return Arrival { event, at };
            }
            at = self.changed().await;
        }
    }
}

fn watch(directory: &Path) -> Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init().context("cannot start inotify")?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    inotify
        .watches()
        .add(directory, mask)
        .with_context(|| format!("cannot watch {}", directory.display()))?;
    inotify.into_event_stream(vec![0; 4096]).context("cannot read inotify events")
}
