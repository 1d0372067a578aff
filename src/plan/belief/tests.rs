//! What is believed has to be what the model of the kernel holds, whatever happens to it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use encap::{Family, Prefix};
use proptest::prelude::*;

use super::*;
use crate::plan::diff::tests::{bare, kernels, peers, want};
use crate::plan::{Desired, Hop, diff, model};

const V4: Device = Device::Tunnel(Family::V4);

/// The kernel's side: what it holds, and what it has announced and nobody has read yet.
struct World {
    state: Observed,
    queue: Vec<Announced>,
    belief: Belief,
}

impl World {
    fn new(state: Observed) -> Self {
        Self { state, queue: Vec::new(), belief: Belief::default() }
    }

    /// Reads what is doubtful, or everything; how many surprises.
    fn look(&mut self, everything: bool) -> usize {
        for announced in self.queue.drain(..) {
            self.belief.hear(&announced);
        }
        let mut seen = tidy(&self.state);
        let read = self.belief.begin(&seen, everything);
        // What is not read is not seen.
        if !read.routes {
            seen.routes.clear();
        }
        if !read.neighbours {
            seen.neighbours.clear();
        }
        if !read.fdb {
            seen.fdb.clear();
        }
        self.belief.renew(seen, read)
    }

    /// A pass of the loop; how many steps.
    fn pass(&mut self, want: &Desired) -> usize {
        self.look(false);
        let ops = diff(want, self.belief.observed());
        for op in &ops {
            let before = self.state.clone();
            model::apply(&mut self.state, op);
            self.announce(&before);
            self.belief.note(op);
        }
        ops.len()
    }

    /// Devices are made, and then everything is read once more.
    fn settle(&mut self, want: &Desired) {
        while self.pass(want) > 0 || self.belief.doubtful() != Parts::NONE {}
    }

    /// What somebody else does to one entry.
    fn meddle(&mut self, with: &Meddling) {
        let before = self.state.clone();
        let pods: Prefix = format!("10.244.{}.0/24", with.number).parse().unwrap();
        let (at, mac) = (Ipv4Addr::new(192, 168, 77, with.at).into(), MacAddr([2, 0, 0, 0, 0, with.at]));
        match (with.kind, with.there) {
            (Kind::Route, true) => {
                let hop = Hop::Gateway { via: pods.addr(), device: V4, onlink: true };
                let route = Route { mtu: Some(1000 + u32::from(with.at)), ..Route::ours(hop) };
                let all = self.state.routes.entry(RouteKey::new(pods)).or_default();
                // Somebody may add one to ours.
                if with.at.is_multiple_of(2) {
                    all.clear();
                }
                all.insert(route);
            }
            (Kind::Route, false) => drop(self.state.routes.remove(&RouteKey::new(pods))),
            (Kind::Neighbour, true) => drop(self.state.neighbours.insert((V4, pods.addr()), mac)),
            (Kind::Neighbour, false) => drop(self.state.neighbours.remove(&(V4, pods.addr()))),
            (Kind::Fdb, there) => {
                self.state.fdb.retain(|(_, known, _)| *known != mac);
                self.state.fdb.extend(there.then_some((V4, mac, at)));
            }
        }
        self.announce(&before);
    }

    /// As the kernel does: what took the place of something else is announced, and not what it took the place of.
    fn announce(&mut self, before: &Observed) {
        let flat = |of: &Observed| -> BTreeSet<(RouteKey, Route)> {
            of.routes.iter().flat_map(|(key, all)| all.iter().map(|route| (*key, *route))).collect()
        };
        let (old, new) = (flat(before), flat(&self.state));
        let replaced = |key: &RouteKey| new.difference(&old).any(|(other, _)| other == key);
        let route = |there| {
            move |(key, route): &(RouteKey, Route)| Announced::Route { key: *key, route: *route, there }
        };
        self.queue.extend(old.difference(&new).filter(|(key, _)| !replaced(key)).map(route(false)));
        self.queue.extend(new.difference(&old).map(route(true)));
        let (old, new) = (&before.neighbours, &self.state.neighbours);
        let keys: BTreeSet<_> =
            old.keys().chain(new.keys()).filter(|key| old.get(key) != new.get(key)).collect();
        self.queue.extend(keys.into_iter().map(|key| Announced::Neighbour {
            device: key.0,
            ip: key.1,
            mac: new.get(key).copied(),
        }));
        let (old, new) = (&before.fdb, &self.state.fdb);
        let entry = |there| {
            move |(device, mac, to): &(Device, MacAddr, IpAddr)| Announced::Fdb {
                device: *device,
                mac: *mac,
                to: *to,
                there,
            }
        };
        let replaced = |mac: &MacAddr| new.difference(old).any(|(_, other, _)| other == mac);
        let gone: Vec<_> =
            old.difference(new).filter(|(_, mac, _)| !replaced(mac)).map(entry(false)).collect();
        self.queue.extend(gone);
        self.queue.extend(new.difference(old).map(entry(true)));
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Route,
    Neighbour,
    Fdb,
}

#[derive(Debug, Clone, Copy)]
struct Meddling {
    kind: Kind,
    number: u8,
    at: u8,
    there: bool,
}

fn meddlings() -> impl Strategy<Value = Vec<Meddling>> {
    let kind = prop_oneof![Just(Kind::Route), Just(Kind::Neighbour), Just(Kind::Fdb)];
    let one = (kind, 2u8..8, 2u8..10, any::<bool>());
    prop::collection::vec(
        one.prop_map(|(kind, number, at, there)| Meddling { kind, number, at, there }),
        0..6,
    )
}

proptest! {
    /// One pass makes devices and the next reads everything again; from then on each pass goes by what is believed,
    /// and finds what one that reads everything would find.
    #[test]
    fn what_is_believed_is_what_is_there(
        before in kernels(),
        rounds in prop::collection::vec((peers(), meddlings()), 1..5),
    ) {
        let mut world = World::new(before);
        world.settle(&want(&rounds[0].0));
        for (peers, meddlings) in &rounds {
            let want = want(peers);
            meddlings.iter().for_each(|meddling| world.meddle(meddling));
            world.pass(&want);
            let second = world.pass(&want);
            // A step that the kernel understood otherwise than it was meant leaves something to the next pass.
            prop_assert_eq!(diff(&want, &world.state), vec![], "{} steps in the second pass", second);
            prop_assert_eq!(world.pass(&want), 0);
            prop_assert_eq!(world.belief.doubtful(), Parts::NONE);
            prop_assert_eq!(world.belief.observed(), &tidy(&world.state));
            prop_assert_eq!(world.look(true), 0);
        }
    }

    /// Nobody hears of the damage: it is found, and counted, as soon as everything is read.
    #[test]
    fn what_was_not_announced_is_found_by_who_reads_everything(peers in peers(), damage in meddlings()) {
        let mut world = World::new(bare());
        let want = want(&peers);
        world.settle(&want);
        damage.iter().for_each(|meddling| world.meddle(meddling));
        world.queue.clear();
        let differs = tidy(&world.state) != *world.belief.observed();
        prop_assert_eq!(world.pass(&want), 0);
        prop_assert_eq!(world.look(true) > 0, differs);
        world.pass(&want);
        world.pass(&want);
        prop_assert_eq!(diff(&want, &world.state), vec![]);
    }
}

/// The kernel has no key without routes.
fn tidy(state: &Observed) -> Observed {
    let mut state = state.clone();
    state.routes.retain(|_, all| !all.is_empty());
    state
}

#[test]
fn a_second_announcement_of_the_same_is_no_news_and_another_is() {
    let mut world = World::new(bare());
    let want = want(&BTreeMap::from([(2, (2, false))]));
    world.settle(&want);
    let (mac, to) = (MacAddr([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(192, 168, 77, 2).into());
    let entry = |there| Announced::Fdb { device: V4, mac, to, there };
    assert!(!world.belief.hear(&entry(true)));
    assert_eq!(world.belief.doubtful(), Parts::NONE);
    assert!(world.belief.hear(&entry(false)));
    assert_eq!(world.belief.doubtful(), Parts::FDB);
    // As long as it has not been read again, nothing that is said of it is known already.
    assert!(world.belief.hear(&entry(true)));
}
