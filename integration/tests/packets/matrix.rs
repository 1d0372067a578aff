//! Who reaches whom, over each backend: everybody, at the first try, over TCP, UDP and ICMP, of both families, and
//! seen as who they are. The rules are those of Kubernetes' network model and of its own conformance tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use integration::backends::{Backend, EachBackend};
use integration::netns::Netns;
use integration::probe::http;
use integration::probe::netexec::{HTTP_PORT, Netexec, UDP_PORT};
use integration::probe::reach::{self, Protocol, Question, Source};
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Node, Pod};

pub(super) fn suite() -> Checks {
    Suite::<EachBackend>::new()
        .each("A3.1 the harness sees a pair that is cut off, and one that is translated", a3_01_sees_failure)
        .each("A3.1 everybody reaches everybody at the first try, seen as who they are", a3_01_everybody)
        .each("A3.1 every pod dials every pod as Kubernetes' conformance tests do", a3_01_dial)
        .each("A1.2 2,000 bytes come back whole over UDP and HTTP, 100 of 100", a1_02_two_thousand_bytes)
        .each("A3.14 a Service leads a pod to itself, and to others as who it is", a3_14_service)
        .checks()
}

/// A host of the underlay that is no node: the world.
const WORLD: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 200);
const WORLD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 200);
/// A Service's addresses, as kube-proxy translates them.
const SERVICE: &str = "10.96.0.1";
const SERVICE6: &str = "fd00:96::1";

/// One line of the table: what it says, and who asks what.
struct Row<'a> {
    what: &'static str,
    questions: Vec<(&'a Netns, Question)>,
}

/// Everybody who may ask everybody else, in the words of the table.
fn rows(cluster: &Cluster) -> Result<Vec<Row<'_>>> {
    let mut rows = Vec::new();
    for remote in [false, true] {
        let mut pods = Vec::new();
        let mut nodes = Vec::new();
        for (from, to) in reach::pairs(cluster).filter(|(from, to)| from.is_remote(to) == remote) {
            let list = if matches!(from, Source::Pod(_)) { &mut pods } else { &mut nodes };
            list.extend(reach::questions(from, to)?.into_iter().map(|question| (from.ns(), question)));
        }
        let words = |same, other| if remote { other } else { same };
        rows.push(Row { what: words("pod to pod, same node", "pod to pod, other node"), questions: pods });
        rows.push(Row { what: words("node to its own pod", "node to another's pod"), questions: nodes });
        let to_nodes = cluster.pods().flat_map(|pod| {
            let nodes = cluster.nodes().iter().filter(move |node| (node.name() != pod.node()) == remote);
            nodes.flat_map(move |node| to_node(cluster, pod, node))
        });
        let what = words("pod to its own node", "pod to another node");
        rows.push(Row { what, questions: to_nodes.collect() });
    }
    let to_world = cluster.pods().flat_map(|pod| {
        [IpAddr::from(WORLD), WORLD6.into()]
            .map(|at| (pod.ns(), Question { at, hostname: "world".to_owned(), seen: home(cluster, pod, at) }))
    });
    rows.push(Row { what: "pod to the world", questions: to_world.collect() });
    Ok(rows)
}

/// The address of a pod's own node.
fn home(cluster: &Cluster, pod: &Pod, like: IpAddr) -> IpAddr {
    cluster.node(pod.node()).map_or(like, |node| node.address_like(like))
}

/// A pod asks a node at its own addresses. On another node it is seen as its node: nodes are outside the cluster
/// network, and what leaves that is masqueraded.
fn to_node<'a>(cluster: &Cluster, pod: &'a Pod, node: &Node) -> Vec<(&'a Netns, Question)> {
    let question = |ip: IpAddr| {
        let at = node.address_like(ip);
        let seen = if node.name() == pod.node() { ip } else { home(cluster, pod, at) };
        (pod.ns(), Question { at, hostname: node.name().to_owned(), seen })
    };
    pod.ips().map(question).collect()
}

/// Servers in the nodes' own networks, and in the world.
fn servers(cluster: &mut Cluster) -> Result<Vec<Netexec>> {
    let world = cluster.plug("world", WORLD)?;
    let mut servers = vec![
        Netexec::start_at(&world, "world", WORLD.into())?,
        Netexec::start_at(&world, "world", WORLD6.into())?,
    ];
    for node in cluster.nodes() {
        servers.push(Netexec::start_at(node.ns(), node.name(), node.address().into())?);
        servers.push(Netexec::start_at(node.ns(), node.name(), node.address6().into())?);
    }
    Ok(servers)
}

/// Asks everything, and prints the table; fails with all that failed.
fn table(cluster: &Cluster, backend: Backend) -> Result<String> {
    let columns = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
    let mut text = format!("{:<24}", format!("{backend}, at the first try"));
    for family in ["IPv4", "IPv6"] {
        columns.iter().for_each(|column| text.push_str(&format!("{:>10}", format!("{family} {column:?}"))));
    }
    let mut failures = Vec::new();
    for row in rows(cluster)? {
        text.push_str(&format!("\n    {:<24}", row.what));
        for v4 in [true, false] {
            let questions = || row.questions.iter().filter(|(_, question)| question.at.is_ipv4() == v4);
            for column in columns {
                let failed: Vec<String> = questions()
                    .filter_map(|(from, question)| question.ask(from, column).err())
                    .map(|error| format!("{}: {error:#}", row.what))
                    .collect();
                let asked = questions().count();
                ensure!(asked > 0, "{}: nobody asks", row.what);
                text.push_str(&format!("{:>10}", format!("{}/{asked}", asked - failed.len())));
                failures.extend(failed);
            }
        }
    }
    if !failures.is_empty() {
        bail!("{text}\n{} failed:\n{}", failures.len(), failures.join("\n"));
    }
    Ok(text)
}

fn a3_01_everybody(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let _servers = servers(cluster)?;
    notes.add(table(cluster, backend)?);
    Ok(())
}

/// What the table would say of two faults, one of each kind that it is there to find.
fn a3_01_sees_failure(lab: &mut EachBackend, backend: Backend, _: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n2.a")?);
    let questions = reach::questions(Source::Pod(from), to)?;
    let ns = cluster.node("n2")?.ns();
    for (fault, rule) in [
        (
            "No route to host",
            "type filter hook forward priority 0; meta iifname != cni0 reject with icmpx host-unreachable",
        ),
        ("seen as", "type nat hook postrouting priority 90; meta oifname cni0 masquerade"),
    ] {
        ns.nft(&format!("table inet lab_fault {{ chain fault {{ {rule}\n}}\n}}"))?;
        let answers: Vec<_> =
            questions.iter().map(|question| question.ask(from.ns(), Protocol::Tcp)).collect();
        ns.nft("delete table inet lab_fault")?;
        for answer in answers {
            let said = answer.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(said.contains(fault), "with {rule}: `{said}`");
        }
    }
    reach::check(Source::Pod(from), to)
}

/// The test pod is told by its HTTP server what to ask, the first time with one try.
fn a3_01_dial(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let mut dialled = 0;
    for from in cluster.pods() {
        let node = cluster.node(from.node())?;
        for to in cluster.pods() {
            for (own, host) in from.ips().zip(to.ips()) {
                for (protocol, port) in [("http", HTTP_PORT), ("udp", UDP_PORT)] {
                    let asked =
                        format!("/dial?request=hostname&protocol={protocol}&host={host}&port={port}&tries=1");
                    let report = http::get(node.ns(), own, &asked)?;
                    let expected = format!(r#"{{"errors":[],"responses":["{}"]}}"#, to.name());
                    ensure!(report == expected, "{} dials {} with {asked}: {report}", from.name(), to.name());
                    dialled += 1;
                }
            }
        }
    }
    notes.add(format!("{backend}: {dialled} of {dialled} dialled, over HTTP and UDP of both families"));
    Ok(())
}

fn a1_02_two_thousand_bytes(lab: &mut EachBackend, backend: Backend, _: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let (from, to) = (cluster.pod("n1.a")?, cluster.pod("n3.b")?);
    for at in to.ips() {
        let mut asker = Asker::new(from.ns(), at)?;
        for round in 0..100 {
            asker.echo(2000, udp::PATIENCE).with_context(|| format!("datagram {round} to {at}"))?;
            let body = [b'0' + round % 10; 2000];
            ensure!(http::echo(from.ns(), at, &body)? == body, "request {round} to {at} came back changed");
        }
    }
    Ok(())
}

/// What kube-proxy puts on a node for a Service with one endpoint: an endpoint that asks itself is marked, and
/// masqueraded, because the answer has to come back through the node.
fn serve(node: &Node, endpoint: &Pod) -> Result<()> {
    let mut text = String::new();
    for (family, word, service, ip) in [
        ("ip", "ip", SERVICE, Some(IpAddr::from(endpoint.ip()))),
        ("ip6", "ip6", SERVICE6, endpoint.ip6().map(IpAddr::from)),
    ] {
        let ip = ip.context("an endpoint of both families")?;
        text.push_str(&format!(
            "table {family} lab_service {{\n\
             chain services {{ type nat hook prerouting priority dstnat\n\
             {word} daddr {service} {word} saddr {ip} meta mark set meta mark or 0x4000\n\
             {word} daddr {service} dnat to {ip}\n}}\n\
             chain postrouting {{ type nat hook postrouting priority srcnat\n\
             meta mark & 0x4000 == 0x4000 masquerade\n}}\n}}\n"
        ));
    }
    node.ns().nft(&text)
}

fn a3_14_service(lab: &mut EachBackend, backend: Backend, notes: &Notes) -> Result<()> {
    let cluster = lab.cluster(backend)?;
    let node = cluster.node("n1")?;
    for endpoint in ["n1.a", "n2.a"] {
        let endpoint = cluster.pod(endpoint)?;
        serve(node, endpoint)?;
        let asked: Result<()> = cluster.pods().filter(|pod| pod.node() == "n1").try_for_each(|from| {
            for (service, own) in [SERVICE, SERVICE6].into_iter().zip(from.ips()) {
                let itself = from.name() == endpoint.name();
                let seen = if itself { node.pod_address_like(own, 1) } else { own };
                let question = Question { at: service.parse()?, hostname: endpoint.name().to_owned(), seen };
                question.ask(from.ns(), Protocol::Tcp)?;
                question.ask(from.ns(), Protocol::Udp)?;
            }
            Ok(())
        });
        node.ns().nft("delete table ip lab_service\ndelete table ip6 lab_service")?;
        asked.with_context(|| format!("a Service of {}", endpoint.name()))?;
    }
    // Without a Service a pod reaches itself without leaving itself.
    for pod in cluster.pods() {
        reach::check(Source::Pod(pod), pod)?;
    }
    notes.add(format!(
        "{backend}: a pod reaches itself and others by a Service, TCP and UDP of both families"
    ));
    Ok(())
}
