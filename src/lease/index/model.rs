//! The index against a model that knows the rules and nothing of speed: every question it has, it
//! asks of every node.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{OWN, index, networks};
use super::*;

/// What one node asks for and holds.
#[derive(Debug, Clone)]
struct Entry {
    facts: NodeFacts,
    wants: Option<Candidate>,
    holds: Option<Candidate>,
}

#[derive(Debug, Default)]
struct Model {
    nodes: BTreeMap<String, Entry>,
}

impl Model {
    fn take(&mut self, facts: &NodeFacts) {
        let holds = self.nodes.get(&facts.name).and_then(|entry| entry.holds.clone());
        let verdict = if facts.name == OWN {
            check::own(facts, &networks())
        } else {
            check::peer(facts, &networks(), "")
        };
        let (wants, holds) = match verdict {
            Verdict::Good(candidate) => (Some(candidate), holds),
            Verdict::Bad(_) | Verdict::Unmanaged => (None, holds),
            Verdict::Mismatch(_) => (None, None),
        };
        self.nodes.insert(facts.name.clone(), Entry { facts: facts.clone(), wants, holds });
    }

    fn settle(&mut self) {
        loop {
            let mut queue: Vec<_> =
                self.nodes.values().filter(|e| e.wants.is_some() && e.wants != e.holds).collect();
            queue.sort_by_key(|e| (e.facts.created.is_none(), e.facts.created.clone(), e.facts.name.clone()));
            let queue: Vec<_> = queue.into_iter().map(|e| e.facts.name.clone()).collect();
            if !queue.iter().fold(false, |served, name| self.serve(name) | served) {
                return;
            }
        }
    }

    fn serve(&mut self, name: &str) -> bool {
        let wanted = self.nodes[name].wants.clone().unwrap();
        let in_the_way: Vec<String> = self
            .nodes
            .values()
            .filter(|e| e.facts.name != name && e.holds.as_ref().is_some_and(|held| clash(held, &wanted)))
            .map(|e| e.facts.name.clone())
            .collect();
        // One insists if a claim of what is wanted is part of what it holds and of what it asks for.
        let insists = |other: &String| {
            let entry = &self.nodes[other];
            let Some(held) = &entry.holds else { return false };
            each_claim(&wanted)
                .any(|claim| clash(held, &claim) && entry.wants.as_ref().is_none_or(|w| clash(w, &claim)))
        };
        if in_the_way.iter().any(insists) {
            return false;
        }
        for other in in_the_way {
            self.nodes.get_mut(&other).unwrap().holds = None;
        }
        self.nodes.get_mut(name).unwrap().holds = Some(wanted);
        true
    }
}

fn clash(a: &Candidate, b: &Candidate) -> bool {
    (a.public_ip.is_some() && a.public_ip == b.public_ip)
        || a.prefixes.iter().any(|a| b.prefixes.iter().any(|b| a.overlaps(b)))
}

/// A candidate taken apart into candidates of one claim each.
fn each_claim(candidate: &Candidate) -> impl Iterator<Item = Candidate> {
    let empty = Candidate { prefixes: Vec::new(), public_ip: None, addresses: Vec::new(), caps: None };
    let prefixes = candidate.prefixes.iter().map(|p| Candidate { prefixes: vec![*p], ..empty.clone() });
    let address = candidate.public_ip.map(|ip| Candidate { public_ip: Some(ip), ..empty.clone() });
    prefixes.chain(address).collect::<Vec<_>>().into_iter()
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Box<NodeFacts>),
    Delete(String),
    Reset(Vec<NodeFacts>),
}

/// Few values, so that they meet.
fn facts() -> impl Strategy<Value = NodeFacts> {
    let name = prop_oneof![Just(OWN), Just("a"), Just("b"), Just("c"), Just("d"), Just("e")];
    let cidr = prop_oneof![
        4 => (0u8..4).prop_map(|i| vec![format!("10.244.{i}.0/24")]),
        1 => (0u8..2).prop_map(|i| vec![format!("10.244.{}.0/23", i * 2)]),
        1 => (0u8..8).prop_map(|i| vec![format!("10.244.{}.{}/25", i / 2, i % 2 * 128)]),
        1 => (0u8..4, 0u8..4).prop_map(|(i, j)| vec![format!("10.244.{i}.0/24"), format!("fd00:10:244:{j}::/64")]),
        1 => Just(vec!["10.99.0.0/24".to_owned()]),
        1 => Just(Vec::new()),
    ];
    let address =
        prop_oneof![8 => (1u8..6).prop_map(|i| format!("192.168.77.{i}")), 1 => Just("127.0.0.1".to_owned())];
    let backend = prop_oneof![8 => Just(None), 1 => Just(Some("vxlan".to_owned()))];
    let created = prop_oneof![Just(None), (1u8..4).prop_map(|i| Some(format!("2026-01-0{i}T00:00:00Z")))];
    (name, cidr, address, backend, created).prop_map(|(name, pod_cidrs, address, backend_type, created)| {
        NodeFacts {
            name: name.to_owned(),
            created,
            pod_cidrs,
            internal_ips: vec![address.parse().unwrap()],
            annotations: crate::lease::Annotations { backend_type, ..Default::default() },
            ..NodeFacts::default()
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => facts().prop_map(|facts| Step::Apply(Box::new(facts))),
        2 => facts().prop_map(|facts| Step::Delete(facts.name)),
        1 => list().prop_map(Step::Reset),
    ]
}

fn list() -> impl Strategy<Value = Vec<NodeFacts>> {
    proptest::collection::vec(facts(), 0..6).prop_map(|list| {
        let by_name: BTreeMap<_, _> = list.into_iter().map(|facts| (facts.name.clone(), facts)).collect();
        by_name.into_values().collect()
    })
}

fn view(snapshot: &Snapshot) -> Vec<(String, Vec<Prefix>, Option<IpAddr>)> {
    let mut out: Vec<_> =
        snapshot.peers.iter().map(|l| (l.node.clone(), l.prefixes.clone(), Some(l.public_ip))).collect();
    if let OwnLease::Ready(prefixes) = &snapshot.own {
        out.push((OWN.to_owned(), prefixes.clone(), None));
    }
    out.sort();
    out
}

/// What holds whatever happened.
fn check_invariants(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let view = view(snapshot);
    for (i, (name, prefixes, ip)) in view.iter().enumerate() {
        for prefix in prefixes {
            prop_assert!(networks().iter().any(|network| network.covers(prefix)));
        }
        for (other, others, other_ip) in &view[i + 1..] {
            prop_assert!(
                !prefixes.iter().any(|a| others.iter().any(|b| a.overlaps(b))),
                "{} and {}",
                name,
                other
            );
            prop_assert!(ip.is_none() || ip != other_ip, "{} and {}", name, other);
        }
    }
    prop_assert!(snapshot.peers.is_sorted_by_key(|lease| &lease.node));
    prop_assert!(snapshot.refused.is_sorted_by_key(|refusal| &refusal.node));
    for refusal in &snapshot.refused {
        prop_assert_eq!(refusal.kept, view.iter().any(|(name, ..)| *name == refusal.node));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_history_gives_what_the_model_gives(steps in proptest::collection::vec(step(), 1..40)) {
        let (mut index, mut model) = (index(), Model::default());
        let mut last = index.snapshot();
        let mut ids: BTreeMap<String, PeerId> = BTreeMap::new();
        for step in steps {
            let change = match step {
                Step::Apply(facts) => {
                    model.take(&facts);
                    index.apply(*facts)
                }
                Step::Delete(name) => {
                    model.nodes.remove(&name);
                    index.delete(&name)
                }
                Step::Reset(list) => {
                    model.nodes.retain(|name, _| list.iter().any(|facts| facts.name == *name));
                    list.iter().for_each(|facts| model.take(facts));
                    index.reset(list)
                }
            };
            model.settle();
            let snapshot = index.snapshot();
            check_invariants(&snapshot)?;

            let want: Vec<_> = model.nodes.iter()
                .filter_map(|(name, entry)| entry.holds.clone().map(|held| (name.clone(), held.prefixes, held.public_ip)))
                .collect();
            prop_assert_eq!(view(&snapshot), want);

            let before: BTreeMap<_, _> = last.peers.iter().map(|l| (&l.node, l)).collect();
            let after: BTreeMap<_, _> = snapshot.peers.iter().map(|l| (&l.node, l)).collect();
            prop_assert_eq!(change.added, after.keys().filter(|name| !before.contains_key(*name)).count());
            prop_assert_eq!(change.removed, before.keys().filter(|name| !after.contains_key(*name)).count());
            let differs = |name: &&&String| before.get(**name).is_some_and(|old| *old != after[**name]);
            prop_assert_eq!(change.changed, after.keys().filter(differs).count());
            prop_assert_eq!(change.own, matches!(last.own, OwnLease::Ready(_)) != matches!(snapshot.own, OwnLease::Ready(_))
                || matches!((&last.own, &snapshot.own), (OwnLease::Ready(a), OwnLease::Ready(b)) if a != b));
            prop_assert_eq!(change.snapshot, snapshot.generation != last.generation);

            for lease in &snapshot.peers {
                let known = *ids.entry(lease.node.clone()).or_insert(lease.id);
                prop_assert_eq!(known, lease.id);
            }
            let distinct: BTreeSet<_> = ids.values().collect();
            prop_assert_eq!(distinct.len(), ids.len());
            last = snapshot;
        }
    }

    #[test]
    fn a_first_list_may_come_in_any_order(list in list(), swaps in proptest::collection::vec(any::<(Index, Index)>(), 0..8)) {
        let mut shuffled = list.clone();
        for (a, b) in swaps {
            if !list.is_empty() {
                shuffled.swap(a.index(list.len()), b.index(list.len()));
            }
        }
        let (mut one, mut other) = (index(), index());
        one.reset(list);
        other.reset(shuffled);
        prop_assert_eq!(one.snapshot(), other.snapshot());
    }

    #[test]
    fn nodes_that_do_not_clash_may_come_in_any_order(list in list(), swaps in proptest::collection::vec(any::<(Index, Index)>(), 0..8)) {
        // Whoever was refused for the sake of another is left out.
        let mut first = index();
        first.reset(list.clone());
        let refused = &first.snapshot().refused;
        let clashes = |name: &str| {
            refused.iter().any(|r| r.node == name && ["overlap", "duplicate_address"].contains(&r.reason.as_str()))
        };
        let list: Vec<_> = list.into_iter().filter(|facts| !clashes(&facts.name)).collect();
        let mut whole = index();
        whole.reset(list.clone());
        let mut shuffled = list;
        let len = shuffled.len();
        for (a, b) in swaps {
            if len > 0 {
                shuffled.swap(a.index(len), b.index(len));
            }
        }
        let mut one_by_one = index();
        for facts in shuffled {
            one_by_one.apply(facts);
        }
        prop_assert_eq!(view(&whole.snapshot()), view(&one_by_one.snapshot()));
        prop_assert_eq!(&whole.snapshot().refused, &one_by_one.snapshot().refused);
        prop_assert_eq!(&whole.snapshot().mismatched, &one_by_one.snapshot().mismatched);
    }
}
