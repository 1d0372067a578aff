use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::backend;
use crate::lease::{Annotations, Half, Lease, LodenCaps, OwnLease};

pub(super) const OWN: &str = "own";

pub(super) fn networks() -> Vec<Prefix> {
    vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()]
}

pub(super) fn config() -> IndexConfig {
    IndexConfig {
        own_node: OWN.to_owned(),
        networks: networks(),
        backend: backend::sample(r#"{"Type": "udp"}"#),
        managed_only: false,
    }
}

pub(super) fn vxlan() -> IndexConfig {
    IndexConfig { backend: backend::sample(r#"{"Type": "vxlan"}"#), ..config() }
}

/// flannel's type of both backends is the empty text.
#[test]
fn alloc_and_udp_of_loden_are_told_apart() {
    let caps = |backend: &str| format!(r#"{{"version":"9","MTU":1472,"capabilities":[]{backend}}}"#);
    let (udp, alloc) = (caps(""), caps(r#","backend":"alloc""#));
    for (ours, theirs, mismatch) in [
        ("udp", Some(&udp), None),
        ("udp", Some(&alloc), Some("alloc")),
        ("udp", None, None),
        ("alloc", Some(&udp), Some("")),
        ("alloc", Some(&alloc), None),
        ("alloc", None, None),
    ] {
        let backend = backend::sample(&format!(r#"{{"Type": "{ours}"}}"#));
        let mut index = LeaseIndex::new(IndexConfig { backend, ..config() });
        let mut annotations = vec![("public-ip", "192.168.77.2"), ("backend-type", "")];
        annotations.extend(theirs.map(|caps| ("loden", caps.as_str())));
        index.apply(annotated("a", "10.244.2.0/24", &annotations));
        let snapshot = index.snapshot();
        let found = snapshot.mismatched.first().map(|mismatch| mismatch.theirs.as_str());
        assert_eq!(found, mismatch, "{ours} meets {theirs:?}");
        assert_eq!(snapshot.peers.len(), usize::from(mismatch.is_none()));
    }
}

fn index() -> LeaseIndex {
    LeaseIndex::new(config())
}

pub(super) fn node(name: &str, cidr: &str, ip: &str) -> NodeFacts {
    let ips: Vec<IpAddr> = ip.parse().into_iter().collect();
    NodeFacts {
        name: name.to_owned(),
        pod_cidrs: [cidr].iter().filter(|c| !c.is_empty()).map(|c| (*c).to_owned()).collect(),
        internal_ips: ips.clone(),
        addresses: ips,
        ..NodeFacts::default()
    }
}

fn annotated(name: &str, cidr: &str, annotations: &[(&str, &str)]) -> NodeFacts {
    let prefix = crate::config::AnnotationPrefix::default();
    let all: Vec<_> = annotations.iter().map(|(k, v)| (prefix.key(k), *v)).collect();
    let annotations = Annotations::pick(&prefix, all.iter().map(|(k, v)| (k.as_str(), *v)));
    NodeFacts { annotations, ..node(name, cidr, "192.168.77.99") }
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.peers.iter().map(|lease| lease.node.as_str()).collect()
}

pub(super) fn peer(snapshot: &Snapshot, name: &str) -> Arc<Lease> {
    Arc::clone(
        snapshot.peers.iter().find(|lease| lease.node == name).unwrap_or_else(|| panic!("{snapshot:#?}")),
    )
}

fn v4(snapshot: &Snapshot, name: &str) -> Half {
    peer(snapshot, name).halves.v4.clone().unwrap()
}

pub(super) fn reasons(snapshot: &Snapshot) -> Vec<(&str, &str, bool)> {
    snapshot.refused.iter().map(|r| (r.node.as_str(), r.reason.as_str(), r.kept)).collect()
}

fn added(added: usize) -> Change {
    Change { added, snapshot: true, ..Change::default() }
}

#[test]
fn nodes_come_change_and_go() {
    let mut index = index();
    assert_eq!(index.snapshot().own, OwnLease::Missing);
    assert_eq!(index.apply(node("b", "10.244.2.0/24", "192.168.77.2")), added(1));
    assert_eq!(index.apply(node("a", "10.244.3.0/24", "192.168.77.3")), added(1));
    let own = index.apply(node(OWN, "10.244.1.0/24", "192.168.77.1"));
    assert_eq!(own, Change { own: true, snapshot: true, ..Change::default() });
    let first = index.snapshot();
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first.own, OwnLease::Ready(vec!["10.244.1.0/24".parse().unwrap()]));
    assert_eq!(first.own_facts.as_ref().unwrap().name, OWN);
    assert!(Arc::ptr_eq(&first, &index.snapshot()), "nothing changed, nothing is built");

    assert_eq!(index.apply(node("a", "10.244.3.0/24", "192.168.77.3")), Change::default());
    let moved = index.apply(node("a", "10.244.3.0/24", "192.168.77.4"));
    assert_eq!(moved, Change { changed: 1, snapshot: true, ..Change::default() });
    assert!(moved.moves_packets());
    let second = index.snapshot();
    assert!(second.generation > first.generation);
    assert_eq!(v4(&second, "a").public_ip.to_string(), "192.168.77.4");
    assert!(Arc::ptr_eq(&peer(&first, "b"), &peer(&second, "b")));

    assert_eq!(index.delete("a"), Change { removed: 1, snapshot: true, ..Change::default() });
    assert_eq!(index.delete("a"), Change::default());
    assert_eq!(names(&index.snapshot()), ["b"]);
    assert_eq!(index.delete(OWN), Change { own: true, snapshot: true, ..Change::default() });
    assert_eq!(index.snapshot().own, OwnLease::Missing);
}

#[test]
fn ids_are_never_another_nodes() {
    let mut index = index();
    index.apply(node("a", "10.244.2.0/24", "192.168.77.2"));
    index.apply(node("b", "10.244.3.0/24", "192.168.77.3"));
    let (a, b) = (peer(&index.snapshot(), "a").id, peer(&index.snapshot(), "b").id);
    assert_ne!(a, b);
    index.delete("a");
    index.apply(node("c", "10.244.2.0/24", "192.168.77.2"));
    assert!(![a, b].contains(&peer(&index.snapshot(), "c").id));
    index.delete("c");
    index.apply(NodeFacts { uid: "another".to_owned(), ..node("a", "10.244.7.0/24", "192.168.77.7") });
    assert_eq!(peer(&index.snapshot(), "a").id, a, "created again under its name");
}

/// What each field may do to one node, and that it does nothing to another.
#[test]
fn a_bad_node_is_refused_by_reason_and_the_others_stand() {
    let good = r#"{"MTU":1472}"#;
    for (facts, reason) in [
        (node("x", "", "192.168.77.9"), "no_pod_cidr"),
        (node("x", "10.244.9", "192.168.77.9"), "bad_pod_cidr"),
        (node("x", "10.244.9.0/33", "192.168.77.9"), "bad_pod_cidr"),
        (node("x", &"9".repeat(1 << 20), "192.168.77.9"), "bad_pod_cidr"),
        (node("x", "10.99.8.0/24", "192.168.77.9"), "outside_network"),
        (node("x", "0.0.0.0/0", "192.168.77.9"), "outside_network"),
        (node("x", "10.0.0.0/8", "192.168.77.9"), "outside_network"),
        (node("x", "10.244.0.0/16", "192.168.77.9"), "overlap"),
        (node("x", "10.244.2.128/25", "192.168.77.9"), "overlap"),
        (node("x", "10.244.9.0/24", ""), "no_address"),
        (node("x", "10.244.9.0/24", "192.168.77.2"), "duplicate_address"),
        (node("x", "10.244.9.0/24", "192.168.77.1"), "own_address"),
        (node("x", "10.244.9.0/24", "::ffff:192.168.77.1"), "own_address"),
        (node("x", "10.244.9.0/24", "127.0.0.1"), "unusable_address"),
        (node("x", "10.244.9.0/24", "0.0.0.0"), "unusable_address"),
        (node("x", "10.244.9.0/24", "224.0.0.1"), "unusable_address"),
        (node("x", "10.244.9.0/24", "255.255.255.255"), "unusable_address"),
        (node("x", "10.244.9.0/24", "10.244.9.1"), "unusable_address"),
        (node("x", "10.244.9.0/24", "::1"), "unusable_address"),
        (node("x", "10.244.9.0/24", "ff02::1"), "unusable_address"),
        (node("x", "10.244.9.0/24", "fe80::1"), "unusable_address"),
        (annotated("x", "10.244.9.0/24", &[("public-ip", "nowhere\x1b[2J")]), "bad_address"),
        (annotated("x", "10.244.9.0/24", &[("public-ipv6", "10.0.0.1")]), "bad_address"),
        (annotated("x", "10.244.9.0/24", &[("loden", "{")]), "bad_capabilities"),
        (annotated("x", "10.244.9.0/24", &[("loden", &"[".repeat(1 << 16))]), "bad_capabilities"),
        (
            NodeFacts { pod_cidrs: vec!["10.244.9.0/24".to_owned(); 1000], ..node("x", "", "192.168.77.9") },
            "too_many_pod_cidrs",
        ),
        (
            NodeFacts { pod_cidrs: vec!["10.244.9.0/24".to_owned(); 2], ..node("x", "", "192.168.77.9") },
            "overlap",
        ),
    ] {
        // New and bad: no lease. Known and then bad: the last good lease stays.
        for known in [false, true] {
            let mut index = index();
            index.set_own_addresses(&["192.168.77.1".parse().unwrap()]);
            index.apply(node("a", "10.244.2.0/24", "192.168.77.2"));
            if known {
                index.apply(annotated("x", "10.244.8.0/24", &[("loden", good)]));
            }
            let lease = index.snapshot().peers.get(1).cloned();
            let change = index.apply(facts.clone());
            assert!(change.snapshot && !change.moves_packets(), "{facts:?}");
            let snapshot = index.snapshot();
            assert_eq!(reasons(&snapshot), [("x", reason, known)], "{facts:?}");
            assert!(Reason::LABELS.contains(&reason));
            assert_eq!(snapshot.peers.get(1).cloned(), lease);
            let text = snapshot.refused[0].to_string();
            assert!(text.starts_with("node \"x\": "), "{text}");
            assert!(["; ", "write", "remove"].iter().any(|remedy| text.contains(remedy)), "{text}");
            assert_eq!(text.contains("previous lease stays in force"), known, "{text}");
            assert!(text.len() < 800 && !text.contains(char::is_control), "{text}");

            assert!(index.apply(node("x", "10.244.9.0/24", "192.168.77.9")).moves_packets());
            assert_eq!((names(&index.snapshot()), reasons(&index.snapshot())), (vec!["a", "x"], vec![]));
        }
    }
}

#[test]
fn an_overlap_stays_with_the_first_and_goes_to_the_second_at_once() {
    let mut index = index();
    index.apply(node("b", "10.244.2.0/24", "192.168.77.2"));
    index.apply(node("a", "10.244.0.0/17", "192.168.77.3"));
    let snapshot = index.snapshot();
    assert_eq!((names(&snapshot), reasons(&snapshot)), (vec!["b"], vec![("a", "overlap", false)]));
    assert_eq!(
        snapshot.refused[0].to_string(),
        "node \"a\": spec.podCIDR \"10.244.0.0/17\" overlaps the podCIDR of node \"b\"; give each node a podCIDR of \
         its own; delete the Node that is no more (it has no lease)"
    );
    let change = index.delete("b");
    assert_eq!(change, Change { added: 1, removed: 1, snapshot: true, ..Change::default() });
    assert_eq!((names(&index.snapshot()), reasons(&index.snapshot())), (vec!["a"], vec![]));
}

#[test]
fn our_own_lease_can_be_every_state() {
    let mut index = index();
    index.apply(node(OWN, "", ""));
    assert_eq!(index.snapshot().own, OwnLease::NoPodCidr);
    index.apply(node(OWN, "10.99.8.0/24", ""));
    assert!(
        matches!(&index.snapshot().own, OwnLease::Bad(r) if matches!(r.reason, Reason::OutsideNetwork { .. }))
    );
    // An address is not needed, nor are annotations that are ours to write.
    index.apply(annotated(
        OWN,
        "10.244.1.0/24",
        &[("public-ip", "x"), ("backend-type", "vxlan"), ("loden", "{")],
    ));
    let ready = OwnLease::Ready(vec!["10.244.1.0/24".parse().unwrap()]);
    assert_eq!(index.snapshot().own, ready);
    index.apply(node(OWN, "10.99.8.0/24", ""));
    assert_eq!(index.snapshot().own, ready, "the last good one");
    assert_eq!(reasons(&index.snapshot()), [(OWN, "outside_network", true)]);
    index.apply(node("a", "10.244.1.0/24", "192.168.77.2"));
    assert_eq!(reasons(&index.snapshot())[0], ("a", "overlap", false));
}

#[test]
fn only_enabled_families_count() {
    let mut index = LeaseIndex::new(IndexConfig { networks: networks()[..1].to_vec(), ..config() });
    let dual = vec!["fd00:9::/64".to_owned(), "10.244.2.0/24".to_owned()];
    index.apply(NodeFacts { pod_cidrs: dual, ..node("a", "", "192.168.77.2") });
    index.apply(node("b", "fd00:9::/64", "192.168.77.3"));
    assert_eq!(v4(&index.snapshot(), "a").prefixes, ["10.244.2.0/24".parse().unwrap()]);
    assert_eq!(peer(&index.snapshot(), "a").halves.v6, None);
    assert_eq!(reasons(&index.snapshot()), [("b", "no_pod_cidr", false)]);
}

#[test]
fn of_all_nodes_of_a_cluster_only_those_with_flanneld_are_peers() {
    let mut index = LeaseIndex::new(IndexConfig { managed_only: true, ..config() });
    let managed = ("kube-subnet-manager", "true");
    let good = [managed, ("public-ip", "192.168.77.2"), ("backend-type", "")];
    index.apply(node(OWN, "10.244.1.0/24", "192.168.77.1"));
    index.apply(annotated("a", "10.244.2.0/24", &good));
    index.apply(node("b", "10.244.3.0/24", "192.168.77.3"));
    index.apply(annotated("c", "10.244.4.0/24", &[("kube-subnet-manager", "false")]));
    let snapshot = index.snapshot();
    assert_eq!(snapshot.own, OwnLease::Ready(vec!["10.244.1.0/24".parse().unwrap()]), "ours without it");
    assert_eq!((names(&snapshot), reasons(&snapshot)), (vec!["a"], vec![]));

    assert_eq!(index.apply(annotated("a", "10.244.2.0/24", &good[1..])).removed, 0);
    let snapshot = index.snapshot();
    assert_eq!((names(&snapshot), reasons(&snapshot)), (vec!["a"], vec![("a", "unmanaged", true)]));
    index.apply(annotated("a", "10.244.2.0/24", &good));
    assert_eq!(reasons(&index.snapshot()), []);
    assert_eq!(index.delete("a").removed, 1);
    index.apply(annotated("a", "10.244.2.0/24", &good[1..]));
    assert_eq!(
        (names(&index.snapshot()), reasons(&index.snapshot())),
        (vec![], vec![]),
        "a new Node is a new node"
    );
}

#[test]
fn another_backend_is_a_mismatch_and_keeps_no_lease() {
    let mut index = index();
    index.apply(annotated("a", "10.244.2.0/24", &[("public-ip", "192.168.77.2"), ("backend-type", "")]));
    index.apply(node("plain", "10.244.3.0/24", "192.168.77.3"));
    assert_eq!(names(&index.snapshot()), ["a", "plain"]);
    let vxlan = [("public-ip", "192.168.77.2"), ("backend-type", "vxlan")];
    assert_eq!(index.apply(annotated("a", "10.244.2.0/24", &vxlan)).removed, 1);
    let snapshot = index.snapshot();
    assert_eq!((names(&snapshot), reasons(&snapshot)), (vec!["plain"], vec![]));
    assert_eq!(snapshot.mismatched.len(), 1);
    let text = snapshot.mismatched[0].to_string();
    assert!(text.starts_with("node \"a\": backend-type \"vxlan\" is not ours, \"\""), "{text}");
    // What it held is free.
    assert_eq!(index.apply(node("b", "10.244.2.0/24", "192.168.77.2")).added, 1);
}

#[test]
fn public_ip_first_then_all_other_addresses_that_can_send() {
    let mut index = index();
    let mut facts = annotated(
        "a",
        "10.244.2.0/24",
        &[("public-ip", "203.0.113.2"), ("public-ipv6", "2001:db8::2"), ("loden", r#"{"MTU":1400}"#)],
    );
    facts.addresses = ["192.168.77.2", "203.0.113.2", "127.0.0.1", "10.244.2.1", "fe80::2"]
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    facts.internal_ips = vec!["192.168.77.2".parse().unwrap()];
    index.apply(facts.clone());
    let lease = peer(&index.snapshot(), "a");
    assert_eq!(v4(&index.snapshot(), "a").public_ip.to_string(), "203.0.113.2");
    let addresses: Vec<_> = lease.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["203.0.113.2", "2001:db8::2", "192.168.77.2"]);
    assert_eq!(lease.caps, Some(LodenCaps { mtu: 1400, ..LodenCaps::default() }));

    facts.addresses = (0..10_000u32).map(|i| IpAddr::from((0xac10_0000 + i).to_be_bytes())).collect();
    index.apply(facts);
    assert_eq!(peer(&index.snapshot(), "a").addresses.len(), 32);
}

#[test]
fn own_addresses_learned_late_evict_who_claims_them() {
    let mut index = index();
    index.apply(node("a", "10.244.2.0/24", "192.168.77.1"));
    index.apply(node("b", "10.244.3.0/24", "192.168.77.3"));
    let own: [IpAddr; 1] = ["192.168.77.1".parse().unwrap()];
    assert_eq!(index.set_own_addresses(&own).removed, 1);
    assert_eq!(reasons(&index.snapshot()), [("a", "own_address", false)]);
    assert_eq!(index.set_own_addresses(&own), Change::default());
    assert_eq!(index.set_own_addresses(&[]).added, 1);
    assert_eq!(names(&index.snapshot()), ["a", "b"]);
}

/// Addresses handed out anew after a power cut: each node now has the other's.
#[test]
fn two_nodes_that_swap_do_not_block_each_other() {
    let mut index = index();
    index.apply(node("a", "10.244.2.0/24", "192.168.77.2"));
    index.apply(node("b", "10.244.3.0/24", "192.168.77.3"));
    index.apply(node("a", "10.244.2.0/24", "192.168.77.3"));
    assert_eq!(reasons(&index.snapshot()), [("a", "duplicate_address", true)]);
    let change = index.apply(node("b", "10.244.3.0/24", "192.168.77.2"));
    assert_eq!(change.changed, 2);
    let snapshot = index.snapshot();
    assert!(snapshot.refused.is_empty());
    assert_eq!(v4(&snapshot, "a").public_ip.to_string(), "192.168.77.3");
    assert_eq!(v4(&snapshot, "b").public_ip.to_string(), "192.168.77.2");

    let swapped =
        vec![node("a", "10.244.3.0/24", "192.168.77.3"), node("b", "10.244.2.0/24", "192.168.77.2")];
    assert_eq!(index.reset(swapped), Change { changed: 2, snapshot: true, ..Change::default() });
    assert!(index.snapshot().refused.is_empty());
}

#[test]
fn on_a_reset_the_incumbent_keeps_then_the_older_then_the_name() {
    let dated = |name: &str, ip: &str, created: Option<&str>| NodeFacts {
        created: created.map(str::to_owned),
        ..node(name, "10.244.2.0/24", ip)
    };
    let a = dated("a", "192.168.77.2", None);
    let b = dated("b", "192.168.77.3", Some("2026-02-02T00:00:00Z"));
    let c = dated("c", "192.168.77.4", Some("2026-01-01T00:00:00Z"));
    let d = dated("d", "192.168.77.5", None);
    let mut index = index();
    assert_eq!(index.reset(vec![d.clone(), a.clone()]), added(1));
    assert_eq!(names(&index.snapshot()), ["a"]);
    index.reset(vec![c.clone(), b.clone(), a, d.clone()]);
    assert_eq!(names(&index.snapshot()), ["a"]);
    index.reset(vec![d.clone(), b.clone(), c]);
    assert_eq!(names(&index.snapshot()), ["c"]);
    index.reset(vec![d, b]);
    assert_eq!(names(&index.snapshot()), ["b"]);
    assert_eq!(index.reset(Vec::new()).removed, 1);
    assert_eq!(index.reset(Vec::new()), Change::default());
}

/// The network may hold the nodes themselves, as 10.0.0.0/8 often does; only a podCIDR may not.
#[test]
fn an_address_is_refused_only_inside_a_pod_cidr() {
    for ip in ["10.244.200.3", "169.254.7.7", "240.0.0.9"] {
        let mut index = LeaseIndex::new(config());
        index.apply(node("x", "10.244.9.0/24", ip));
        assert_eq!(reasons(&index.snapshot()), [], "{ip}");
    }
    // In the podCIDR of another node: whoever comes first stays.
    let mut index = LeaseIndex::new(config());
    index.apply(node("a", "10.244.9.0/24", "192.168.77.9"));
    index.apply(node("b", "10.244.3.0/24", "10.244.9.3"));
    assert_eq!(reasons(&index.snapshot()), [("b", "unusable_address", false)]);
    index.delete("a");
    assert_eq!(reasons(&index.snapshot()), [], "nobody is in the way any more");
    index.apply(node("a", "10.244.9.0/24", "192.168.77.9"));
    assert_eq!(reasons(&index.snapshot()), [("a", "covers_address", false)]);
    let text = index.snapshot().refused[0].to_string();
    assert!(text.contains("10.244.9.3 of b") && text.contains("; "), "{text}");
    // Our own address counts from when it is known.
    let mut index = LeaseIndex::new(config());
    index.apply(node("a", "10.244.9.0/24", "192.168.77.9"));
    index.set_own_addresses(&["10.244.9.7".parse().unwrap()]);
    assert_eq!(reasons(&index.snapshot()), [("a", "covers_address", false)]);
}
