//! The index against a model that knows the rules and nothing of speed: every question it has, it
//! asks of every node.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{OWN, config, vxlan};
use super::*;
use crate::lease::{Annotations, OwnLease};

/// What one family of a node asks for and holds.
#[derive(Debug, Clone, Default)]
struct Side {
    wants: Option<Candidate>,
    holds: Option<Candidate>,
}

#[derive(Debug)]
struct Model {
    config: IndexConfig,
    facts: BTreeMap<String, NodeFacts>,
    sides: BTreeMap<(String, Family), Side>,
}

impl Model {
    fn new(config: IndexConfig) -> Self {
        Self { config, facts: BTreeMap::new(), sides: BTreeMap::new() }
    }

    fn take(&mut self, facts: &NodeFacts) {
        let verdict = if facts.name == OWN {
            check::own(facts, &self.config)
        } else {
            check::peer(facts, &self.config)
        };
        for family in FAMILIES {
            let side = self.sides.entry((facts.name.clone(), family)).or_default();
            let judged = match &verdict {
                Verdict::Halves(halves) => halves.get(family).clone(),
                Verdict::Bad(fault) => Judged::Bad(fault.clone()),
                Verdict::Unmanaged => Judged::Bad(check::unmanaged(facts)),
                Verdict::Mismatch(_) => Judged::Absent,
            };
            match judged {
                Judged::Good(candidate) => side.wants = Some(candidate),
                Judged::Bad(_) => side.wants = None,
                Judged::Absent => *side = Side::default(),
            }
        }
        self.facts.insert(facts.name.clone(), facts.clone());
    }

    fn forget(&mut self, name: &str) {
        self.facts.remove(name);
        self.sides.retain(|(node, _), _| node != name);
    }

    fn settle(&mut self) {
        loop {
            let waits = |side: &Side| side.wants.is_some() && side.wants != side.holds;
            let mut queue: Vec<_> =
                self.sides.iter().filter(|(_, side)| waits(side)).map(|(key, _)| key.clone()).collect();
            queue.sort_by_key(|(name, family)| {
                let created = self.facts[name].created.clone();
                (created.is_none(), created, name.clone(), *family)
            });
            if !queue.iter().fold(false, |served, key| self.serve(key) | served) {
                return;
            }
        }
    }

    fn serve(&mut self, key: &(String, Family)) -> bool {
        let Some(wanted) = self.sides[key].wants.clone() else { return false };
        let in_the_way: Vec<_> = self
            .sides
            .iter()
            .filter(|((name, family), side)| {
                *name != key.0 && side.holds.as_ref().is_some_and(|held| clash(*family, held, key.1, &wanted))
            })
            .map(|(other, _)| other.clone())
            .collect();
        // One insists if a claim of what is wanted is part of what it holds and of what it asks for.
        let insists = |other: &(String, Family)| {
            let Side { wants, holds } = &self.sides[other];
            let has = |side: &Option<Candidate>, claim: &Candidate| {
                side.as_ref().is_some_and(|side| clash(other.1, side, key.1, claim))
            };
            each_claim(&wanted).any(|claim| has(holds, &claim) && (wants.is_none() || has(wants, &claim)))
        };
        if in_the_way.iter().any(insists) {
            return false;
        }
        for other in in_the_way {
            self.sides.get_mut(&other).unwrap().holds = None;
        }
        self.sides.get_mut(key).unwrap().holds = Some(wanted);
        true
    }

    fn view(&self) -> Vec<Row> {
        let rows = self.sides.iter().filter_map(|((name, family), side)| {
            let held = side.holds.clone()?;
            Some((name.clone(), *family, held.prefixes, held.public_ip, held.vtep_mac))
        });
        rows.collect()
    }
}

fn clash(family: Family, a: &Candidate, other: Family, b: &Candidate) -> bool {
    (a.public_ip.is_some() && a.public_ip == b.public_ip)
        || (family == other && a.vtep_mac.is_some() && a.vtep_mac == b.vtep_mac)
        || a.prefixes.iter().any(|a| b.prefixes.iter().any(|b| a.overlaps(b)))
}

/// A candidate taken apart into candidates of one claim each.
fn each_claim(candidate: &Candidate) -> impl Iterator<Item = Candidate> {
    let empty = Candidate::default();
    let prefixes = candidate.prefixes.iter().map(|p| Candidate { prefixes: vec![*p], ..empty.clone() });
    let address = candidate.public_ip.map(|ip| Candidate { public_ip: Some(ip), ..empty.clone() });
    let mac = candidate.vtep_mac.map(|mac| Candidate { vtep_mac: Some(mac), ..empty.clone() });
    prefixes.chain(address).chain(mac).collect::<Vec<_>>().into_iter()
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Box<NodeFacts>),
    Delete(String),
    Reset(Vec<NodeFacts>),
}

/// The annotation of one VXLAN device: mostly good, sometimes nobody's.
fn backend_data() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        8 => (0u8..4).prop_map(|i| Some(format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{i}"}}"#))),
        1 => Just(Some(r#"{"VNI":2,"VtepMAC":"02:00:00:00:00:01"}"#.to_owned())),
        1 => Just(Some("garbage".to_owned())),
        1 => Just(None),
    ]
}

/// Few values, so that they meet.
fn facts() -> impl Strategy<Value = NodeFacts> {
    let name = prop_oneof![Just(OWN), Just("a"), Just("b"), Just("c"), Just("d"), Just("e")];
    let cidr = prop_oneof![
        2 => (0u8..4).prop_map(|i| vec![format!("10.244.{i}.0/24")]),
        1 => (0u8..2).prop_map(|i| vec![format!("10.244.{}.0/23", i * 2)]),
        1 => (0u8..8).prop_map(|i| vec![format!("10.244.{}.{}/25", i / 2, i % 2 * 128)]),
        4 => (0u8..4, 0u8..4).prop_map(|(i, j)| vec![format!("10.244.{i}.0/24"), format!("fd00:10:244:{j}::/64")]),
        1 => (0u8..4).prop_map(|j| vec![format!("fd00:10:244:{j}::/64")]),
        1 => (0u8..4).prop_map(|i| vec![format!("10.244.{i}.0/24"), "fd99::/64".to_owned()]),
        1 => Just(vec!["10.99.0.0/24".to_owned()]),
        1 => Just(Vec::new()),
    ];
    let v4 =
        prop_oneof![8 => (1u8..6).prop_map(|i| format!("192.168.77.{i}")), 1 => Just("127.0.0.1".to_owned())];
    let v6 = prop_oneof![4 => (1u8..6).prop_map(|i| Some(format!("fd77::{i}"))), 1 => Just(None)];
    let backend_type =
        prop_oneof![4 => Just(None), 2 => Just(Some(String::new())), 6 => Just(Some("vxlan".to_owned()))];
    let created = prop_oneof![Just(None), (1u8..4).prop_map(|i| Some(format!("2026-01-0{i}T00:00:00Z")))];
    let data = (backend_data(), backend_data());
    (name, cidr, v4, v6, backend_type, data, created).prop_map(
        |(name, pod_cidrs, v4, v6, backend_type, (backend_data, backend_v6_data), created)| NodeFacts {
            name: name.to_owned(),
            created,
            pod_cidrs,
            internal_ips: [Some(v4), v6].into_iter().flatten().map(|ip| ip.parse().unwrap()).collect(),
            annotations: Annotations { backend_type, backend_data, backend_v6_data, ..Default::default() },
            ..NodeFacts::default()
        },
    )
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

/// Name, family, prefixes, public address, VTEP address.
type Row = (String, Family, Vec<Prefix>, Option<IpAddr>, Option<MacAddr>);

fn view(snapshot: &Snapshot) -> Vec<Row> {
    let rows = snapshot.peers.iter().flat_map(|lease| {
        lease.halves.iter().filter_map(|(family, half)| {
            let half = half.as_ref()?;
            Some((lease.node.clone(), family, half.prefixes.clone(), Some(half.public_ip), half.vtep_mac))
        })
    });
    let mut out: Vec<_> = rows.collect();
    if let OwnLease::Ready(prefixes) = &snapshot.own {
        for family in FAMILIES {
            let of_family = prefixes.iter().copied().filter(|prefix| Family::of(prefix.addr()) == family);
            let of_family: Vec<_> = of_family.collect();
            if !of_family.is_empty() {
                out.push((OWN.to_owned(), family, of_family, None, None));
            }
        }
    }
    out.sort();
    out
}

/// What holds whatever happened.
fn check_invariants(snapshot: &Snapshot, config: &IndexConfig) -> Result<(), TestCaseError> {
    let view = view(snapshot);
    for (i, (name, family, prefixes, ip, mac)) in view.iter().enumerate() {
        for prefix in prefixes {
            prop_assert!(config.networks.iter().any(|network| network.covers(prefix)));
            prop_assert_eq!(Family::of(prefix.addr()), *family);
        }
        for (other, other_family, others, other_ip, other_mac) in &view[i + 1..] {
            let overlap = prefixes.iter().any(|a| others.iter().any(|b| a.overlaps(b)));
            prop_assert!(!overlap, "{} and {}", name, other);
            prop_assert!(name == other || ip.is_none() || ip != other_ip, "{} and {}", name, other);
            let one_device = family == other_family && mac.is_some() && mac == other_mac;
            prop_assert!(!one_device, "{} and {}", name, other);
        }
    }
    prop_assert!(snapshot.peers.is_sorted_by_key(|lease| &lease.node));
    prop_assert!(snapshot.refused.is_sorted_by_key(|refusal| &refusal.node));
    for refusal in snapshot.refused.iter().filter(|refusal| refusal.kept) {
        prop_assert!(view.iter().any(|(name, ..)| *name == refusal.node));
    }
    Ok(())
}

fn config_of(over_vxlan: bool) -> IndexConfig {
    if over_vxlan { vxlan() } else { config() }
}

proptest! {
    #[test]
    fn any_history_gives_what_the_model_gives(
        over_vxlan: bool, steps in proptest::collection::vec(step(), 1..40),
    ) {
        let config = config_of(over_vxlan);
        let (mut index, mut model) = (LeaseIndex::new(config.clone()), Model::new(config.clone()));
        let mut last = index.snapshot();
        let mut ids: BTreeMap<String, PeerId> = BTreeMap::new();
        for step in steps {
            let change = match step {
                Step::Apply(facts) => {
                    model.take(&facts);
                    index.apply(*facts)
                }
                Step::Delete(name) => {
                    model.forget(&name);
                    index.delete(&name)
                }
                Step::Reset(list) => {
                    let gone: Vec<_> =
                        model.facts.keys().filter(|name| !list.iter().any(|f| f.name == **name)).cloned().collect();
                    gone.iter().for_each(|name| model.forget(name));
                    list.iter().for_each(|facts| model.take(facts));
                    index.reset(list)
                }
            };
            model.settle();
            let snapshot = index.snapshot();
            check_invariants(&snapshot, &config)?;

            prop_assert_eq!(view(&snapshot), model.view());

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
    fn a_first_list_may_come_in_any_order(over_vxlan: bool, list in list(), swaps in proptest::collection::vec(any::<(Index, Index)>(), 0..8)) {
        let mut shuffled = list.clone();
        for (a, b) in swaps {
            if !list.is_empty() {
                shuffled.swap(a.index(list.len()), b.index(list.len()));
            }
        }
        let index = || LeaseIndex::new(config_of(over_vxlan));
        let (mut one, mut other) = (index(), index());
        one.reset(list);
        other.reset(shuffled);
        prop_assert_eq!(one.snapshot(), other.snapshot());
    }

    #[test]
    fn nodes_that_do_not_clash_may_come_in_any_order(over_vxlan: bool, list in list(), swaps in proptest::collection::vec(any::<(Index, Index)>(), 0..8)) {
        let index = || LeaseIndex::new(config_of(over_vxlan));
        // Whoever was refused for the sake of another is left out.
        let mut first = index();
        first.reset(list.clone());
        let refused = &first.snapshot().refused;
        let clashes = |name: &str| {
            refused.iter().any(|r| r.node == name && ["overlap", "duplicate_address", "duplicate_mac"].contains(&r.reason.as_str()))
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
