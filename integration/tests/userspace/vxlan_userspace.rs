//! VXLAN in the daemon's own process: among its like, with the kernel's VXLAN, and with whom it does not know.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::kube_feed::key;
use integration::metrics::Metrics;
use integration::netns::Netns;
use integration::nodes_file::NodeManifest;
use integration::probe::bulk::{self, End};
use integration::probe::capture::Capture;
use integration::probe::http;
use integration::probe::icmp;
use integration::probe::packet;
use integration::probe::reach::{self, Source};
use integration::probe::udp::{self, Sink};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families, NETWORK, Pod, Wire};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 8472;
/// Where the pod listens that gets what is let in.
const VICTIM: u16 = 9000;
/// Datagrams per refused case.
const COUNT: u32 = 20;

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("every pod and node reaches every pod, in user space and in the kernel", everybody)
        .check("the node is as a TUN with one route, and says that it is in user space", state)
        .check("a datagram is VXLAN, byte by byte", exact_bytes)
        .check("a VXLAN device made by hand is a peer, both ways", made_by_hand)
        .check("2,000 bytes come back whole", two_thousand_bytes)
        .check("10 MB of TCP arrive whole, each way, on a wire that passes super-packets", bulk_is_whole)
        .check("a full-size packet with DF passes, one byte more is refused", full_size)
        .check("a packet too big for one peer is answered with the size that fits", too_big)
        .check("a node's own pod passes, from whatever port", honest)
        .check("what is spoofed, foreign or no packet is dropped for its reason", refused)
        .check("kill -9 and a start: everything as before", restart)
        .check("user space, kernel and user space again, with one address", switch)
        .check("both families and IPv6 alone, each over the nodes' addresses of that family", families)
        .check(
            "its addresses are published, and are the same after a switch to the kernel and back",
            published,
        )
        .check("on a wire that cuts segments, and without offloads", cut_wire)
        .checks()
}

/// Nodes n1 and n2 in user space, n3 in the kernel, and a peer made with iproute2.
struct Lab {
    cluster: Cluster,
    hand: ByHand,
}

/// A host with a VXLAN device that no daemon manages, and a pod that is an address on it.
struct ByHand {
    ns: Netns,
    address: Ipv4Addr,
}

const HAND_MAC: &str = "0e:10:24:4a:00:32";
const HAND_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 50, 7);

impl ByHand {
    fn plug(cluster: &mut Cluster) -> Result<Self> {
        let address = Ipv4Addr::new(192, 168, 77, 50);
        let ns = cluster.plug("byhand", address)?;
        ns.ip(&format!(
            "link add flannel.1 address {HAND_MAC} type vxlan id 1 local {address} dev eth0 dstport {PORT} nolearning\n\
             addr add 10.244.50.0/32 dev flannel.1\nlink set flannel.1 mtu 1450 up\n\
             addr add {HAND_POD}/32 dev lo\nlink set lo up"
        ))?;
        for node in cluster.nodes() {
            let (mac, base) = (node.vtep_mac(), node.pod_address(0));
            ns.ip(&format!(
                "neigh add {base} lladdr {mac} dev flannel.1 nud permanent\n\
                 route add {} via {base} dev flannel.1 onlink src {HAND_POD}",
                node.pod_cidr()
            ))?;
            ns.command("bridge")
                .args(["fdb", "add", &mac, "dev", "flannel.1", "dst", &node.address().to_string()])
                .run()?;
        }
        Ok(Self { ns, address })
    }

    fn manifest(&self) -> NodeManifest {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{HAND_MAC}"}}"#);
        NodeManifest {
            name: "byhand".into(),
            pod_cidrs: vec!["10.244.50.0/24".into()],
            internal_ips: vec![self.address.into()],
            annotations: [("backend-type", "vxlan"), ("backend-data", &data), ("public-ip", "192.168.77.50")]
                .map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value.to_owned()))
                .into(),
        }
    }
}

/// Starts the daemon of a node with a mode of its own.
fn start(cluster: &mut Cluster, name: &str, mode: &str, environment: Option<(&str, &str)>) -> Result<()> {
    let file: PathBuf = cluster.node(name)?.dir().join("net-conf.json");
    let everybodys = std::fs::read_to_string(cluster.dir().join("net-conf.json"))?;
    let mut conf: Value = serde_json::from_str(&everybodys)?;
    conf["Backend"]["DataPath"] = mode.into();
    std::fs::write(&file, conf.to_string())?;
    let mut launch = cluster.launch(name)?.set("--net-config-path", &file);
    if let Some((key, value)) = environment {
        launch = launch.env(key, value);
    }
    let daemon = launch.spawn()?;
    cluster.node_mut(name)?.adopt(daemon).wait_ready().map(drop)
}

const MODES: [(&str, &str); 3] = [("n1", "userspace"), ("n2", "userspace"), ("n3", "kernel")];

impl Setup for Lab {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().pods_per_node(1).backend(r#"{"Type": "vxlan"}"#).build()?;
        let hand = ByHand::plug(&mut cluster)?;
        let mut nodes = cluster.manifests();
        nodes.push(hand.manifest());
        cluster.publish_only(&nodes)?;
        for (name, mode) in MODES {
            start(&mut cluster, name, mode, None)?;
        }
        cluster.attach_pods()?;
        Ok(Self { cluster, hand })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl Lab {
    fn metrics(&self) -> Result<Metrics> {
        self.cluster.node("n1")?.daemon()?.metrics()
    }

    fn connected(&self) -> Result<()> {
        for from in self.cluster.pods() {
            self.cluster.pods().try_for_each(|to| reach::check(Source::Pod(from), to))?;
        }
        for node in self.cluster.nodes() {
            self.cluster.pods().try_for_each(|to| reach::check(Source::Node(node), to))?;
        }
        Ok(())
    }
}

fn end(pod: &Pod) -> End<'_> {
    End { ns: pod.ns(), ip: pod.ip() }
}

fn everybody(lab: &mut Lab, _: &Notes) -> Result<()> {
    lab.connected()
}

fn state(lab: &mut Lab, _: &Notes) -> Result<()> {
    let node = lab.cluster.node("n1")?;
    let link = node.link("flannel.1")?.context("no flannel.1")?;
    for part in ["POINTOPOINT", "mtu 1450", "tun type tun pi off"] {
        ensure!(link.contains(part), "`{part}` is missing in {link}");
    }
    let routes = node.ns().ip_show("route show dev flannel.1")?;
    ensure!(routes.lines().count() == 1 && routes.starts_with(NETWORK), "{routes}");
    let addresses = node.ns().ip_show("-4 -oneline address show dev flannel.1")?;
    ensure!(addresses.lines().count() == 1 && addresses.contains(" 10.244.1.0/32 "), "{addresses}");
    ensure!(node.subnet_env("FLANNEL_MTU")? == "1450");
    for (name, mode) in MODES {
        let node = lab.cluster.node(name)?;
        let said = node.flanneld(&["routes"])?.run()?;
        let words = if mode == "userspace" { "vxlan in user space" } else { "vxlan" };
        ensure!(said.contains(words) && (mode == "userspace" || !said.contains("user space")), "{said}");
        let labels = [("backend", "vxlan"), ("mode", mode)];
        ensure!(node.daemon()?.metrics()?.sum("loden_backend_info", &labels) == 1.0);
        let body = node.daemon()?.get("/readyz")?.body;
        ensure!(body == "flanneld is ready", "{body}");
    }
    lab.cluster.node("n1")?.daemon()?.wait_log("vxlan in user space").map(drop)
}

fn exact_bytes(lab: &mut Lab, _: &Notes) -> Result<()> {
    let (from, to) = (lab.cluster.pod("n1.a")?, lab.cluster.pod("n2.a")?);
    let sink = Sink::bind(to.ns(), VICTIM)?;
    let wire = Capture::open(lab.cluster.node("n1")?.ns(), "eth0")?;
    let sender = from.ns().run(|| Ok(UdpSocket::bind((from.ip(), 9001))?))?;
    sender.send_to(b"hello", (to.ip(), VICTIM))?;
    ensure!(sink.next()?.0 == b"hello");
    let seen = wire.datagrams(PORT)?;
    let [outer] = seen.as_slice() else { anyhow::bail!("{seen:?}") };
    // From which port says nothing: kernels choose one for each flow.
    ensure!(outer.from.0 == lab.cluster.node("n1")?.address(), "{outer:?}");
    ensure!(outer.to == (lab.cluster.node("n2")?.address(), PORT), "{outer:?}");
    let mut expected = vec![8, 0, 0, 0, 0, 0, 1, 0];
    expected.extend([0x0e, 0x10, 0x24, 0x4a, 0, 2, 0x0e, 0x10, 0x24, 0x4a, 0, 1, 8, 0]);
    ensure!(outer.payload.get(..22) == Some(&expected[..]), "{:02x?}", outer.payload);
    // Outer headers, VXLAN, Ethernet; inner IP and UDP headers and five bytes.
    ensure!(outer.length == 50 + 28 + 5, "{outer:?}");
    ensure!(outer.payload.get(22 + 20 + 8..) == Some(b"hello"), "{:02x?}", outer.payload);
    Ok(())
}

fn made_by_hand(lab: &mut Lab, _: &Notes) -> Result<()> {
    for name in ["n1.a", "n2.a", "n3.a"] {
        let pod = lab.cluster.pod(name)?;
        icmp::ping(pod.ns(), HAND_POD, 1450).with_context(|| format!("{name} to the peer made by hand"))?;
        icmp::ping(&lab.hand.ns, pod.ip(), 1450).with_context(|| format!("back to {name}"))?;
    }
    Ok(())
}

fn two_thousand_bytes(lab: &mut Lab, _: &Notes) -> Result<()> {
    for (from, to) in [("n1.a", "n2.a"), ("n1.a", "n3.a"), ("n3.a", "n1.a")] {
        let to = lab.cluster.pod(to)?.ip();
        for _ in 0..20 {
            udp::echo(lab.cluster.pod(from)?.ns(), to, 2000)?;
        }
    }
    udp::echo(&lab.hand.ns, lab.cluster.pod("n1.a")?.ip(), 2000).map(drop)
}

fn bulk_is_whole(lab: &mut Lab, notes: &Notes) -> Result<()> {
    for (from, to) in [("n1.a", "n2.a"), ("n1.a", "n3.a"), ("n3.a", "n1.a")] {
        let (sender, receiver) = (end(lab.cluster.pod(from)?), end(lab.cluster.pod(to)?));
        let done = bulk::transfer(sender, receiver, 10_000_000, |_| {})
            .with_context(|| format!("{from} to {to}"))?;
        ensure!(done.sent == done.received, "{from} to {to}: {done:?}");
        let rate = bulk::human_rate(done.bytes as f64 / done.took.as_secs_f64());
        notes.add(format!("TCP from {from} to {to}: {rate}"));
    }
    let hand = End { ns: &lab.hand.ns, ip: HAND_POD };
    for (from, to) in [(hand, end(lab.cluster.pod("n1.a")?)), (end(lab.cluster.pod("n1.a")?), hand)] {
        let done = bulk::transfer(from, to, 10_000_000, |_| {})?;
        ensure!(done.sent == done.received, "made by hand: {done:?}");
    }
    Ok(())
}

fn full_size(lab: &mut Lab, _: &Notes) -> Result<()> {
    for (from, to) in reach::pairs(&lab.cluster).filter(|(from, to)| from.is_remote(to)) {
        icmp::ping(from.ns(), to.ip(), 1450).with_context(|| format!("{} to {}", from.name(), to.name()))?;
        ensure!(icmp::ping(from.ns(), to.ip(), 1451).is_err(), "1,451 bytes passed a tunnel of 1,450");
    }
    Ok(())
}

fn too_big(lab: &mut Lab, _: &Notes) -> Result<()> {
    let mut nodes = lab.cluster.manifests();
    let peer = nodes.iter_mut().find(|node| node.name == "n2").context("no n2")?;
    peer.annotations.push(("flannel.alpha.coreos.com/loden".into(), r#"{"MTU":1300}"#.into()));
    nodes.push(lab.hand.manifest());
    lab.cluster.publish_only(&nodes)?;
    let (from, to) = (lab.cluster.pod("n1.a")?, lab.cluster.pod("n2.a")?);
    wait::until_true("the pod is told that 1,450 bytes are too many", || {
        let said = icmp::ping(from.ns(), to.ip(), 1450).err().map(|error| format!("{error:#}"));
        Ok(said.is_some_and(|said| said.contains("too long")))
    })?;
    let route = from.ns().ip_show(&format!("route get {}", to.ip()))?;
    ensure!(route.contains("mtu 1300"), "the pod did not learn the size: {route}");
    icmp::ping(from.ns(), to.ip(), 1300)?;
    udp::echo(from.ns(), to.ip(), 2000).map(drop)
}

/// A tunnel datagram for n1 as the peer made by hand would send it, with the inner source that is asked for.
fn datagram(lab: &Lab, source: Ipv4Addr) -> Result<Vec<u8>> {
    let inner = packet::udp((source, 1234), (lab.cluster.pod("n1.a")?.ip(), VICTIM), b"let me in")?;
    let mut datagram = vec![8, 0, 0, 0, 0, 0, 1, 0];
    datagram.extend([0x0e, 0x10, 0x24, 0x4a, 0, 1, 0x0e, 0x10, 0x24, 0x4a, 0, 0x32, 8, 0]);
    datagram.extend(inner);
    Ok(datagram)
}

/// A socket of any port on a host.
fn socket(ns: &Netns, address: Ipv4Addr) -> Result<UdpSocket> {
    ns.run(|| Ok(UdpSocket::bind((address, 0))?))
}

fn honest(lab: &mut Lab, _: &Notes) -> Result<()> {
    let sink = Sink::bind(lab.cluster.pod("n1.a")?.ns(), VICTIM)?;
    let to = (lab.cluster.node("n1")?.address(), PORT);
    for source in [HAND_POD, Ipv4Addr::new(8, 8, 8, 8)] {
        socket(&lab.hand.ns, lab.hand.address)?.send_to(&datagram(lab, source)?, to)?;
        let (payload, from) = sink.next()?;
        ensure!(payload == b"let me in" && from.ip() == source, "{from} said {payload:?}");
    }
    // Bits that the RFC tells receivers to ignore.
    let mut decorated = datagram(lab, HAND_POD)?;
    (decorated[0], decorated[1], decorated[2], decorated[7]) = (0x88, 0x48, 7, 1);
    socket(&lab.hand.ns, lab.hand.address)?.send_to(&decorated, to)?;
    ensure!(sink.next()?.0 == b"let me in");
    Ok(())
}

fn refused(lab: &mut Lab, _: &Notes) -> Result<()> {
    let address = Ipv4Addr::new(192, 168, 77, 66);
    let stranger = lab.cluster.plug("stranger", address)?;
    let stranger = socket(&stranger, address)?;
    let node = socket(&lab.hand.ns, lab.hand.address)?;
    let honest = datagram(lab, HAND_POD)?;
    let with = |at: usize, value: u8| {
        let mut changed = honest.clone();
        changed[at] = value;
        changed
    };
    let source = |name: &str| datagram(lab, lab.cluster.pod(name)?.ip());
    let cases: Vec<(&str, &UdpSocket, Vec<u8>)> = vec![
        ("unknown_sender", &stranger, honest.clone()),
        ("unknown_sender", &stranger, source("n2.a")?),
        ("spoofed_source", &node, source("n2.a")?),
        ("spoofed_source", &node, source("n1.a")?),
        ("spoofed_source", &node, datagram(lab, Ipv4Addr::new(10, 244, 99, 1))?),
        ("wrong_vni", &node, with(6, 2)),
        ("wrong_vni", &node, with(4, 1)),
        ("wrong_mac", &node, with(13, 2)),
        ("wrong_mac", &node, with(8, 0xff)),
        ("not_ip", &node, with(21, 6)),
        ("bad_packet", &node, with(0, 0)),
        ("bad_packet", &node, with(22, 0x65)),
        ("bad_packet", &node, honest[..21].to_vec()),
        ("bad_packet", &node, honest[..22].to_vec()),
        ("bad_packet", &node, Vec::new()),
        ("truncated", &node, honest[..honest.len() - 1].to_vec()),
    ];
    let sink = Sink::bind(lab.cluster.pod("n1.a")?.ns(), VICTIM)?;
    for (reason, sender, datagram) in cases {
        let before = lab.metrics()?;
        for _ in 0..COUNT {
            sender.send_to(&datagram, (lab.cluster.node("n1")?.address(), PORT))?;
        }
        let labels = [("direction", "rx"), ("reason", reason)];
        wait::until_true(&format!("{COUNT} drops counted as {reason}"), || {
            let grown =
                lab.metrics()?.sum("loden_drops_total", &labels) - before.sum("loden_drops_total", &labels);
            Ok(grown == f64::from(COUNT))
        })?;
        let all = |metrics: &Metrics| metrics.sum("loden_drops_total", &[("direction", "rx")]);
        ensure!(
            all(&lab.metrics()?) - all(&before) == f64::from(COUNT),
            "{reason}: other reasons counted too"
        );
        ensure!(sink.arrived()?.is_empty(), "{reason}: delivered");
    }
    Ok(())
}

fn restart(lab: &mut Lab, notes: &Notes) -> Result<()> {
    lab.cluster.node_mut("n1")?.stop_daemon(Signal::SIGKILL)?;
    start(&mut lab.cluster, "n1", "userspace", None)?;
    let took = wait::until_true("everybody reaches everybody", || lab.connected().map(|()| true))?;
    notes.took("from ready to everybody reaches everybody", took);
    Ok(())
}

fn switch(lab: &mut Lab, _: &Notes) -> Result<()> {
    for (mode, kind) in [("kernel", "vxlan id 1"), ("userspace", "tun type tun")] {
        lab.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        start(&mut lab.cluster, "n1", mode, None)?;
        let node = lab.cluster.node("n1")?;
        let link = node.link("flannel.1")?.context("no flannel.1")?;
        ensure!(link.contains(kind), "not `{kind}`: {link}");
        let routes = node.ns().ip_show("route show dev flannel.1")?;
        ensure!((routes.lines().count() == 1) == (mode == "userspace"), "{routes}");
        wait::until_true("everybody reaches everybody", || lab.connected().map(|()| true))?;
        made_by_hand(lab, &Notes::default())?;
    }
    Ok(())
}

fn families(_: &mut Lab, notes: &Notes) -> Result<()> {
    for (families, device, mtu) in [(Families::Dual, "flannel.1", 1430), (Families::V6, "flannel-v6.1", 1430)]
    {
        let backend = r#"{"Type": "vxlan"}"#;
        let mut cluster = Cluster::builder().pods_per_node(1).families(families).backend(backend).build()?;
        for (name, mode) in MODES {
            start(&mut cluster, name, mode, None)?;
        }
        cluster.attach_pods()?;
        let node = cluster.node("n1")?;
        let link = node.link(device)?.with_context(|| format!("no {device}"))?;
        ensure!(link.contains("tun type tun") && link.contains(&format!("mtu {mtu}")), "{link}");
        let wire = Capture::open(node.ns(), "eth0")?;
        for (from, to) in reach::pairs(&cluster) {
            reach::check(from, to)
                .with_context(|| format!("{families:?}: {} to {}", from.name(), to.name()))?;
        }
        for (from, to) in reach::pairs(&cluster).filter(|(from, to)| from.is_remote(to)) {
            let body: Vec<u8> = (0..1_000_000u32).map(|n| (n / 7) as u8).collect();
            for at in to.ips() {
                icmp::ping(from.ns(), at, mtu)?;
                udp::echo(from.ns(), at, 2000)?;
                ensure!(
                    http::echo(from.ns(), at, &body)? == body,
                    "{families:?}: changed on the way to {at}"
                );
            }
        }
        // What was for IPv4 pods went over IPv4, and nothing else did.
        let over_v4 =
            wire.datagrams(PORT)?.iter().filter(|outer| outer.payload.get(20..22) != Some(&[8, 0])).count();
        ensure!(over_v4 == 0, "{over_v4} datagrams over IPv4 did not carry IPv4");
        notes.add(format!("{families:?}: {} pairs", reach::pairs(&cluster).count()));
    }
    Ok(())
}

/// Nobody has said what the address is to be: each daemon derives one and publishes it, and peers find each other by it.
fn published(_: &mut Lab, _: &Notes) -> Result<()> {
    let backend = r#"{"Type": "vxlan", "DataPath": "userspace"}"#;
    let mut kube = Kube::with(
        Options::default(),
        |builder| builder.backend(backend),
        |_, server| {
            ["n1", "n2"]
                .iter()
                .try_for_each(|node| server.annotate_node(node, &key("backend-data"), None).map(drop))
        },
    )?;
    let data = |kube: &Kube| -> Result<String> {
        let annotations = kube.server.node("n1")?.metadata.annotations.unwrap_or_default();
        annotations.get(&key("backend-data")).cloned().context("no backend-data")
    };
    let first = data(&kube)?;
    ensure!(first.starts_with(r#"{"VNI":1,"VtepMAC":""#), "{first}");
    let connected = |kube: &Kube| {
        wait::until_true("everybody reaches everybody", || {
            reach::pairs(&kube.cluster).try_for_each(|(from, to)| reach::check(from, to)).map(|()| true)
        })
    };
    connected(&kube)?;
    for mode in ["kernel", "userspace"] {
        kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        start(&mut kube.cluster, "n1", mode, None)?;
        connected(&kube)?;
        ensure!(data(&kube)? == first, "{mode}: {} after {first}", data(&kube)?);
    }
    kube.n1()?.flanneld(&["verify"])?.run().map(drop)
}

/// As with network cards that offload nothing: many datagrams per receive, whole packets, finished checksums. And with
/// no offloads in the daemon, with a kernel peer that hands over super-packets.
fn cut_wire(lab: &mut Lab, notes: &Notes) -> Result<()> {
    let backend = r#"{"Type": "vxlan"}"#;
    let mut cut = Cluster::builder().pods_per_node(1).wire(Wire::Segmented).backend(backend).build()?;
    for (name, mode) in MODES {
        start(&mut cut, name, mode, None)?;
    }
    cut.attach_pods()?;
    lab.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    start(&mut lab.cluster, "n1", "userspace", Some(("LODEN_OFFLOAD_DISABLE", "all")))?;
    for (what, cluster) in [("cut", &cut), ("no offloads", &lab.cluster)] {
        for (from, to) in [("n1.a", "n2.a"), ("n1.a", "n3.a"), ("n3.a", "n1.a")] {
            let (sender, receiver) = (end(cluster.pod(from)?), end(cluster.pod(to)?));
            let done = bulk::transfer(sender, receiver, 5_000_000, |_| {})
                .with_context(|| format!("{what}: {from} to {to}"))?;
            ensure!(done.sent == done.received, "{what}: {from} to {to}: {done:?}");
            let rate = bulk::human_rate(done.bytes as f64 / done.took.as_secs_f64());
            notes.add(format!("{what}: TCP from {from} to {to}: {rate}"));
            udp::echo(cluster.pod(from)?.ns(), cluster.pod(to)?.ip(), 2000)?;
        }
    }
    Ok(())
}
