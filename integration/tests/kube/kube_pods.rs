//! `--pod-routes` on a real API server: pods outside their node's podCIDR are reached, and all are known by name.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::handmade::Handmade;
use integration::kube_feed::annotated;
use integration::netns::Netns;
use integration::probe::netexec::Netexec;
use integration::probe::packet;
use integration::probe::udp::{self, Asker, Sink};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ROLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/components/pod-routes/rbac.yml");
/// In the cluster network, and in nobody's podCIDR.
const ASTRAY: Ipv4Addr = Ipv4Addr::new(10, 244, 99, 7);

pub(super) fn suite() -> Checks {
    Suite::<Pods>::new()
        .check("without the role the manifest is named, and the map of nodes is whole", forbidden)
        .check("a pod in its podCIDR is shown, and gets no route", at_home)
        .check("a pod outside its podCIDR is routed to its node, and shown by name", appears)
        .check("a pod that comes back on another node takes its address along", moves)
        .check("a pod that is gone, or has finished, gets nothing any more", disappears)
        .check("packets reach such a pod across nodes, and its own pass the check of senders", delivered)
        .check("no other node may send from its address", spoofed)
        .check("of two pods with one address the first keeps it, and the second gets it next", conflict)
        .check("a pod that ends yields its address, and keeps it as long as nobody wants it", ending)
        .check("addresses that no pod may have are refused", refused)
        .check("a daemon that restarts has the routes again", restarted)
        .check("pods are watched, and nothing else is asked", requests)
        .checks()
}

/// Two real nodes whose daemons watch pods, and two hand-made ones.
struct Pods(Kube);

impl Setup for Pods {
    fn build() -> Result<Self> {
        let watching =
            |builder: integration::topology::Builder| builder.launch(|launch| launch.flag("--pod-routes"));
        let mut kube = Kube::with(Options::default(), watching, |_, server| {
            server.kubectl(&["apply", "--server-side", "-f", ROLE]).map(drop)
        })?;
        let mut nodes = kube.cluster.manifests();
        nodes.extend([annotated(kube.first.manifest()), annotated(kube.second.manifest())]);
        kube.cluster.publish_only(&nodes)?;
        kube.n1()?.wait_lease(&kube.second.name())?;
        Ok(Self(kube))
    }

    fn explain(&self) -> String {
        self.0.explain()
    }
}

impl Pods {
    fn create(&self, name: &str, at: &Handmade, address: Ipv4Addr) -> Result<()> {
        self.0.server.create_pod(name, &at.name(), address.into())
    }

    fn wait_routes(&self, count: f64) -> Result<Duration> {
        wait::until_true(&format!("{count} host routes"), || {
            Ok(self.0.metric("loden_host_routes", &[])? == count)
        })
    }

    fn wait_refused(&self, reason: &str, count: f64) -> Result<()> {
        let labels = [("reason", reason)];
        wait::until_true(&format!("{count} {reason}"), || {
            Ok(self.0.metric("loden_refused_pods", &labels)? == count)
        })?;
        Ok(())
    }

    /// The pods that n1's daemon shows on a node.
    fn shown(&self, node: &str) -> Result<Value> {
        let row = self.0.n1()?.route(node)?.with_context(|| format!("no row for {node}"))?;
        Ok(row["pods"].clone())
    }

    /// What is sent to `address` goes nowhere.
    fn unreached(&self, address: Ipv4Addr) -> Result<()> {
        self.0.first.pending()?;
        self.0.second.pending()?;
        let asker = Asker::new(self.0.cluster.pod("n1.a")?.ns(), address)?;
        let _ = asker.ask(b"hostname", Duration::from_millis(50));
        ensure!(
            self.0.first.pending()? + self.0.second.pending()? == 0,
            "packets for {address} went somewhere"
        );
        Ok(())
    }
}

fn forbidden(pods: &mut Pods, notes: &Notes) -> Result<()> {
    let kube = &mut pods.0;
    kube.server.kubectl(&["delete", "-f", ROLE])?;
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    kube.wait_body(&["degraded", "403", "pods is forbidden", "pod-routes/rbac.yml"])?;
    let log = kube.n1()?.daemon()?.log()?;
    ensure!(log.contains("pod-routes/rbac.yml"), "{log}");
    ensure!(kube.metric("loden_lease_source_up", &[])? == 1.0 && kube.metric("loden_leases", &[])? == 4.0);
    let answer = udp::ask(kube.cluster.pod("n1.a")?.ns(), kube.cluster.pod("n2.a")?.ip(), b"hostname")?;
    ensure!(answer == b"n2.a");
    kube.server.kubectl(&["apply", "--server-side", "-f", ROLE])?;
    notes.took("well after the role was applied", kube.wait_ready()?);
    Ok(())
}

fn at_home(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.create("home", &pods.0.first, pods.0.first.pod(9))?;
    wait::until_true("it is shown", || {
        let home = json!([{ "name": "default/home", "addresses": ["10.244.50.9"], "routed": false }]);
        Ok(pods.shown(&pods.0.first.name())? == home)
    })?;
    pods.wait_routes(0.0)?;
    Ok(())
}

fn appears(pods: &mut Pods, notes: &Notes) -> Result<()> {
    pods.unreached(ASTRAY)?;
    pods.create("astray", &pods.0.first, ASTRAY)?;
    notes.took("traffic to a new pod after", pods.0.wait_traffic(ASTRAY, &pods.0.first)?);
    let shown = pods.shown(&pods.0.first.name())?;
    ensure!(
        shown[0] == json!({ "name": "default/astray", "addresses": ["10.244.99.7"], "routed": true }),
        "{shown}"
    );
    let row = pods.0.n1()?.route(&pods.0.first.name())?.context("no row")?;
    ensure!(row["prefixes"] == json!(["10.244.50.0/24"]), "{row}");
    let table = pods.0.n1()?.flanneld(&["routes"])?.run()?;
    ensure!(table.contains("PODS") && table.contains("2 (1 routed)"), "{table}");
    Ok(())
}

fn moves(pods: &mut Pods, notes: &Notes) -> Result<()> {
    pods.0.server.delete_pod("astray", true)?;
    pods.create("astray", &pods.0.second, ASTRAY)?;
    notes.took("traffic to a moved pod after", pods.0.wait_traffic(ASTRAY, &pods.0.second)?);
    pods.wait_routes(1.0)?;
    Ok(())
}

fn disappears(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.0.server.delete_pod("astray", true)?;
    pods.wait_routes(0.0)?;
    pods.unreached(ASTRAY)?;
    pods.create("job", &pods.0.second, ASTRAY)?;
    pods.wait_routes(1.0)?;
    pods.0.server.patch_pod_status("job", &json!({ "phase": "Succeeded" }))?;
    pods.wait_routes(0.0)?;
    pods.unreached(ASTRAY)?;
    pods.0.server.delete_pod("job", true)
}

/// The pod is real: a namespace behind n2's bridge that has nothing but this address.
fn delivered(pods: &mut Pods, notes: &Notes) -> Result<()> {
    let kube = &pods.0;
    let (n2, ns) = (kube.cluster.node("n2")?, Netns::new("astray")?);
    n2.ns().ip(&format!(
        "link add vethx mtu 1472 type veth peer name eth0 netns {}\nlink set vethx master cni0 up\n\
         route add {ASTRAY}/32 dev cni0",
        ns.path()
    ))?;
    ns.ip(&format!(
        "link set eth0 mtu 1472 up\naddr add {ASTRAY}/32 dev eth0\nroute add default via {} dev eth0 onlink",
        n2.pod_address(1)
    ))?;
    let _server = Netexec::start(&ns, "astray")?;
    let peer = kube.cluster.pod("n1.a")?;
    kube.server.create_pod("real", "n2", ASTRAY.into())?;
    let asker = Asker::new(peer.ns(), ASTRAY)?;
    let took = wait::until_true("the pod answers", || {
        Ok(asker.ask(b"hostname", Duration::from_millis(20)).is_ok_and(|(answer, _)| answer == b"astray"))
    })?;
    notes.took("an answer of a real pod outside its podCIDR after", took);
    udp::echo(peer.ns(), ASTRAY, 1400)?;
    // What it begins itself is masqueraded, as it is in flannel: only the podCIDR is known to those rules.
    let back = udp::ask(&ns, peer.ip(), b"hostname")?;
    ensure!(back == b"n1.a", "{}", String::from_utf8_lossy(&back));
    ensure!(kube.metric("loden_drops_total", &[("reason", "spoofed_source")])? == 0.0);
    kube.server.delete_pod("real", true)?;
    pods.wait_routes(0.0)?;
    n2.ns().ip("link del vethx")
}

fn spoofed(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.create("astray", &pods.0.second, ASTRAY)?;
    pods.wait_routes(1.0)?;
    let target = pods.0.cluster.pod("n1.a")?;
    let sink = Sink::bind(target.ns(), 9000)?;
    let payload = packet::udp((ASTRAY, 9), (target.ip(), 9000), b"x")?;
    pods.0.first.send(pods.0.n1()?, &payload)?;
    wait::until_true("the liar is counted", || {
        Ok(pods.0.metric("loden_drops_total", &[("reason", "spoofed_source")])? == 1.0)
    })?;
    ensure!(sink.arrived()?.is_empty(), "it was delivered");
    pods.0.second.send(pods.0.n1()?, &payload)?;
    sink.next()?;
    pods.0.server.delete_pod("astray", true)
}

fn conflict(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.wait_routes(0.0)?;
    pods.create("one", &pods.0.first, ASTRAY)?;
    pods.wait_routes(1.0)?;
    pods.create("two", &pods.0.second, ASTRAY)?;
    pods.wait_refused("duplicate_address", 1.0)?;
    pods.0.wait_traffic(ASTRAY, &pods.0.first)?;
    pods.0.wait_body(&["degraded", "1 pod refused"])?;
    let table = pods.0.n1()?.flanneld(&["routes"])?.run()?;
    ensure!(table.contains("default/two") && table.contains("is that of pod \"default/one\""), "{table}");
    pods.0.server.delete_pod("one", true)?;
    pods.0.wait_traffic(ASTRAY, &pods.0.second)?;
    pods.wait_refused("duplicate_address", 0.0)?;

    // A pod of its own podCIDR is nobody's prey, even if the other was there first.
    let address = pods.0.first.pod(30);
    pods.create("thief", &pods.0.second, address)?;
    pods.wait_routes(2.0)?;
    pods.create("owner", &pods.0.first, address)?;
    pods.wait_refused("duplicate_address", 1.0)?;
    pods.0.wait_traffic(address, &pods.0.first)?;
    for name in ["two", "thief", "owner"] {
        pods.0.server.delete_pod(name, true)?;
    }
    pods.0.wait_ready()?;
    Ok(())
}

fn ending(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.create("old", &pods.0.first, ASTRAY)?;
    pods.wait_routes(1.0)?;
    pods.0.server.delete_pod("old", false)?;
    pods.0.wait_traffic(ASTRAY, &pods.0.first)?;
    pods.create("new", &pods.0.second, ASTRAY)?;
    pods.0.wait_traffic(ASTRAY, &pods.0.second)?;
    pods.wait_refused("duplicate_address", 0.0)?;
    pods.0.server.delete_pod("old", true)?;
    pods.0.server.delete_pod("new", true)?;
    pods.wait_routes(0.0)?;
    Ok(())
}

fn refused(pods: &mut Pods, _: &Notes) -> Result<()> {
    let gateway = pods.0.second.pod(1);
    for (name, address, reason) in
        [("outside", [10, 9, 9, 9].into(), "outside_network"), ("gateway", gateway, "node_address")]
    {
        pods.create(name, &pods.0.first, address)?;
        pods.wait_refused(reason, 1.0)?;
        pods.0.server.delete_pod(name, true)?;
        pods.wait_refused(reason, 0.0)?;
    }
    pods.wait_routes(0.0)?;
    pods.0.wait_ready()?;
    Ok(())
}

fn restarted(pods: &mut Pods, _: &Notes) -> Result<()> {
    pods.create("astray", &pods.0.second, ASTRAY)?;
    pods.wait_routes(1.0)?;
    pods.0.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    pods.0.cluster.start_daemon("n1")?;
    pods.0.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    pods.0.wait_traffic(ASTRAY, &pods.0.second)?;
    pods.0.server.delete_pod("astray", true)
}

fn requests(pods: &mut Pods, _: &Notes) -> Result<()> {
    let asked = pods.0.server.requests_of("system:serviceaccount:loden-system:loden")?;
    let path = |uri: &str| uri.split('?').next().unwrap_or_default().to_owned();
    for request in asked.iter().filter(|request| !path(&request.uri).starts_with("/api/v1/nodes")) {
        let paths = ["/api/v1/pods", "/api/v1/namespaces/default/events"];
        ensure!(paths.contains(&path(&request.uri).as_str()), "{request:?}");
        ensure!(
            !request.uri.contains("/pods") || ["list", "watch"].contains(&request.verb.as_str()),
            "{request:?}"
        );
    }
    ensure!(asked.iter().any(|request| path(&request.uri) == "/api/v1/pods" && request.code == 200));
    Ok(())
}
