//! A watch on a thread of its own.
//!
//! The thread has nothing but this watch and its connection, so it can rest while heartbeats pile up without keeping
//! anything else waiting, and only what is news wakes the thread that everything else lives on.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::runtime;
use tokio::sync::mpsc;

use super::client::Api;
use super::rest::Rest;
use super::sync::Kind;
use super::watch::{Seen, Watcher};
use crate::adapter::tasks::{self, Tasks};
use crate::lease::FromProtobuf;
use crate::ports::News;
use crate::telemetry::api::ApiMetrics;

/// News that may lie there unread; then the thread waits.
const ROOM: usize = 256;

/// Hears what is said of objects of one kind.
pub(super) struct Aside<F> {
    said: mpsc::Receiver<(News<F>, Instant)>,
}

impl<F: Send + 'static> Aside<F> {
    /// Begins to watch. What is older than the version in `seen` will be doubted.
    ///
    /// # Errors
    /// There is no thread to be had, or no way to the server.
    pub(super) fn watch<K>(kind: K, seen: Seen, api: &Api, metrics: ApiMetrics, tasks: &Tasks) -> Result<Self>
    where
        K: Kind<Object: FromProtobuf, Facts = F> + Send + 'static,
    {
        let rest = Arc::new(Rest::default());
        let resting = Arc::clone(&rest);
        let runtime = runtime::Builder::new_current_thread()
            .on_thread_park(move || resting.before_waiting())
            .enable_all()
            .build()
            .context("cannot start an asynchronous runtime")?;
        let entered = runtime.enter();
        let watcher = Watcher::new(kind, seen, api.apart()?, metrics, rest);
        drop(entered);
        let (say, said) = mpsc::channel(ROOM);
        let name = format!("watch-{}", K::PLURAL.to_lowercase());
        let named = name.clone();
        tasks.thread(&name, move || runtime.block_on(tasks::run(&named, follow(watcher, say))))?;
        Ok(Self { said })
    }

    /// Waits for the next thing that is said, and says when it came. Nothing is lost if this is dropped.
    pub(super) async fn next(&mut self) -> (News<F>, Instant) {
        if let Some(said) = self.said.recv().await {
            return said;
        }
        // The thread has ended. That is a matter of the whole daemon, which hears of it by its name.
        std::future::pending().await
    }
}

/// Until nobody listens any more.
async fn follow<K: Kind<Object: FromProtobuf>>(
    mut watcher: Watcher<K>,
    say: mpsc::Sender<(News<K::Facts>, Instant)>,
) {
    while say.send(watcher.next().await).await.is_ok() {}
}
