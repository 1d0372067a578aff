use proptest::prelude::*;

use super::*;

/// Nodes n1 (ours), n2 and n3 with 10.244.<number>.0/24 at 192.168.77.<number>.
struct Cluster {
    names: Vec<Arc<str>>,
    addresses: Vec<[IpAddr; 1]>,
    prefixes: Vec<Vec<Prefix>>,
}

impl Cluster {
    fn new() -> Self {
        let numbers = 1..=3u8;
        Self {
            names: numbers.clone().map(|n| format!("n{n}").into()).collect(),
            addresses: numbers.clone().map(|n| [[192, 168, 77, n].into()]).collect(),
            prefixes: numbers.map(|n| vec![format!("10.244.{n}.0/24").parse().unwrap()]).collect(),
        }
    }

    fn grounds(&self) -> Vec<Ground<'_>> {
        let ground = |at: usize| Ground {
            name: &self.names[at],
            peer: (at > 0).then(|| PeerId(u32::try_from(at).unwrap())),
            prefixes: self.prefixes[at].clone(),
            addresses: &self.addresses[at],
        };
        (0..self.names.len()).map(ground).collect()
    }
}

fn index() -> PodIndex {
    PodIndex::new(vec!["10.244.0.0/16".parse().unwrap()])
}

fn pod(name: &str, node: &str, address: &str, created: i64) -> PodFacts {
    PodFacts {
        name: format!("default/{name}"),
        node: node.into(),
        created,
        terminating: false,
        addresses: (!address.is_empty()).then(|| address.parse().unwrap()).into_iter().collect(),
    }
}

/// Takes facts in and says, as text, who has what afterwards.
fn after(index: &mut PodIndex, cluster: &Cluster, facts: impl IntoIterator<Item = PodFacts>) -> Vec<String> {
    let mut needed = false;
    for facts in facts {
        needed |= index.apply(facts);
    }
    let changed = index.settle(&cluster.grounds());
    assert!(needed || !changed, "something changed although nothing had to be settled");
    told(index)
}

fn told(index: &PodIndex) -> Vec<String> {
    let routes = index.routes.iter().map(|r| format!("{} {} {}", r.address, r.node, r.pod));
    let refused = index.refused.iter().map(|r| format!("{} {} {}", r.address, r.reason.as_str(), r.pod));
    routes.chain(refused).collect()
}

#[test]
fn only_a_pod_outside_its_podcidr_gets_a_route() {
    let (mut index, cluster) = (index(), Cluster::new());
    assert!(!index.settle(&cluster.grounds()));
    let none: [&str; 0] = [];
    assert_eq!(after(&mut index, &cluster, [pod("home", "n2", "10.244.2.7", 1)]), none);
    assert_eq!(index.on("n2").len(), 1);
    assert_eq!(
        after(&mut index, &cluster, [pod("pool", "n2", "10.244.99.7", 1)]),
        ["10.244.99.7 n2 default/pool"]
    );
    assert_eq!(index.routes[0].peer, Some(PeerId(1)));
    assert_eq!(after(&mut index, &cluster, [pod("pool", "n2", "", 1)]), none, "it has finished");
    assert_eq!(
        after(&mut index, &cluster, [pod("ours", "n1", "10.244.99.8", 1)]),
        ["10.244.99.8 n1 default/ours"]
    );
    assert_eq!(index.routes[0].peer, None);
    assert!(index.delete("default/ours") && index.settle(&cluster.grounds()));
    assert!(!index.delete("default/ours"));
    assert_eq!(told(&index), none);
    assert_eq!(after(&mut index, &cluster, [pod("x", "gone", "10.244.99.9", 1)]), none, "no such node");
}

#[test]
fn a_pod_that_moves_takes_its_address_along() {
    let (mut index, cluster) = (index(), Cluster::new());
    after(&mut index, &cluster, [pod("vm", "n2", "10.244.2.7", 1)]);
    assert_eq!(
        after(&mut index, &cluster, [pod("vm", "n3", "10.244.2.7", 2)]),
        ["10.244.2.7 n3 default/vm"],
        "inside the podCIDR of a node on which no pod has it"
    );
    assert_eq!((index.on("n2").len(), index.on("n3").len()), (0, 1));
}

#[test]
fn a_change_of_the_podcidr_is_followed() {
    let (mut index, mut cluster) = (index(), Cluster::new());
    after(&mut index, &cluster, [pod("a", "n2", "10.244.2.7", 1)]);
    cluster.prefixes[1] = vec!["10.244.5.0/24".parse().unwrap()];
    assert!(index.settle(&cluster.grounds()));
    assert_eq!(told(&index), ["10.244.2.7 n2 default/a"]);
    cluster.prefixes[1].clear();
    assert!(index.settle(&cluster.grounds()));
    assert!(index.routes.is_empty(), "a node without a lease cannot be reached");
}

#[test]
fn addresses_that_are_not_a_pods_to_have_are_refused() {
    let (mut index, mut cluster) = (index(), Cluster::new());
    cluster.addresses[2] = ["10.244.77.3".parse().unwrap()];
    for (address, reason) in [
        ("10.9.9.9", "outside_network"),
        ("10.244.77.3", "node_address"),
        ("10.244.3.0", "node_address"),
        ("10.244.3.1", "node_address"),
    ] {
        let told = after(&mut index, &cluster, [pod("a", "n2", address, 1)]);
        assert_eq!(told, [format!("{address} {reason} default/a")]);
    }
    let text = index.refused[0].to_string();
    assert!(text.contains("\"default/a\"") && text.contains("n3") && text.contains("10.244.3.1"), "{text}");
}

#[test]
fn the_first_keeps_an_address_and_the_oldest_is_next() {
    let (mut index, cluster) = (index(), Cluster::new());
    let at = |name: &str, node: &str, created| pod(name, node, "10.244.99.7", created);
    after(&mut index, &cluster, [at("first", "n2", 5)]);
    assert_eq!(
        after(&mut index, &cluster, [at("young", "n3", 9), at("old", "n1", 1)]),
        [
            "10.244.99.7 n2 default/first",
            "10.244.99.7 duplicate_address default/old",
            "10.244.99.7 duplicate_address default/young"
        ]
    );
    assert!(index.delete("default/first"));
    index.settle(&cluster.grounds());
    assert_eq!(told(&index), ["10.244.99.7 n1 default/old", "10.244.99.7 duplicate_address default/young"]);
}

#[test]
fn a_pod_in_its_own_podcidr_wins_over_one_that_is_astray() {
    let (mut index, cluster) = (index(), Cluster::new());
    assert_eq!(
        after(&mut index, &cluster, [pod("thief", "n3", "10.244.2.7", 1)]),
        ["10.244.2.7 n3 default/thief"]
    );
    assert_eq!(
        after(&mut index, &cluster, [pod("owner", "n2", "10.244.2.7", 9)]),
        ["10.244.2.7 duplicate_address default/thief"]
    );
    assert!(index.delete("default/owner"));
    index.settle(&cluster.grounds());
    assert_eq!(told(&index), ["10.244.2.7 n3 default/thief"]);
}

#[test]
fn a_pod_that_is_told_to_end_yields_and_is_not_refused() {
    let (mut index, cluster) = (index(), Cluster::new());
    let ending = PodFacts { terminating: true, ..pod("a", "n2", "10.244.99.7", 1) };
    after(&mut index, &cluster, [pod("a", "n2", "10.244.99.7", 1)]);
    assert_eq!(after(&mut index, &cluster, [ending]), ["10.244.99.7 n2 default/a"]);
    assert_eq!(after(&mut index, &cluster, [pod("b", "n3", "10.244.99.7", 2)]), ["10.244.99.7 n3 default/b"]);
}

#[test]
fn a_node_with_too_many_pods_costs_no_more() {
    let (mut index, cluster) = (index(), Cluster::new());
    let many = (0..5000).map(|n| pod(&n.to_string(), "n2", "10.244.99.7", n));
    assert_eq!(after(&mut index, &cluster, many), ["10.244.99.7 n2 default/0"]);
    assert_eq!((index.on("n2").len(), index.homes.len()), (MAX_PER_NODE, MAX_PER_NODE));
}

proptest! {
    /// However the pods came to be there, what is routed is what a complete list gives, but for who was first.
    #[test]
    fn changes_add_up_to_the_same_as_a_list(
        steps in prop::collection::vec((0..6u8, 1..=4u8, 0..12u8, any::<bool>()), 1..60)
    ) {
        let cluster = Cluster::new();
        let mut live = index();
        let mut truth = BTreeMap::new();
        for (name, node, last, ending) in steps {
            let address = if last == 0 { String::new() } else { format!("10.244.{}.{last}", last % 4) };
            let facts = PodFacts { terminating: ending, ..pod(&name.to_string(), &format!("n{node}"), &address, 1) };
            truth.insert(name, facts.clone());
            after(&mut live, &cluster, [facts]);
        }
        let mut fresh = index();
        fresh.reset(truth.into_values().collect());
        fresh.settle(&cluster.grounds());
        let addresses = |index: &PodIndex| index.routes.iter().map(|r| r.address).collect::<Vec<_>>();
        prop_assert_eq!(addresses(&live), addresses(&fresh));
        let refused = |index: &PodIndex| index.refused.iter().map(|r| r.address).collect::<BTreeSet<_>>();
        prop_assert_eq!(refused(&live), refused(&fresh));
        prop_assert_eq!(live.homes.len(), fresh.homes.len());
        let pods = |index: &PodIndex| index.nodes.iter().map(|(n, p)| (n.clone(), p.pods.len())).collect::<Vec<_>>();
        prop_assert_eq!(pods(&live), pods(&fresh));
        prop_assert!(!live.reset(Vec::new()) || live.settle(&cluster.grounds()) || live.routes.is_empty());
        prop_assert!(live.nodes.is_empty() && live.homes.is_empty());
    }
}
