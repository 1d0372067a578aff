//! Requests to the API server from a program that is not async and may live in another network namespace.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;

use anyhow::{Context, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use super::process::NetnsFd;

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Job = Box<dyn FnOnce() -> Task + Send>;

/// One thread inside the server's namespace. Every socket opened there belongs to the namespace, so whoever holds this
/// can ask the server from anywhere. It ends when this value is dropped.
pub(super) struct Agent {
    jobs: UnboundedSender<Job>,
}

impl Agent {
    pub(super) fn start(netns: Option<NetnsFd>) -> Result<Self> {
        let (jobs, inbox) = unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("apiserver-agent".into()).spawn(move || {
            let entered = enter(netns)
                .and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
            match entered {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    LocalSet::new().block_on(&runtime, serve(inbox));
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        outcome.recv().context("the agent's thread died")??;
        Ok(Self { jobs })
    }

    /// Runs `work` on the agent's thread and waits for its result. Calls from several threads run side by side.
    pub(super) fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let (answer, result) = std::sync::mpsc::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                let _ = answer.send(work().await);
            })
        });
        self.jobs.send(job).map_err(|_| anyhow!("the agent's thread is gone"))?;
        result.recv().context("a request to the API server panicked")?
    }
}

fn enter(netns: Option<NetnsFd>) -> Result<()> {
    match netns {
        Some(netns) => setns(&*netns, CloneFlags::CLONE_NEWNET).context("enter the API server's namespace"),
        None => Ok(()),
    }
}

async fn serve(mut inbox: UnboundedReceiver<Job>) {
    while let Some(job) = inbox.recv().await {
        tokio::task::spawn_local(job());
    }
}

/// A client from a kubeconfig file. Its sockets belong to the thread that runs it.
pub(super) async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
