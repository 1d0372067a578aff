//! What the model of a server answers, and what becomes of it on the way.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use kube::core::{Status, WatchEvent};
use serde_json::json;

use super::super::client::{Page, PageMeta};
use super::super::sync::READINGS;
use super::super::trouble::{Cause, Trouble};
use super::server::Nodes;
use super::{World, object};
use crate::lease::NodeObject;
use crate::ports::LeaseEvent;

const PAGE: usize = 4;

type Event = WatchEvent<NodeObject>;

/// The server's side of an open watch.
pub(super) struct Watch {
    pub(super) queue: VecDeque<Rc<str>>,
    pub(super) at: u64,
    pub(super) until: Instant,
    pub(super) bookmarked: bool,
    /// What a streaming list that is under way lists.
    pub(super) list: Option<Nodes>,
    /// Nothing comes through any more, and nobody says so.
    pub(super) dead: bool,
}

impl World {
    fn refusal(&mut self) -> Option<Trouble> {
        if !self.server.up {
            self.now += Duration::from_millis(1);
            return Some(Trouble::new(Cause::Refused, ""));
        }
        if self.fault("a request is not answered", 15) {
            self.now += Duration::from_secs(10);
            return Some(Trouble::new(Cause::Timeout, ""));
        }
        for (name, code) in [("401", 401), ("403", 403), ("500", 500), ("503", 503), ("410", 410)] {
            if self.fault(name, 20) {
                return Some(status(code));
            }
        }
        if self.fault("429", 20) {
            return Some(Trouble { retry_after: Duration::from_secs(self.rng.u64(..5)), ..status(429) });
        }
        let odd = [("a reset", Cause::Closed), ("an answer that is garbage", Cause::BadAnswer)];
        odd.into_iter().find_map(|(name, cause)| self.fault(name, 20).then(|| Trouble::new(cause, "")))
    }

    pub(super) fn open(
        &mut self,
        version: &str,
        whole: bool,
        lasts: Duration,
    ) -> Result<Option<LeaseEvent>, Trouble> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let (mut queue, mut at, mut list) = (VecDeque::new(), 0, None);
        if whole {
            if !self.server.streams {
                return Err(status(if self.chance(500) { 422 } else { 500 }));
            }
            let (version, nodes) = self.list();
            queue.extend(
                nodes.values().map(|node| format!("{{\"type\":\"ADDED\",\"object\":{}}}", node.json).into()),
            );
            queue.push_back(bookmark(version, true));
            at = version;
            list = Some(nodes);
        } else {
            at = at.max(version.parse().unwrap());
            if !self.server.remembers(at) {
                return Err(status(410));
            }
        }
        let until = self.now + lasts;
        self.watch = Some(Watch { queue, at, until, bookmarked: false, list, dead: false });
        self.sync.opened(self.now);
        Ok(None)
    }

    /// What a list says: the present, or the past.
    fn list(&mut self) -> (u64, Nodes) {
        if self.fault("a list from the past", 150 + 100 * self.stale_row.min(6)) {
            let back = self.rng.usize(..20);
            let (version, nodes) = self.server.some_time_ago(back);
            // Several that agree are taken for a history that was set back, and rightly so.
            let agree = if version < self.stale.0 { 1 } else { self.stale.1 + 1 };
            if agree < READINGS {
                self.stale = (version, agree);
                self.stale_row += 1;
                if self.stale_row > 4 {
                    *self.counts.entry("a fifth list from the past in a row, or a later one").or_default() +=
                        1;
                }
                return (version, nodes);
            }
        }
        (self.stale, self.stale_row) = ((0, 0), 0);
        (self.server.version, self.server.nodes.clone())
    }

    pub(super) fn version(&mut self) -> Result<Option<LeaseEvent>, Trouble> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let version = self.list().0;
        self.sync.reaches(&version.to_string());
        Ok(None)
    }

    pub(super) fn page(&mut self, token: Option<&str>) -> Result<Option<LeaseEvent>, Trouble> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let (version, from, nodes) = match token.and_then(|token| token.split_once(':')) {
            None => {
                let (version, nodes) = self.list();
                (version, 0, nodes)
            }
            Some((version, from)) => {
                let version = version.parse().unwrap();
                (version, from.parse().unwrap(), self.server.at(version).ok_or_else(|| status(410))?)
            }
        };
        let items: Vec<NodeObject> =
            nodes.values().skip(from).take(PAGE).map(|node| object(&node.json)).collect();
        let next = (from + items.len() < nodes.len()).then(|| format!("{version}:{}", from + PAGE));
        let metadata = PageMeta { resource_version: version.to_string(), next };
        self.sync.page(Page { metadata, items }, self.now)
    }

    pub(super) fn read(&mut self, patience: Duration) -> Result<Option<LeaseEvent>, Trouble> {
        let Some(mut watch) = self.watch.take() else { return self.sync.ended(self.now) };
        if !self.server.up {
            return self.sync.ended(self.now);
        }
        watch.dead |= self.fault("a watch falls silent", 3);
        if watch.dead {
            self.now += patience;
            self.watch = Some(watch);
            return self.sync.silent();
        }
        if !self.server.remembers(watch.at) {
            // A client that is too slow is hung up on.
            return self.sync.ended(self.now);
        }
        let line = watch.queue.pop_front().or_else(|| {
            let (version, line) = self.server.after(watch.at)?;
            watch.at = version;
            Some(line)
        });
        let Some(line) = line else { return self.wait(watch, patience) };
        self.now += Duration::from_millis(1);
        if let Some(failure) = self.spoil() {
            return failure;
        }
        let again = self.fault("an event twice", 20).then(|| line.clone());
        let old = if watch.queue.is_empty() {
            watch.list = None;
            self.fault("an old event again", 20).then(|| self.old_event(watch.at)).flatten()
        } else {
            let old =
                self.fault("an old event within a list", 60).then(|| self.old_event(watch.at)).flatten();
            old.filter(|line| watch.list.as_ref().is_some_and(|list| can_be_told(line, list)))
        };
        let mut lines = vec![line];
        if watch.queue.is_empty()
            && self.fault("two events change places", 20)
            && let Some((version, next)) = self.server.after(watch.at)
        {
            watch.at = version;
            lines.insert(0, next);
        }
        self.watch = Some(watch);
        for line in lines.into_iter().chain(again).chain(old) {
            match self.sync.said(event(&line), self.now) {
                Ok(Some(news)) => self.hear(news),
                Ok(None) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(None)
    }

    fn old_event(&mut self, version: u64) -> Option<Rc<str>> {
        let back = self.rng.usize(..10);
        self.server.before(version, back)
    }

    fn spoil(&mut self) -> Option<Result<Option<LeaseEvent>, Trouble>> {
        for (name, code) in [("410 within a watch", 410), ("500 within a watch", 500)] {
            if self.fault(name, 10) {
                return Some(Err(status(code)));
            }
        }
        if self.fault("a line that is garbage", 10) {
            return Some(Err(Trouble::new(Cause::BadAnswer, "")));
        }
        // A line that is cut short is none.
        self.fault("a watch is cut", 20).then(|| self.sync.ended(self.now))
    }

    /// Nothing happens in the cluster: the next thing is a bookmark, the end that was agreed on, or our patience.
    fn wait(&mut self, mut watch: Watch, patience: Duration) -> Result<Option<LeaseEvent>, Trouble> {
        let due = if watch.bookmarked { watch.until } else { watch.until - Duration::from_secs(2) };
        if due > self.now + patience {
            self.now += patience;
            self.watch = Some(watch);
            return self.sync.silent();
        }
        self.now = self.now.max(due);
        if watch.bookmarked {
            return self.sync.ended(self.now);
        }
        watch.bookmarked = true;
        watch.at = self.server.version;
        let line = bookmark(self.server.version, false);
        self.watch = Some(watch);
        self.sync.said(event(&line), self.now)
    }
}

/// Whether an old event can be told from a part of this list. Nobody could if it said that a Node is there that is not.
fn can_be_told(line: &str, list: &Nodes) -> bool {
    match event(line) {
        Event::Deleted(_) => true,
        Event::Added(node) | Event::Modified(node) => list.contains_key(node.name()),
        Event::Bookmark(_) | Event::Error(_) => false,
    }
}

fn event(line: &str) -> Event {
    serde_json::from_str(line).unwrap()
}

fn bookmark(version: u64, end: bool) -> Rc<str> {
    let annotations = if end { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    json!({ "type": "BOOKMARK", "object": { "kind": "Node", "apiVersion": "v1",
        "metadata": { "resourceVersion": version.to_string(), "annotations": annotations } } })
    .to_string()
    .into()
}

fn status(code: u16) -> Trouble {
    Trouble::status(&Status { code, ..Status::default() })
}
