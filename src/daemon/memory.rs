//! The last known Nodes, for a start while the API server is away.

use std::convert::Infallible;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::concerns::Concerns;
use super::setup::Setup;
use super::spine::Spine;
use crate::adapter::kube::{Api, Seen};
use crate::adapter::{cache, file};
use crate::lease::cache::{Remembered, Scope};
use crate::ports::{Arrival, LeaseEvent, LeaseSource};
use crate::report::Code;

/// Changes come in bursts; one writing after them is enough.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two writings, whatever changes: some megabytes in a large cluster.
const PAUSE: Duration = Duration::from_secs(30);
/// An API server that is there answers within this time. A cache is better than waiting for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where Nodes are remembered, and whose they are. Clones share it.
#[derive(Clone)]
pub(super) struct Memory {
    path: PathBuf,
    scope: Scope,
    /// The newest version that the watch has seen.
    pub(super) seen: Seen,
}

impl Memory {
    pub(super) fn of(setup: &Setup, api: &Api) -> Self {
        let networks: Vec<String> = setup.conf.networks().iter().map(ToString::to_string).collect();
        let scope = Scope {
            node: setup.node.clone(),
            server: api.url().to_owned(),
            authority: api.authority().to_owned(),
            networks: networks.join(","),
            backend: format!("{:?}", setup.backend),
            prefix: setup.args.kube_annotation_prefix.to_string(),
        };
        Self { path: cache::path(&setup.args.subnet_file), scope, seen: Seen::default() }
    }

    /// What is remembered; versions older than that will be doubted.
    pub(super) fn recall(&self) -> Option<Remembered> {
        let remembered = cache::load(&self.path, &self.scope)?;
        self.seen.send_replace(remembered.version.clone());
        Some(remembered)
    }

    /// Writes what the API server said, some time after it said it.
    pub(super) async fn keep(self, spine: Rc<Spine>, concerns: Concerns) -> Infallible {
        loop {
            spine.learned().await;
            tokio::time::sleep(SETTLE).await;
            let saved = cache::save(self.path.clone(), self.text(&spine)).await;
            let trouble = saved.err().map(|error| {
                format!("Nodes cannot be remembered for a start without the API server: {error:#}")
            });
            let failed = trouble.is_some();
            concerns.set(Code::CacheUnwritable, trouble);
            if failed {
                // What made it fail may be over before anything changes.
                spine.learn_again();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes it once more at the end of the daemon, if the API server itself has said what is known.
    pub(super) fn save(&self, spine: &Spine, concerns: &Concerns) -> Result<()> {
        if concerns.here(Code::StartedFromCache).is_some() || !spine.knows_nodes() {
            return Ok(());
        }
        file::replace(&self.path, &self.text(spine))
    }

    fn text(&self, spine: &Spine) -> String {
        let now = jiff::Timestamp::now().round(jiff::Unit::Second).map(|now| now.to_string());
        let seen = self.seen.borrow();
        spine.render_cache(&self.scope, &now.unwrap_or_default(), seen.as_deref())
    }
}

/// A source that first says what is remembered, if the real one has nothing to say.
pub(super) struct Recalling<L> {
    source: L,
    remembered: Option<Remembered>,
    /// What the source said meanwhile.
    held: Option<Arrival>,
    until: Option<Instant>,
}

impl<L: LeaseSource> Recalling<L> {
    pub(super) fn new(source: L, remembered: Option<Remembered>) -> Self {
        Self { source, remembered, held: None, until: None }
    }
}

impl<L: LeaseSource> LeaseSource for Recalling<L> {
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    async fn next(&mut self) -> Arrival {
        if let Some(held) = self.held.take() {
            return held;
        }
        if self.remembered.is_none() {
            return self.source.next().await;
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + PATIENCE);
        let said = tokio::time::timeout_at(until, self.source.next()).await.ok();
        let trouble = said.as_ref().is_none_or(|said| matches!(said.event, LeaseEvent::Trouble(_)));
        match (self.remembered.take().filter(|_| trouble), said) {
            (None, Some(said)) => said,
            (None, None) => self.source.next().await,
            (Some(Remembered { saved, nodes, .. }), said) => {
                self.held = said;
                Arrival { event: LeaseEvent::Remembered(nodes, saved), at: std::time::Instant::now() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::NodeFacts;

    /// Says these things, then nothing.
    struct Script(Vec<LeaseEvent>);

    impl LeaseSource for Script {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        async fn next(&mut self) -> Arrival {
            if self.0.is_empty() {
                std::future::pending::<()>().await;
            }
            Arrival { event: self.0.remove(0), at: std::time::Instant::now() }
        }
    }

    fn remembered() -> Option<Remembered> {
        Some(Remembered { saved: "then".into(), version: None, nodes: vec![NodeFacts::default()] })
    }

    async fn said(source: &mut Recalling<Script>) -> &'static str {
        match source.next().await.event {
            LeaseEvent::Reset(_) => "all",
            LeaseEvent::Remembered(nodes, saved) => {
                assert_eq!((nodes.len(), saved.as_str()), (1, "then"));
                "remembered"
            }
            LeaseEvent::Trouble(_) => "trouble",
            _ => "other",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answers_is_all_that_counts() {
        let mut source = Recalling::new(Script(vec![LeaseEvent::Reset(Vec::new())]), remembered());
        assert_eq!(said(&mut source).await, "all");
        assert!(
            tokio::time::timeout(PATIENCE * 2, source.next()).await.is_err(),
            "the cache is not needed any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_be_asked_or_says_nothing_is_stood_in_for_once() {
        let script = vec![LeaseEvent::Trouble("x".into()), LeaseEvent::Reset(Vec::new())];
        let mut source = Recalling::new(Script(script), remembered());
        for want in ["remembered", "trouble", "all"] {
            assert_eq!(said(&mut source).await, want);
        }
        let mut source = Recalling::new(Script(Vec::new()), remembered());
        assert_eq!(said(&mut source).await, "remembered");
        let mut source = Recalling::new(Script(vec![LeaseEvent::Trouble("x".into())]), None);
        assert_eq!(said(&mut source).await, "trouble");
    }
}
