//! Which fault comes when, and how often it came.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a fault happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Any request.
    Request,
    /// A request for a page of all Nodes.
    Page,
    /// A request for a watch that begins with all Nodes.
    StreamingList,
    /// A request for a watch that goes on from a version.
    Watch,
    /// A write.
    Patch,
    /// An event of a running watch.
    Event,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The connection is reset.
    Reset,
    /// The connection stays, and nothing comes over it any more.
    Silence,
    /// An answer with this HTTP status; to an event it is an error within the watch.
    Status(u16),
    /// 429 with this many seconds in Retry-After.
    Overloaded(u32),
    /// Bytes that are nothing of Kubernetes', with status 200.
    Garbage,
    /// A chunk that is shorter than it says, then the end.
    Truncated,
    /// The answer comes with so many bytes per second.
    Slow(u32),
    /// The oldest list that was seen, in place of what there is now.
    Stale,
    /// An event comes twice.
    Twice,
    /// An event comes after the one that follows it.
    Swapped,
    /// After an event, the one before it comes again.
    Again,
    /// After an event, a bookmark comes at once.
    Bookmark,
    /// Nothing happens to the request for this long, then it is served.
    Late(Duration),
}

impl Fault {
    fn name(&self) -> String {
        match self {
            Self::Status(code) => format!("{code}"),
            Self::Overloaded(seconds) => format!("429 with Retry-After {seconds}"),
            Self::Slow(rate) => format!("{rate} bytes per second"),
            Self::Late(time) => format!("{time:?} late"),
            _ => format!("{self:?}").to_lowercase(),
        }
    }
}

/// The oldest complete list.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) version: String,
    /// In their envelopes.
    pub(super) objects: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    rules: VecDeque<(At, Fault, u32)>,
    counts: BTreeMap<String, u32>,
    recorded: Option<Recorded>,
}

pub(super) struct Plan {
    victim: IpAddr,
    state: Mutex<State>,
}

impl Plan {
    pub(super) fn new(victim: IpAddr) -> Self {
        Self { victim, state: Mutex::default() }
    }

    pub(super) fn add(&self, at: At, fault: Fault, times: u32) {
        self.state().rules.push_back((at, fault, times));
    }

    pub(super) fn clear(&self) {
        self.state().rules.clear();
    }

    pub(super) fn pending(&self) -> u32 {
        self.state().rules.iter().map(|(_, _, times)| times).sum()
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u32> {
        self.state().counts.clone()
    }

    /// The fault that comes now, which is then one less to come.
    pub(super) fn take(&self, from: IpAddr, at: At) -> Option<Fault> {
        if from != self.victim {
            return None;
        }
        let mut state = self.state();
        let fits = |planned: At| planned == at || (planned == At::Request && at != At::Event);
        let rule = state.rules.iter_mut().find(|(planned, _, times)| fits(*planned) && *times > 0)?;
        rule.2 -= 1;
        let fault = rule.1.clone();
        *state.counts.entry(format!("{at:?}: {}", fault.name())).or_default() += 1;
        Some(fault)
    }

    /// Keeps the first complete list.
    pub(super) fn record(&self, list: Recorded) {
        self.state().recorded.get_or_insert(list);
    }

    pub(super) fn recorded(&self) -> Recorded {
        self.state().recorded.clone().unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
