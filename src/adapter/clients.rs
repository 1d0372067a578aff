//! What a listener needs that strangers can reach: a thread of its own, so that they cannot hold up anything else, and a
//! bounded number of clients.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime;
use tokio::task::{AbortHandle, JoinSet, LocalSet};
use tokio::time::{Instant, timeout_at};

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

/// A task that was told to end does so the next time it is looked at.
const TICK: Duration = Duration::from_millis(10);

/// Until when a client may not be sent away for another one.
#[derive(Debug, Clone)]
pub(super) struct Tenure(Rc<Cell<Instant>>);

impl Tenure {
    /// What it wants is being done: it may stay for this time, and is idle again after that.
    pub(super) fn extend(&self, time: Duration) {
        self.0.set(Instant::now() + time);
    }
}

/// A bounded number of clients, each served by a task. If one more comes, one has to go: of whoever has most clients here
/// the one that has been idle for longest. So somebody who opens thousands of connections only takes them from himself.
/// While nobody is idle, whoever comes waits.
pub(super) struct Clients<Who> {
    name: &'static str,
    first: Duration,
    limit: usize,
    tasks: JoinSet<()>,
    served: Vec<Client<Who>>,
}

struct Client<Who> {
    who: Who,
    tenure: Tenure,
    task: AbortHandle,
}

impl<Who: PartialEq> Clients<Who> {
    /// Room for `limit` clients, at least one. Their tasks have this name, and each may stay for `first` at least.
    pub(super) fn new(name: &'static str, limit: usize, first: Duration) -> Self {
        Self { name, first, limit: limit.max(1), tasks: JoinSet::new(), served: Vec::new() }
    }

    /// Serves one more client with what `serve` makes of its [`Tenure`].
    pub(super) async fn admit<F>(&mut self, who: Who, serve: impl FnOnce(Tenure) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        loop {
            self.served.retain(|client| !client.task.is_finished());
            if self.served.len() < self.limit {
                break;
            }
            let Some((at, idle)) = self.victim() else { break };
            if idle <= Instant::now() {
                self.served[at].task.abort();
            }
            // Its connection is closed before the next one is served, so there are never more than `limit`.
            let _ = timeout_at(idle.max(Instant::now() + TICK), self.tasks.join_next()).await;
        }
        let tenure = Tenure(Rc::new(Cell::new(Instant::now() + self.first)));
        let task = self.tasks.spawn_local(tasks::short(self.name, serve(tenure.clone())));
        self.served.push(Client { who, tenure, task });
    }

    /// Who is to go, and from when on.
    fn victim(&self) -> Option<(usize, Instant)> {
        let mut counts: Vec<(&Who, usize)> = Vec::new();
        for Client { who, .. } in &self.served {
            match counts.iter_mut().find(|(counted, _)| *counted == who) {
                Some((_, count)) => *count += 1,
                None => counts.push((who, 1)),
            }
        }
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let candidates = self.served.iter().enumerate().filter(|(_, client)| client.who == *most);
        candidates.map(|(at, client)| (at, client.tenure.0.get())).min_by_key(|(_, idle)| *idle)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_loses_the_one_that_waits_longest() {
        let served = async {
            let mut clients = Clients::new("client", 3, Duration::ZERO);
            for who in ["pod", "node", "pod"] {
                clients.admit(who, |_| pending()).await;
                sleep(Duration::from_secs(1)).await;
            }
            let who = |clients: &Clients<_>| clients.served.iter().map(|c| c.who).collect::<Vec<_>>();
            // Of the pod's two the first is older, until it moves.
            let victim = |clients: &Clients<_>| clients.victim().map(|(at, _)| at);
            assert_eq!(victim(&clients), Some(0));
            clients.served[0].tenure.extend(Duration::ZERO);
            assert_eq!(victim(&clients), Some(2));
            for _ in 0..1000 {
                clients.admit("pod", |_| pending()).await;
            }
            assert!(who(&clients).contains(&"node"), "the node's client had to go for a pod's");
            assert_eq!((clients.served.len(), clients.tasks.len()), (3, 3));
        };
        LocalSet::new().run_until(served).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_being_served_is_waited_for_and_an_idle_one_is_not() {
        let served = async {
            let mut clients = Clients::new("client", 2, Duration::ZERO);
            let busy = |tenure: Tenure| {
                tenure.extend(Duration::from_secs(2));
                pending()
            };
            let begun = Instant::now();
            clients.admit(1, busy).await;
            clients.admit(1, |_| pending()).await;
            // The idle one goes, although it is younger.
            clients.admit(1, busy).await;
            assert!(begun.elapsed() < Duration::from_secs(1));
            clients.admit(1, busy).await;
            assert!(begun.elapsed() >= Duration::from_secs(2));
        };
        LocalSet::new().run_until(served).await;
    }
}
