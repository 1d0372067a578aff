//! What a listener needs that strangers can reach: a thread of its own, so that they cannot hold up anything else, and a
//! bounded number of clients.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::runtime;
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::Instant;

use super::tasks::{self, Ending, Tasks};

/// Runs `work` on a thread of its own with a runtime of its own.
///
/// # Errors
/// There is no thread or no runtime to be had.
pub(super) fn on_own_thread<F>(
    tasks: &Tasks,
    name: &'static str,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<()>
where
    F: Future<Output: Ending>,
{
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start an asynchronous runtime")?;
    let run = move || LocalSet::new().block_on(&runtime, tasks::run(name, async { work().await }));
    tasks.thread(name, run).map(drop)
}

/// When a client last made progress.
#[derive(Debug, Clone)]
pub(super) struct Progress(Rc<Cell<Instant>>);

impl Progress {
    /// It did just now.
    pub(super) fn note(&self) {
        self.0.set(Instant::now());
    }
}

/// A bounded number of clients, each served by a task. If one more comes, one has to go: of whoever has most clients here
/// the one that made no progress for longest. So somebody who opens thousands of connections only takes them from himself.
pub(super) struct Clients<Who> {
    name: &'static str,
    limit: usize,
    tasks: JoinSet<()>,
    served: Vec<Client<Who>>,
}

struct Client<Who> {
    who: Who,
    progress: Progress,
    task: AbortHandle,
}

impl<Who: PartialEq> Clients<Who> {
    /// Room for `limit` clients, at least one. Their tasks have this name.
    pub(super) fn new(name: &'static str, limit: usize) -> Self {
        Self { name, limit: limit.max(1), tasks: JoinSet::new(), served: Vec::new() }
    }

    /// Serves one more client with what `serve` makes of its [`Progress`].
    pub(super) async fn admit<F>(&mut self, who: Who, serve: impl FnOnce(Progress) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        self.served.retain(|client| !client.task.is_finished());
        if self.served.len() >= self.limit
            && let Some(victim) = self.victim()
        {
            let victim = self.served.swap_remove(victim);
            victim.task.abort();
            // Its connection is closed before the next one is served, so there are never more than `limit`.
            while !victim.task.is_finished() && self.tasks.join_next().await.is_some() {}
        }
        let progress = Progress(Rc::new(Cell::new(Instant::now())));
        let task = self.tasks.spawn_local(tasks::short(self.name, serve(progress.clone())));
        self.served.push(Client { who, progress, task });
    }

    fn victim(&self) -> Option<usize> {
        let of = |who: &Who| self.served.iter().filter(|client| client.who == *who).count();
        let most = self.served.iter().map(|client| of(&client.who)).max()?;
        let candidates = self.served.iter().enumerate().filter(|(_, client)| of(&client.who) == most);
        candidates.min_by_key(|(_, client)| client.progress.0.get()).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_loses_the_one_that_waits_longest() {
        let served = async {
            let mut clients = Clients::new("client", 3);
            let kept = Rc::new(Cell::new(None));
            for who in ["pod", "node", "pod"] {
                clients
                    .admit(who, |progress| {
                        kept.set(Some(progress));
                        pending()
                    })
                    .await;
                sleep(Duration::from_secs(1)).await;
            }
            let who = |clients: &Clients<_>| clients.served.iter().map(|c| c.who).collect::<Vec<_>>();
            // Of the pod's two the first is older, until it moves.
            assert_eq!(clients.victim(), Some(0));
            clients.served[0].progress.note();
            assert_eq!(clients.victim(), Some(2));
            for _ in 0..1000 {
                clients.admit("pod", |_| pending()).await;
            }
            assert!(who(&clients).contains(&"node"), "the node's client had to go for a pod's");
            assert_eq!((clients.served.len(), clients.tasks.len()), (3, 3));
        };
        LocalSet::new().run_until(served).await;
    }
}
