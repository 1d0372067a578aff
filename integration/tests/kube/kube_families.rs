//! Dual-stack VXLAN, leases from a real API server: what happens to one family of a peer leaves the other as it is.
//!
//! In flannel a change in one family is lost for ever unless the other changes with it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{NodeSpec, Options};
use integration::fixture::Kube;
use integration::kube_feed::key;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Families;
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<Dual>::new()
        .check("every pod and node reaches every pod over both families", everybody)
        .check("own annotations are flannel's, a device's MAC for each family", annotations)
        .check("a change in one family alone takes effect", one_alone)
        .check("a change in one family takes effect while the other is bad", one_bad)
        .check("a bad half is refused by name, and nothing else is touched", refused)
        .check("a MAC that another node has is refused, and free at once when that node goes", duplicate_mac)
        .check("a device made anew gets the MAC of our own annotation, under another prefix too", own_mac)
        .checks()
}

struct Dual(Kube);

impl Setup for Dual {
    fn build() -> Result<Self> {
        let shape = |builder: integration::topology::Builder| {
            builder.families(Families::Dual).backend(r#"{"Type": "vxlan"}"#)
        };
        let kube = Kube::with(Options::default(), shape, |_, _| Ok(()))?;
        let dual = Self(kube);
        dual.join("x", 9)?;
        dual.wait("x", &dual.v4("192.168.99.9", 9), &dual.v6("fd00:99::9", 9))?;
        Ok(dual)
    }

    fn explain(&self) -> String {
        self.0.explain()
    }
}

fn data(vni: u32, mac: u8) -> String {
    format!(r#"{{"VNI":{vni},"VtepMAC":"{}"}}"#, device(mac))
}

fn device(mac: u8) -> String {
    format!("d2:00:00:00:00:{mac:02x}")
}

/// What the kernel holds of one family of node x: route, neighbour and forwarding entry, `None` where it holds nothing.
type Held = Option<[String; 3]>;

impl Dual {
    /// Creates a Node as a dual-stack flannel leaves it, at an address where nobody is.
    fn join(&self, name: &str, number: u8) -> Result<()> {
        let spec = NodeSpec::new(name, format!("10.244.{number}.0/24"), [192, 168, 99, number].into());
        let pod_cidrs = vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
        let spec = [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", data(1, number)),
            ("backend-v6-data", data(1, number)),
            ("public-ip", format!("192.168.99.{number}")),
            ("public-ipv6", format!("fd00:99::{number}")),
        ]
        .into_iter()
        .fold(NodeSpec { pod_cidrs, ..spec }, |spec, (name, value)| spec.annotation(key(name), value));
        self.0.server.create_node(&spec).map(drop)
    }

    fn v4(&self, ip: &str, mac: u8) -> Held {
        let gateway = "10.244.9.0";
        Some([
            format!("10.244.9.0/24 via {gateway}"),
            format!("{gateway} lladdr {} PERMANENT", device(mac)),
            format!("{} dst {ip} self permanent", device(mac)),
        ])
    }

    fn v6(&self, ip: &str, mac: u8) -> Held {
        let gateway = "fd00:10:244:9::";
        Some([
            format!("fd00:10:244:9::/64 via {gateway}"),
            format!("{gateway} lladdr {} PERMANENT", device(mac)),
            format!("{} dst {ip} self permanent", device(mac)),
        ])
    }

    /// What n1's kernel holds of node x over `device`, one text of all of it.
    fn kernel(&self, family: &str, device: &str) -> Result<String> {
        let ns = self.0.n1()?.ns();
        let fdb = ns.command("bridge").args(["fdb", "show", "dev", device]).run()?;
        let of_x = |text: String| {
            let of_x =
                |line: &&str| line.contains("244.9.") || line.contains("244:9:") || line.contains("d2:00");
            text.lines().filter(of_x).map(|line| format!("{line}\n")).collect::<String>()
        };
        let routes = ns.ip_show(&format!("{family} route show dev {device}"))?;
        let neighbours = ns.ip_show(&format!("{family} neigh show dev {device}"))?;
        Ok(of_x(routes) + &of_x(neighbours) + &of_x(fdb))
    }

    /// Waits until n1's kernel holds exactly that of node `x`.
    fn wait(&self, x: &str, v4: &Held, v6: &Held) -> Result<std::time::Duration> {
        let holds = |family, device, held: &Held| {
            let text = self.kernel(family, device)?;
            let lines = text.lines().count();
            Ok::<_, anyhow::Error>(match held {
                None => lines == 0,
                Some(parts) => lines == 3 && parts.iter().all(|part| text.contains(part.as_str())),
            })
        };
        let both = || Ok(holds("-4", "flannel.1", v4)? && holds("-6", "flannel-v6.1", v6)?);
        wait::until_true(&format!("the kernel holds {v4:?} and {v6:?} of {x}"), both).with_context(|| {
            let found = |family, device| self.kernel(family, device).unwrap_or_default();
            format!("it holds:\n{}{}", found("-4", "flannel.1"), found("-6", "flannel-v6.1"))
        })
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        self.0.set("x", name, Some(value))
    }

    /// Node x as it was at the beginning.
    fn restore(&self) -> Result<()> {
        self.set("backend-data", &data(1, 9))?;
        self.set("backend-v6-data", &data(1, 9))?;
        self.set("public-ip", "192.168.99.9")?;
        self.set("public-ipv6", "fd00:99::9")?;
        self.wait("x", &self.v4("192.168.99.9", 9), &self.v6("fd00:99::9", 9))?;
        self.0.wait_ready().map(drop)
    }
}

fn everybody(dual: &mut Dual, _: &Notes) -> Result<()> {
    reach::pairs(&dual.0.cluster).try_for_each(|(from, to)| reach::check(from, to))
}

fn annotations(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    let mac = |device: &str| -> Result<String> {
        let link = kube.n1()?.link(device)?.with_context(|| format!("no {device}"))?;
        let mac = link.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        mac.map(str::to_owned).context(link.clone())
    };
    let data = |device: &str| Ok::<_, anyhow::Error>(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(device)?));
    let want: BTreeMap<String, String> = [
        ("backend-data", data("flannel.1")?),
        ("backend-type", "vxlan".to_owned()),
        ("backend-v6-data", data("flannel-v6.1")?),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", "192.168.77.1".to_owned()),
        ("public-ipv6", "fd00:77::1".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (key(name), value))
    .collect();
    wait::until_true("own annotations are flannel's", || {
        let mut got = kube.server.node("n1")?.metadata.annotations.unwrap_or_default();
        Ok(got.remove(&key("loden")).is_some() && got == want)
    })?;
    Ok(())
}

fn one_alone(dual: &mut Dual, notes: &Notes) -> Result<()> {
    let (v4, v6) = (dual.v4("192.168.99.9", 9), dual.v6("fd00:99::9", 9));
    dual.set("backend-data", &data(1, 0x19))?;
    notes.took("a new IPv4 MAC is in the kernel after", dual.wait("x", &dual.v4("192.168.99.9", 0x19), &v6)?);
    dual.set("backend-data", &data(1, 9))?;
    dual.wait("x", &v4, &v6)?;
    dual.set("backend-v6-data", &data(1, 0x19))?;
    notes.took("a new IPv6 MAC is in the kernel after", dual.wait("x", &v4, &dual.v6("fd00:99::9", 0x19))?);
    dual.set("public-ip", "192.168.99.8")?;
    dual.wait("x", &dual.v4("192.168.99.8", 9), &dual.v6("fd00:99::9", 0x19))?;
    dual.restore()
}

fn one_bad(dual: &mut Dual, _: &Notes) -> Result<()> {
    let (v4, v6) = (dual.v4("192.168.99.9", 9), dual.v6("fd00:99::9", 9));
    dual.set("backend-v6-data", "garbage")?;
    dual.set("backend-data", &data(1, 0x19))?;
    dual.wait("x", &dual.v4("192.168.99.9", 0x19), &v6)?;
    dual.0.wait_body(&["degraded"])?;
    dual.restore()?;
    dual.set("public-ip", "127.0.0.1")?;
    dual.set("public-ipv6", "fd00:99::8")?;
    dual.wait("x", &v4, &dual.v6("fd00:99::8", 9))?;
    dual.restore()
}

fn refused(dual: &mut Dual, _: &Notes) -> Result<()> {
    let own = dual.0.cluster.node("n1")?.vtep_mac();
    let own = format!(r#"{{"VNI":1,"VtepMAC":"{own}"}}"#);
    let multicast = data(1, 9).replace("d2:00", "01:00");
    let huge = "x".repeat(100_000);
    for (name, value, reason) in [
        ("backend-data", "null", "no_vtep_mac"),
        ("backend-data", "garbage", "bad_backend_data"),
        ("backend-data", &huge, "bad_backend_data"),
        ("backend-data", &multicast, "bad_backend_data"),
        ("backend-data", &data(2, 9), "other_vni"),
        ("backend-data", &own, "own_mac"),
        ("backend-v6-data", "null", "no_vtep_mac"),
        ("backend-v6-data", &own, "own_mac"),
        ("public-ip", "127.0.0.1", "unusable_address"),
        ("public-ip", "10.244.1.9", "unusable_address"),
        ("public-ip", "192.168.77.1", "own_address"),
        ("public-ip", "192.168.77.2", "duplicate_address"),
        ("public-ipv6", "ff02::1", "unusable_address"),
        ("public-ipv6", "fd00:77::1", "own_address"),
        ("public-ipv6", "fd00:77::2", "duplicate_address"),
        ("public-ipv6", "10.0.0.1", "bad_address"),
    ] {
        dual.set(name, value)?;
        let labels = [("reason", reason)];
        wait::until_true(&format!("{name} {reason} is counted"), || {
            Ok(dual.0.metric("loden_refused_nodes", &labels)? == 1.0)
        })?;
        let row = dual.0.n1()?.route("x")?.context("x is gone")?;
        let note = row["note"].as_str().unwrap_or_default();
        let family = if name.contains("v6") { "IPv6" } else { "IPv4" };
        ensure!(note.contains(name) && note.contains(&format!("previous {family} lease stays")), "{row}");
        dual.wait("x", &dual.v4("192.168.99.9", 9), &dual.v6("fd00:99::9", 9))
            .with_context(|| format!("{name} was {}", value.chars().take(60).collect::<String>()))?;
        dual.restore()?;
    }
    everybody(dual, &Notes::default())
}

fn duplicate_mac(dual: &mut Dual, _: &Notes) -> Result<()> {
    dual.join("y", 8)?;
    dual.0.cluster.node("n1")?.wait_lease("y")?;
    dual.set("backend-data", &data(1, 8))?;
    let labels = [("reason", "duplicate_mac")];
    wait::until_true("the second is refused", || Ok(dual.0.metric("loden_refused_nodes", &labels)? == 1.0))?;
    ensure!(dual.kernel("-4", "flannel.1")?.contains(&device(9)), "x keeps what it had");
    dual.0.server.delete_node("y")?;
    dual.wait("x", &dual.v4("192.168.99.9", 8), &dual.v6("fd00:99::9", 9))?;
    dual.restore()
}

/// In flannel a prefix with a word behind its slash loses the MAC with the device.
fn own_mac(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    const PREFIX: &str = "example.com/net";
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    kube.n1()?.ns().ip("link delete flannel.1\nlink delete flannel-v6.1")?;
    kube.server.admit_prefix("example.com/net-")?;
    let ours = |name: &str, mac| {
        kube.server.annotate_node("n1", &format!("{PREFIX}-{name}"), Some(&data(1, mac))).map(drop)
    };
    ours("backend-data", 0x71)?;
    ours("backend-v6-data", 0x72)?;
    let launch = kube.cluster.launch("n1")?.set("--kube-annotation-prefix", PREFIX);
    kube.cluster.node_mut("n1")?.adopt(launch.spawn()?).wait_ready()?;
    for (name, mac) in [("flannel.1", 0x71), ("flannel-v6.1", 0x72)] {
        let link = kube.n1()?.link(name)?.with_context(|| format!("no {name}"))?;
        ensure!(link.contains(&device(mac)), "{link}");
    }
    kube.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
    kube.server.admit_prefix("flannel.alpha.coreos.com/")?;
    kube.cluster.start_daemon("n1")?;
    kube.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()?;
    // What peers know by the usual prefix never changed.
    let link = kube.n1()?.link("flannel.1")?.context("no flannel.1")?;
    ensure!(link.contains(&kube.n1()?.vtep_mac()), "{link}");
    wait::until_true("everybody reaches everybody again", || {
        Ok(reach::pairs(&kube.cluster).all(|(from, to)| reach::check(from, to).is_ok()))
    })?;
    Ok(())
}
