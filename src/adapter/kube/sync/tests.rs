use std::time::{Duration, Instant};

use fastrand::Rng;
use kube::core::{Status, WatchEvent};
use serde_json::json;

use super::*;
use crate::adapter::kube::client::{Collection, PageMeta};

/// An object with a name and a version; what matters of it is both, or the name and a worth that it has.
struct Things;

type Thing = serde_json::Value;
type Fact = (String, u64);

impl Kind for Things {
    const COLLECTION: Collection = Collection::NODES;
    const FORBIDDEN: &'static str = "ask for it";
    const PLURAL: &'static str = "Things";
    type Object = Thing;
    type Facts = Fact;

    fn key(object: &Thing) -> String {
        object["name"].as_str().unwrap_or_default().to_owned()
    }

    fn name(facts: &Fact) -> &str {
        &facts.0
    }

    fn version(object: &Thing) -> Option<&str> {
        object["version"].as_str()
    }

    fn facts(&self, object: Thing) -> Option<Fact> {
        let worth = object["worth"].as_u64();
        Some((Self::key(&object), worth.or_else(|| Self::version(&object)?.parse().ok())?))
    }
}

fn thing(name: &str, version: u64) -> Thing {
    json!({ "name": name, "version": version.to_string() })
}

fn bookmark(version: u64, end: bool) -> WatchEvent<Thing> {
    let annotations = if end { json!({ LIST_END: "true" }) } else { json!({}) };
    let object = json!({ "apiVersion": "v1", "kind": "Thing",
        "metadata": { "resourceVersion": version.to_string(), "annotations": annotations } });
    serde_json::from_value(json!({ "type": "BOOKMARK", "object": object })).unwrap()
}

fn trouble(code: u16) -> Trouble {
    Trouble::status(&Status { code, ..Status::default() })
}

/// A `Sync` and a clock.
struct Desk {
    sync: Sync<Things>,
    now: Instant,
}

impl Desk {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as a starting point")]
    fn new() -> Self {
        Self { sync: Sync::new(Things, None, Rng::with_seed(7)), now: Instant::now() }
    }

    /// One that has read `a` and `b` as of version 10.
    fn following() -> Self {
        let mut desk = Self::new();
        desk.read_all(&[("a", 3), ("b", 5)], 10).unwrap();
        desk
    }

    fn ask(&mut self) -> Ask {
        let step = self.sync.next(self.now);
        self.now += step.pause;
        step.ask
    }

    fn pause_and_ask(&mut self) -> (Duration, Ask) {
        let step = self.sync.next(self.now);
        self.now += step.pause;
        (step.pause, step.ask)
    }

    fn opens(&mut self, from: &str, beginning_with_all: bool) {
        match self.ask() {
            Ask::Watch { version, whole, .. } => {
                assert_eq!((version.as_str(), whole), (from, beginning_with_all));
            }
            other => panic!("{other:?}"),
        }
        self.sync.opened(self.now);
    }

    fn said(&mut self, event: WatchEvent<Thing>) -> Result<Option<News<Fact>>, Trouble> {
        assert!(matches!(self.ask(), Ask::Read(_)));
        self.sync.said(event, self.now)
    }

    fn read_all(&mut self, all: &[(&str, u64)], version: u64) -> Result<Option<News<Fact>>, Trouble> {
        self.opens("", true);
        for (name, version) in all {
            self.said(WatchEvent::Added(thing(name, *version))).unwrap();
        }
        self.said(bookmark(version, true))
    }

    fn fails(&mut self, trouble: &Trouble) -> Option<String> {
        match self.sync.failed(trouble, self.now) {
            None => None,
            Some(News::Trouble(text)) => Some(text),
            Some(other) => panic!("{other:?}"),
        }
    }

    fn page(&mut self, all: &[(&str, u64)], version: u64) -> Result<Option<News<Fact>>, Trouble> {
        assert!(matches!(self.ask(), Ask::Page(_)));
        let metadata = PageMeta { resource_version: version.to_string(), next: None };
        let items = all.iter().map(|(name, version)| thing(name, *version)).collect();
        self.sync.page(Page { metadata, items }, self.now)
    }
}

fn reset(news: Result<Option<News<Fact>>, Trouble>) -> Vec<Fact> {
    match news {
        Ok(Some(News::Reset(all))) => all,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_there_and_what_changes() {
    let mut desk = Desk::new();
    let all = reset(desk.read_all(&[("a", 3), ("b", 5)], 10));
    assert_eq!(all, [("a".into(), 3), ("b".into(), 5)]);
    assert!(
        matches!(desk.said(WatchEvent::Modified(thing("a", 11))), Ok(Some(News::Apply(fact))) if fact.1 == 11)
    );
    assert!(
        matches!(desk.said(WatchEvent::Deleted(thing("b", 12))), Ok(Some(News::Delete(name))) if name == "b")
    );
}

/// The same thing once more: another version of it, in which nothing that matters is different.
fn heartbeat(version: u64) -> WatchEvent<Thing> {
    WatchEvent::Modified(json!({ "name": "b", "version": version.to_string(), "worth": 5 }))
}

#[test]
fn what_is_said_again_is_no_news_until_it_was_gone() {
    let mut desk = Desk::following();
    assert!(matches!(desk.said(heartbeat(11)), Ok(None)), "as it was in the list");
    desk.said(WatchEvent::Modified(thing("b", 12))).unwrap().expect("it is another now");
    assert!(matches!(desk.said(heartbeat(13)), Ok(Some(News::Apply(fact))) if fact.1 == 5));
    assert!(matches!(desk.said(heartbeat(14)), Ok(None)));
    desk.said(WatchEvent::Deleted(thing("b", 15))).unwrap().expect("it is gone");
    assert!(matches!(desk.said(heartbeat(16)), Ok(Some(News::Apply(fact))) if fact.1 == 5));
    assert_eq!(desk.sync.seen(), Some("16"), "what is no news counts as seen");
}

#[test]
fn a_server_that_can_be_read_again_says_so_by_what_is_no_news_too() {
    let mut desk = Desk::following();
    assert!(desk.fails(&Trouble::new(Cause::Refused, "")).is_some());
    assert_eq!(desk.ask(), Ask::Version);
    desk.sync.reaches("10");
    assert!(!desk.sync.follows());
    desk.opens("10", false);
    assert!(desk.sync.follows());
    assert!(matches!(desk.said(heartbeat(11)), Ok(Some(News::Restored))));
    assert!(matches!(desk.said(heartbeat(12)), Ok(None)));
}

#[test]
fn after_a_break_it_goes_on_from_the_last_version_a_bookmark_included() {
    let mut desk = Desk::following();
    desk.said(WatchEvent::Added(thing("c", 12))).unwrap();
    desk.said(bookmark(40, false)).unwrap();
    assert_eq!(desk.fails(&Trouble::new(Cause::Closed, "")), None, "a server may end a watch");
    for end in ["closed", "refused"] {
        assert_eq!(desk.ask(), Ask::Version, "after {end} it may be a server with another history");
        desk.sync.reaches("41");
        desk.opens("40", false);
        assert_eq!(desk.fails(&Trouble::new(Cause::TimeLimit, "")), None);
        desk.opens("40", false);
        assert!(desk.fails(&Trouble::new(Cause::Refused, "")).is_some());
    }
}

#[test]
fn a_history_that_ends_before_what_was_seen_is_read_anew_until_it_is_believed() {
    let mut desk = Desk::following();
    desk.fails(&Trouble::new(Cause::Refused, ""));
    assert_eq!(desk.ask(), Ask::Version);
    desk.fails(&trouble(503));
    assert_eq!(desk.ask(), Ask::Version, "that was no answer");
    desk.sync.reaches("9");
    let mut stale = desk.read_all(&[("a", 3)], 9).unwrap_err();
    for _ in 2..READINGS {
        desk.fails(&stale);
        stale = desk.page(&[("a", 3)], 9).unwrap_err();
    }
    desk.fails(&stale);
    assert_eq!(reset(desk.page(&[("a", 3)], 9)).len(), 1);
}

#[test]
fn what_is_forgotten_is_read_anew_but_not_again_and_again() {
    let mut desk = Desk::following();
    desk.now += Duration::from_secs(60);
    assert_eq!(desk.fails(&trouble(410)), None);
    desk.read_all(&[("b", 5)], 50).unwrap();
    assert_eq!(desk.fails(&trouble(410)), None);
    let (pause, _) = desk.pause_and_ask();
    assert_eq!(pause, RELIST);
}

#[test]
fn an_older_list_is_no_proof_until_several_agree() {
    let mut desk = Desk::following();
    desk.now += Duration::from_secs(60);
    desk.fails(&trouble(410));
    let mut stale = desk.read_all(&[("a", 3)], 8).unwrap_err();
    for version in [6, 6, 7, 7] {
        assert_eq!(stale.cause, Cause::Stale);
        assert!(desk.fails(&stale).unwrap().contains("older"));
        // The next reading goes another way, and takes its time.
        stale = desk.page(&[("a", 3)], version).unwrap_err();
    }
    desk.fails(&stale);
    assert_eq!(reset(desk.page(&[("a", 3)], 9)).len(), 1, "history was set back");
}

#[test]
fn a_list_that_is_new_enough_settles_a_doubt_at_once() {
    let mut desk = Desk::following();
    desk.fails(&trouble(410));
    let stale = desk.read_all(&[], 9).unwrap_err();
    desk.fails(&stale);
    let (pause, ask) = desk.pause_and_ask();
    assert_eq!(ask, Ask::Page(None));
    assert!(pause >= Duration::from_secs(1));
    let metadata = PageMeta { resource_version: "11".into(), next: None };
    let page = Page { metadata, items: vec![thing("b", 5)] };
    assert_eq!(reset(desk.sync.page(page, desk.now)).len(), 1);
}

#[test]
fn versions_that_are_no_numbers_are_doubted() {
    let mut desk = Desk::following();
    desk.fails(&trouble(410));
    desk.opens("", true);
    let end = json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Thing",
        "metadata": { "resourceVersion": "x", "annotations": { LIST_END: "true" } } } });
    let doubt = desk.said(serde_json::from_value(end).unwrap()).unwrap_err();
    assert_eq!(doubt.cause, Cause::Stale);
}

#[test]
fn a_duplicate_is_ignored_and_disorder_is_read_anew() {
    let mut desk = Desk::following();
    desk.said(WatchEvent::Added(thing("c", 12))).unwrap();
    assert!(matches!(desk.said(WatchEvent::Added(thing("c", 12))), Ok(None)));
    let disorder = desk.said(WatchEvent::Deleted(thing("c", 11))).unwrap_err();
    assert_eq!(disorder.cause, Cause::Disorder);
    assert_eq!(desk.fails(&disorder), None);
    desk.opens("", true);
}

#[test]
fn a_refused_streaming_list_is_read_by_pages_and_tried_again_the_next_time() {
    for refusal in [trouble(422), trouble(500)] {
        let mut desk = Desk::new();
        desk.opens("", true);
        assert_eq!(desk.fails(&refusal), None);
        reset(desk.page(&[("a", 3)], 10));
        desk.opens("10", false);
        desk.now += Duration::from_secs(60);
        desk.fails(&trouble(410));
        desk.opens("", true);
    }
}

#[test]
fn a_server_that_never_ends_a_streaming_list_is_not_asked_again_for_an_hour() {
    let mut desk = Desk::new();
    desk.opens("", true);
    let idle = desk.sync.silent().unwrap_err();
    assert_eq!(desk.fails(&idle), None);
    reset(desk.page(&[("a", 3)], 10));
    for (later, streams) in [(60, false), (3600, true)] {
        desk.opens("10", false);
        desk.now += Duration::from_secs(later);
        desk.fails(&trouble(410));
        let ask = desk.ask();
        assert_eq!(matches!(ask, Ask::Watch { whole: true, .. }), streams, "{ask:?}");
        if !streams {
            let metadata = PageMeta { resource_version: "10".into(), next: None };
            desk.sync.page(Page { metadata, items: Vec::new() }, desk.now).unwrap();
        }
    }
}

#[test]
fn pages_follow_each_other_and_end() {
    let mut desk = Desk::new();
    desk.opens("", true);
    desk.fails(&trouble(422));
    let mut page = |next: &str, name: &str| {
        assert!(matches!(desk.ask(), Ask::Page(_)));
        let metadata = PageMeta { resource_version: "10".into(), next: Some(next.into()) };
        desk.sync.page(Page { metadata, items: vec![thing(name, 3)] }, desk.now)
    };
    assert!(matches!(page("token", "a"), Ok(None)));
    assert_eq!(reset(page("", "b")).len(), 2);
    let mut desk = Desk::new();
    desk.opens("", true);
    desk.fails(&trouble(422));
    let endless = (0..=PAGES).find_map(|_| {
        assert!(matches!(desk.ask(), Ask::Page(_)));
        let metadata = PageMeta { resource_version: "10".into(), next: Some("again".into()) };
        desk.sync.page(Page { metadata, items: Vec::new() }, desk.now).err()
    });
    assert_eq!(endless.unwrap().cause, Cause::BadAnswer);
}

#[test]
fn silence_is_asked_about_and_a_dead_server_found_within_half_a_minute() {
    let mut desk = Desk::following();
    desk.said(WatchEvent::Added(thing("c", 12))).unwrap();
    let start = desk.now;
    let Ask::Read(patience) = desk.ask() else { panic!() };
    desk.now += patience;
    assert!(matches!(desk.sync.silent(), Ok(None)), "silence is no trouble yet");
    let Ask::Watch { lasts, .. } = desk.ask() else { panic!() };
    assert_eq!(lasts, Duration::from_secs(LASTS_IN_SILENCE));
    assert!(
        desk.now - start + Duration::from_secs(10) < Duration::from_secs(30),
        "the request itself may take 10 s"
    );

    desk.sync.opened(desk.now);
    let Ask::Read(probation) = desk.ask() else { panic!() };
    desk.now += probation;
    desk.sync.silent().unwrap();
    let Ask::Read(patience) = desk.ask() else { panic!() };
    desk.now += patience;
    let dead = desk.sync.silent().unwrap_err();
    assert_eq!(dead.cause, Cause::Idle);
    assert!(desk.fails(&dead).is_some());
    assert!(desk.now - start < Duration::from_secs(60));
}

#[test]
fn where_nothing_happens_watches_stay_short_until_something_does() {
    let mut desk = Desk::following();
    desk.now += Duration::from_secs(15);
    desk.sync.silent().unwrap();
    for _ in 0..3 {
        let Ask::Watch { lasts, .. } = desk.ask() else { panic!() };
        assert_eq!(lasts, Duration::from_secs(LASTS_IN_SILENCE));
        desk.sync.opened(desk.now);
        desk.now += lasts;
        let end = desk.sync.ended(desk.now).unwrap_err();
        assert_eq!((end.cause, desk.fails(&end)), (Cause::TimeLimit, None));
    }
    desk.opens("10", false);
    desk.said(WatchEvent::Added(thing("c", 12))).unwrap();
    desk.now += Duration::from_secs(15);
    let end = desk.sync.ended(desk.now).unwrap_err();
    desk.fails(&end);
    assert!(matches!(desk.ask(), Ask::Watch { lasts, .. } if lasts > Duration::from_secs(200)));
}

#[test]
fn a_list_in_a_silent_cluster_does_not_end_the_asking() {
    let mut desk = Desk::following();
    desk.now += Duration::from_secs(15);
    desk.sync.silent().unwrap();
    desk.opens("10", false);
    desk.fails(&trouble(410));
    desk.read_all(&[("b", 5)], 50).unwrap();
    assert!(matches!(desk.ask(), Ask::Read(patience) if patience <= Duration::from_secs(15)));
}

#[test]
fn a_server_that_warms_up_is_given_a_moment_and_one_that_means_it_is_named() {
    let mut desk = Desk::following();
    desk.fails(&Trouble::new(Cause::Closed, ""));
    let said: Vec<bool> = (0..4)
        .map(|_| {
            desk.ask();
            desk.fails(&trouble(403)).is_some()
        })
        .collect();
    assert_eq!(said, [false, false, true, true]);
    let mut fresh = Desk::new();
    fresh.ask();
    assert!(fresh.fails(&trouble(403)).is_some(), "at the start it is news at once");
    let mut before_it_is_up = Desk::new();
    before_it_is_up.ask();
    before_it_is_up.fails(&Trouble::new(Cause::Refused, ""));
    before_it_is_up.ask();
    assert!(before_it_is_up.fails(&trouble(403)).is_none());
}

#[test]
fn a_server_that_asks_to_be_left_alone_is() {
    let mut desk = Desk::following();
    for (asked, kept) in [(7, 7), (100_000, 60)] {
        let overloaded = Trouble { retry_after: Duration::from_secs(asked), ..trouble(429) };
        desk.fails(&overloaded);
        let (pause, _) = desk.pause_and_ask();
        assert_eq!(pause, Duration::from_secs(kept));
    }
}

#[test]
fn garbage_in_a_watch_leads_to_a_list() {
    let mut desk = Desk::following();
    desk.said(WatchEvent::Added(thing("c", 12))).unwrap();
    desk.fails(&Trouble::new(Cause::BadAnswer, ""));
    desk.opens("", true);
}

#[test]
fn no_failure_is_repeated_more_than_once_a_second() {
    let mut desk = Desk::following();
    let mut last = None;
    for _ in 0..50 {
        desk.fails(&Trouble::new(Cause::Refused, ""));
        assert_eq!(desk.ask(), Ask::Version);
        desk.sync.reaches("40");
        desk.ask();
        if let Some(last) = last.replace(desk.now) {
            assert!(desk.now - last >= Duration::from_secs(1));
        }
        // One that accepts and ends at once is no better.
        desk.sync.opened(desk.now);
        desk.sync.silent().unwrap();
    }
}
