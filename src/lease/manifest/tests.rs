use super::*;

/// What `kubectl get node n1 -o yaml` prints, other fields and all.
const NODE: &str = r#"apiVersion: v1
kind: Node
metadata:
  annotations:
    flannel.alpha.coreos.com/backend-data: "null"
    flannel.alpha.coreos.com/backend-type: ""
    flannel.alpha.coreos.com/kube-subnet-manager: "true"
    flannel.alpha.coreos.com/public-ip: 192.168.77.1
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"v1","kind":"Node","metadata":{"annotations":{},"name":"n1"},"spec":{"podCIDR":"10.244.1.0/24"}}
    node.alpha.kubernetes.io/ttl: "0"
  creationTimestamp: "2026-11-21T13:14:08Z"
  labels:
    kubernetes.io/hostname: n1
    node-role.kubernetes.io/control-plane: ""
  name: n1
  resourceVersion: "1234"
  uid: 7a3b7c9e-1d2f-4e5a-8b6c-0f1e2d3c4b5a
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs:
  - 10.244.1.0/24
  - fd00:10:244:1::/64
  taints:
  - effect: NoSchedule
    key: node-role.kubernetes.io/control-plane
status:
  addresses:
  - address: 192.168.77.1
    type: InternalIP
  - address: 203.0.113.1
    type: ExternalIP
  - address: n1
    type: Hostname
  allocatable:
    cpu: "8"
    pods: "110"
  conditions:
  - lastHeartbeatTime: "2026-11-21T13:14:08Z"
    message: Flannel is running on this node
    reason: FlannelIsUp
    status: "False"
    type: NetworkUnavailable
  images:
  - names:
    - registry.example/pause@sha256:0123
    sizeBytes: 311278
  nodeInfo:
    osImage: "Debian GNU/Linux 12 (bookworm)"
    swap:
      capacity: 0
"#;

fn read(text: &str) -> Result<Vec<NodeFacts>, ManifestError> {
    decode(text, &AnnotationPrefix::default())
}

fn nodes(text: &str) -> Vec<NodeFacts> {
    read(text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

fn error(text: &str) -> String {
    read(text).map(|nodes| panic!("{text}\n{nodes:?}")).unwrap_err().to_string()
}

fn names(text: &str) -> Vec<String> {
    nodes(text).into_iter().map(|node| node.name).collect()
}

/// As kubectl indents the items of a List.
fn list(nodes: &[String]) -> String {
    let item = |node: &String| {
        let mut lines = node.lines();
        let first = format!("- {}\n", lines.next().unwrap_or_default());
        first + &lines.map(|line| format!("  {line}\n")).collect::<String>()
    };
    format!(
        "apiVersion: v1\nitems:\n{}kind: List\nmetadata:\n  resourceVersion: \"\"\n",
        nodes.iter().map(item).collect::<String>()
    )
}

fn named(name: &str) -> String {
    NODE.replace("  name: n1\n", &format!("  name: {name}\n"))
}

#[test]
fn one_node_as_kubectl_prints_it() {
    let got = nodes(NODE);
    let want = NodeFacts {
        name: "n1".to_owned(),
        uid: "7a3b7c9e-1d2f-4e5a-8b6c-0f1e2d3c4b5a".to_owned(),
        created: Some("2026-11-21T13:14:08Z".to_owned()),
        pod_cidrs: vec!["10.244.1.0/24".to_owned(), "fd00:10:244:1::/64".to_owned()],
        internal_ips: vec!["192.168.77.1".parse().unwrap()],
        addresses: vec!["192.168.77.1".parse().unwrap(), "203.0.113.1".parse().unwrap()],
        network_available: true,
        annotations: crate::lease::Annotations {
            backend_data: Some("null".to_owned()),
            backend_type: Some(String::new()),
            kube_subnet_manager: Some("true".to_owned()),
            public_ip: Some("192.168.77.1".to_owned()),
            ..Default::default()
        },
    };
    assert_eq!(got, [want]);
}

#[test]
fn every_form_of_many() {
    let (a, b) = (named("a"), named("b"));
    assert_eq!(names(&list(&[a.clone(), b.clone()])), ["a", "b"]);
    assert_eq!(names(&format!("# nodes\n---\n{a}---\n# nothing\n--- \n{b}...\n---\n")), ["a", "b"]);
    assert_eq!(names(&format!("{a}\n---\n{}", list(&[b]))), ["a", "b"]);
    assert_eq!(names(&a.replace('\n', "\r\n")), ["a"]);
    assert_eq!(names("\u{feff}{\"kind\": \"Node\", \"metadata\": {\"name\": \"j\"}}"), ["j"]);
    assert_eq!(names("--- {kind: Node, metadata: {name: flow}}"), ["flow"]);
}

#[test]
fn json_of_one_of_a_list_and_of_several() {
    let node = |name: &str| {
        format!(r#"{{"kind":"Node","metadata":{{"name":"{name}"}},"spec":{{"podCIDR":"10.0.0.0/24"}}}}"#)
    };
    assert_eq!(names(&node("a")), ["a"]);
    assert_eq!(names(&format!("{}\n{}\n", node("a"), node("b"))), ["a", "b"]);
    let list = format!(r#"{{"apiVersion":"v1","items":[{},{}],"kind":"List"}}"#, node("a"), node("b"));
    assert_eq!(names(&list), ["a", "b"]);
    let raw =
        r#"{"kind":"NodeList","items":[{"metadata":{"name":"a"},"spec":null,"status":{"addresses":null}}]}"#;
    assert_eq!(nodes(raw)[0].pod_cidrs, Vec::<String>::new());
    assert_eq!(nodes(&node("a"))[0].pod_cidrs, ["10.0.0.0/24"]);
}

#[test]
fn what_is_absent_or_null_is_absent() {
    let got = &nodes("kind: Node\nmetadata:\n  name: n1\n  annotations:\nspec: {}\nstatus: ~\n")[0];
    assert_eq!(*got, NodeFacts { name: "n1".to_owned(), ..NodeFacts::default() });
}

#[test]
fn an_empty_file_says_so() {
    for text in
        ["", "\n\n", "---\n", "# nothing\n---\n...\n", "kind: List\nitems: []\n", "{\"kind\":\"NodeList\"}"]
    {
        let got = error(text);
        assert!(got.contains("no Node in the file") && got.contains("kubectl get nodes"), "{text:?}: {got}");
    }
}

#[test]
fn errors_name_line_column_field_and_remedy() {
    let broken =
        list(&[named("a"), named("b"), named("c").replace("podCIDR: 10.244.1.0/24", "podCIDR: [1]")]);
    let line = 1 + broken.lines().position(|l| l.contains("podCIDR: [1]")).unwrap();
    let at_line = format!("line {line}, column 14, field items[2].spec.podCIDR");
    for (text, want) in [
        (broken.as_str(), &[at_line.as_str(), "kubectl get nodes -o yaml"][..]),
        (
            "kind: Node\nmetadata:\n  name: n1\n---\nkind: Node\nmetadata:\n  name: {}\n",
            &["line 7", "field metadata.name"],
        ),
        ("kind: Node\nmetadata:\n\tname: n1\n", &["line 3"]),
        ("kind: Node\nmetadata: [\n", &["line ", "correct it"]),
        ("just words", &["line 1, column 1", "mapping", "kubectl get nodes -o yaml"]),
        ("- kind: Node\n", &["line 1", "mapping"]),
        ("kind: Node\nkind: Node\n", &["line 2", "kind"]),
        ("{\n \"kind\": \"Node\",\n}", &["line 3, column 1", "trailing comma", "-o json"]),
        (
            "{\"kind\": \"List\", \"items\": [\n{\"kind\": \"Node\", \"spec\": {\"podCIDRs\": 1}}]}",
            &["line 2, column 39, field items[0].spec.podCIDRs", "invalid type"],
        ),
        ("{\"kind\": \"Node\"", &["line 1, column 15", "EOF"]),
        ("kind: Pod\n", &["the file: kind is \"Pod\"", "must be Node", "remove"]),
        ("kind: List\nitems:\n- kind: Service\n", &["items[0]: kind is \"Service\""]),
        ("kind: List\nitems:\n- kind: List\n  items: []\n", &["items[0]: kind is \"List\""]),
        ("metadata:\n  name: n1\n", &["the file: kind is missing", "kind: Node"]),
        ("kind: List\nitems:\n- metadata: {}\n", &["items[0]: kind is missing"]),
        ("kind: Node\n", &["metadata.name is \"\"", "correct it"]),
        ("kind: Node\nmetadata:\n  name: \"a\\nb\"\n", &["metadata.name is \"a\\nb\""]),
        (
            "kind: Node\nmetadata: {name: a}\nspec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]}\n",
            &[
                "spec: podCIDR \"10.0.0.0/24\" is not the first of podCIDRs, \"10.0.1.0/24\"",
                "make them the same",
            ],
        ),
    ] {
        let got = error(text);
        for part in want {
            assert!(got.contains(part), "{text}\n  gives: {got}\n  lacks: {part}");
        }
    }
}

#[test]
fn two_nodes_of_one_name_are_both_named() {
    let got = error(&format!("{}---\n{}", named("a"), list(&[named("b"), named("a")])));
    assert_eq!(
        got,
        "document 2, items[1]: metadata.name \"a\" is also that of document 1: remove one of the two"
    );
}

/// Nine levels of ten aliases each are a billion strings in 500 bytes.
#[test]
fn an_alias_bomb_is_refused() {
    let mut bomb = "kind: Node\nmetadata: {name: a}\na0: &a0 [x]\n".to_owned();
    for level in 1..10 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{refs}]\n");
    }
    let got = error(&bomb);
    assert!(got.contains("line 3"), "{got}");
}

#[test]
fn depth_and_size_are_bounded() {
    assert!(error(&format!("kind: Node\nx: {}", "[".repeat(100_000))).contains("line 2"));
    assert!(error(&format!("{{\"x\": {}", "[".repeat(100_000))).contains("EOF"), "skipped without recursion");
    assert!(error(&r#"{"items":[{"#.repeat(100_000)).contains("items"));
    assert!(error(&"{\"items\":[".repeat(100_000)).contains("recursion limit"));
    assert!(error(&" ".repeat(MAX_BYTES + 1)).contains("too many"));
}

/// The parser's default limits are a quarter of a million values: some hundred Nodes with their images.
#[test]
fn as_many_values_as_a_large_cluster_has_are_read() {
    let images = format!("{NODE}  large: [{}]\n", "1,".repeat(260_000));
    assert_eq!(nodes(&images).len(), 1);
}

proptest::proptest! {
    #[test]
    fn nothing_panics(text in "((kind|metadata|spec|items|name|podCIDR)?: ?(Node|List|\\PC{0,6})|---|- |  |\n|\\PC){0,12}") {
        let _ = read(&text).map_err(|e| e.to_string());
    }
}
