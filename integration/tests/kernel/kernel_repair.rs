//! Whatever somebody changes of a kernel backend's objects is put back exactly as it was, and counted; flannel puts
//! back next to none of this.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::kernel_state;
use integration::probe::reach::{self, Source};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use nix::sys::signal::Signal;

const DEVICE: &str = "flannel.1";

pub(super) fn suite() -> Checks {
    Suite::<Lab>::new()
        .check("vxlan: the device is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link del flannel.1")
        })
        .check("vxlan: the device is set down", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link set flannel.1 down")
        })
        .check("vxlan: the device's address is changed", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link set flannel.1 address 02:11:22:33:44:55")
        })
        .check("vxlan: the device's MTU is changed", |lab, notes| {
            lab.vxlan.heals(notes, "mtu", "link set flannel.1 mtu 1300")
        })
        .check("vxlan: learning is switched on", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link set flannel.1 type vxlan learning")
        })
        .check("vxlan: another local address", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link set flannel.1 type vxlan local 192.168.77.99")
        })
        .check("vxlan: a device of another kind has the name", |lab, notes| {
            lab.vxlan.heals_at_start(notes, "link del flannel.1\nlink add flannel.1 type bridge")
        })
        .check("vxlan: a device of another identifier has the name", |lab, notes| {
            let other = "link del flannel.1\nlink add flannel.1 type vxlan id 7 dstport 4790 dev eth0";
            lab.vxlan.heals_at_start(notes, other)
        })
        .check("vxlan: the addresses are flushed", |lab, notes| {
            lab.vxlan.heals(notes, "address", "address flush dev flannel.1")
        })
        .check("vxlan: an address of an earlier lease is there", |lab, notes| {
            lab.vxlan.heals(notes, "address", "address add 10.244.9.0/32 dev flannel.1")
        })
        .check("vxlan: a peer's route is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route del 10.244.2.0/24")
        })
        .check("vxlan: a peer's route leads elsewhere", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route replace 10.244.2.0/24 via 192.168.77.254")
        })
        .check("vxlan: a second route to a peer", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route append 10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink")
        })
        .check("vxlan: a route to a node that is gone", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink")
        })
        .check("vxlan: all routes are flushed", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route flush dev flannel.1")
        })
        .check("vxlan: a peer's neighbour entry is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "neighbour", "neigh del 10.244.2.0 dev flannel.1")
        })
        .check("vxlan: a peer's neighbour entry is wrong", |lab, notes| {
            let wrong = "neigh replace 10.244.2.0 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent";
            lab.vxlan.heals(notes, "neighbour", wrong)
        })
        .check("vxlan: a neighbour entry of a node that is gone", |lab, notes| {
            let stale = "neigh add 10.244.9.0 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent";
            lab.vxlan.heals(notes, "neighbour", stale)
        })
        .check("vxlan: a peer's forwarding entry is deleted", |lab, notes| {
            let mac = lab.vxlan.0.node("n2")?.vtep_mac();
            lab.vxlan.heals_bridge(notes, &["del", &mac, "dev", DEVICE, "dst", "192.168.77.2"])
        })
        .check("vxlan: a peer's forwarding entry is wrong", |lab, notes| {
            let mac = lab.vxlan.0.node("n2")?.vtep_mac();
            lab.vxlan.heals_bridge(
                notes,
                &["replace", &mac, "dev", DEVICE, "dst", "192.168.77.9", "self", "permanent"],
            )
        })
        .check("vxlan: a forwarding entry of a node that is gone", |lab, notes| {
            let stale =
                ["add", "02:11:22:33:44:55", "dev", DEVICE, "dst", "192.168.77.9", "self", "permanent"];
            lab.vxlan.heals_bridge(notes, &stale)
        })
        .check("vxlan: the IPv6 device is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link del flannel-v6.1")
        })
        .check("vxlan: the IPv6 device is set down", |lab, notes| {
            lab.vxlan.heals(notes, "link", "link set flannel-v6.1 down")
        })
        .check("vxlan: the IPv6 device's addresses are flushed", |lab, notes| {
            lab.vxlan.heals(notes, "address", "address flush dev flannel-v6.1 scope global")
        })
        .check("vxlan: a peer's IPv6 route is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route del fd00:10:244:2::/64")
        })
        .check("vxlan: a peer's IPv6 route leads elsewhere", |lab, notes| {
            lab.vxlan.heals(notes, "route", "route replace fd00:10:244:2::/64 via fd00:77::fe dev eth0")
        })
        .check("vxlan: a peer's IPv6 neighbour entry is deleted", |lab, notes| {
            lab.vxlan.heals(notes, "neighbour", "neigh del fd00:10:244:2:: dev flannel-v6.1")
        })
        .check("vxlan: a peer's IPv6 neighbour entry is wrong", |lab, notes| {
            let wrong =
                "neigh replace fd00:10:244:2:: lladdr 02:11:22:33:44:55 dev flannel-v6.1 nud permanent";
            lab.vxlan.heals(notes, "neighbour", wrong)
        })
        .check("vxlan: a peer's IPv6 forwarding entry is deleted", |lab, notes| {
            let mac = lab.vxlan.0.node("n2")?.vtep_mac();
            lab.vxlan.heals_bridge(notes, &["del", &mac, "dev", "flannel-v6.1", "dst", "fd00:77::2"])
        })
        .check("vxlan: router advertisements are let in", |lab, notes| {
            lab.vxlan
                .broken(notes, "sysctl", |node| node.ns().sysctl("net/ipv6/conf/flannel.1/accept_ra", "1"))
        })
        .check("vxlan: chains of traffic rules are flushed", |lab, notes| {
            lab.vxlan.heals_rules(notes, "flush chain ip nat FLANNEL-POSTRTG")
        })
        .check("vxlan: chains of IPv6 traffic rules are flushed", |lab, notes| {
            lab.vxlan.heals_rules(notes, "flush chain ip6 filter FLANNEL-FWD")
        })
        .check("vxlan: the jump to our chain is gone", |lab, notes| {
            lab.vxlan.heals_rules(notes, "flush chain ip filter FORWARD")
        })
        .check("vxlan: the table of the doors is deleted", |lab, notes| {
            lab.vxlan.heals_rules(notes, "delete table inet loden")
        })
        .check("vxlan: a set of the doors is flushed", |lab, notes| {
            lab.vxlan.heals_rules(notes, "flush set inet loden pairs66_64")
        })
        .check("vxlan: the underlay's interface is removed and made anew", |lab, notes| {
            lab.vxlan.new_underlay(notes)
        })
        .check("vxlan: forwarding that is switched off is named at once", |lab, notes| {
            lab.vxlan.forwarding(notes)
        })
        .check("vxlan: the kernel's announcements overrun", |lab, notes| lab.vxlan.overrun(notes))
        .check("vxlan: what is not ours stays", others)
        .check("vxlan: nobody changes anything and nothing is written", silence)
        .check("host-gw: a peer's route is deleted", |lab, notes| {
            lab.host_gw.heals(notes, "route", "route del 10.244.2.0/24")
        })
        .check("host-gw: a peer's route leads elsewhere", |lab, notes| {
            lab.host_gw.heals(notes, "route", "route replace 10.244.2.0/24 via 192.168.77.254")
        })
        .check("host-gw: a peer's IPv6 route is deleted", |lab, notes| {
            lab.host_gw.heals(notes, "route", "route del fd00:10:244:2::/64")
        })
        .check("host-gw: a peer's IPv6 route leads elsewhere", |lab, notes| {
            lab.host_gw.heals(notes, "route", "route replace fd00:10:244:2::/64 via fd00:77::fe dev eth0")
        })
        .check("host-gw: all routes are flushed", |lab, notes| {
            lab.host_gw.heals(
                notes,
                "route",
                "route flush proto 76\nroute del fd00:10:244:2::/64\nroute del fd00:10:244:3::/64",
            )
        })
        .check("host-gw: chains of traffic rules are flushed", |lab, notes| {
            lab.host_gw.heals_rules(notes, "flush chain ip nat FLANNEL-POSTRTG")
        })
        .check("host-gw: a route of ours to a node that is gone", |lab, notes| {
            lab.host_gw.heals(notes, "route", "route add 10.244.9.0/24 via 192.168.77.3 proto 76")
        })
        .checks()
}

/// A cluster of each backend.
struct Lab {
    vxlan: Backend,
    host_gw: Backend,
}

struct Backend(Cluster);

impl Setup for Lab {
    fn build() -> Result<Self> {
        let start = |backend: &str| {
            let builder = Cluster::builder().pods_per_node(1).families(Families::Dual);
            builder.backend(backend).start().map(Backend)
        };
        Ok(Self { vxlan: start(r#"{"Type": "vxlan"}"#)?, host_gw: start(r#"{"Type": "host-gw"}"#)? })
    }

    fn explain(&self) -> String {
        format!("vxlan\n{}\nhost-gw\n{}", self.vxlan.0.logs(), self.host_gw.0.logs())
    }
}

/// What the kernel holds on n1: devices of both families and what is on them, and whether all rules are in force.
fn everything(node: &Node) -> Result<String> {
    let state = format!("{}\n{}", kernel_state::of(node, DEVICE)?, kernel_state::of(node, "flannel-v6.1")?);
    let rules = node.flanneld(&["verify"])?.output()?.status;
    Ok(format!("{state}\nverified: {rules}"))
}

impl Backend {
    /// Breaks something with `ip` on n1, and waits until everything is as it was and a repair of `object` is counted.
    fn heals(&self, notes: &Notes, object: &str, batch: &str) -> Result<()> {
        self.broken(notes, object, |node| node.ns().ip(batch))
    }

    fn heals_bridge(&self, notes: &Notes, fdb: &[&str]) -> Result<()> {
        self.broken(notes, "fdb", |node| {
            node.ns().command("bridge").arg("fdb").args(fdb).run()?;
            Ok(())
        })
    }

    /// Breaks something with `nft`, of whose work the text has to be as it was.
    fn heals_rules(&self, notes: &Notes, ruleset: &str) -> Result<()> {
        let node = self.0.node("n1")?;
        let rules = || node.ns().command("nft").args(["--stateless", "list", "ruleset"]).run();
        let before = rules()?;
        self.broken(notes, "firewall", |node| node.ns().nft(ruleset))?;
        wait::until_true("the rules are as they were", || Ok(rules()? == before)).map(drop)
    }

    fn broken(&self, notes: &Notes, object: &str, change: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
        let node = self.0.node("n1")?;
        let state = || everything(node);
        let repairs = |object: &str| {
            Ok::<_, anyhow::Error>(
                node.daemon()?.metrics()?.sum("loden_repairs_total", &[("object", object)]),
            )
        };
        let before = state()?;
        let counted = repairs(object)?;
        change(node)?;
        let healed = wait::until_true("everything is as it was", || Ok(state()? == before));
        if healed.is_err() {
            ensure!(false, "before:\n{before}\nafter:\n{}", state()?);
        }
        let took = healed?;
        notes.took(&format!("{object} restored after"), took);
        wait::until_true(&format!("a repair of {object} is counted"), || Ok(repairs(object)? > counted))?;
        wait::until_true("ready again", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
        // The first question may wait for ARP on the underlay, and is asked once.
        self.connected()
    }

    /// Changes something while the daemon does not run. A device's name is free for an instant only while it does.
    fn heals_at_start(&mut self, notes: &Notes, batch: &str) -> Result<()> {
        let node = self.0.node_mut("n1")?;
        let before = kernel_state::of(node, DEVICE)?;
        node.stop_daemon(Signal::SIGTERM)?;
        node.ns().ip(batch)?;
        self.0.start_daemon("n1")?;
        let node = self.0.node_mut("n1")?;
        notes.took("everything restored by a start, after exec", node.daemon_mut()?.wait_ready()?);
        let after = kernel_state::of(node, DEVICE)?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        self.connected()
    }

    /// A daemon that gets no time hears only that it has missed something, and looks at everything.
    fn overrun(&self, notes: &Notes) -> Result<()> {
        let node = self.0.node("n1")?;
        let before = kernel_state::of(node, DEVICE)?;
        let flood: String = (0..20_000u32)
            .map(|number| {
                format!("route add {} via 192.168.77.254\n", Ipv4Addr::from_bits(0x1400_0000 + number))
            })
            .collect();
        node.daemon()?.signal(Signal::SIGSTOP)?;
        let broken = node.ns().ip(&flood).and_then(|()| node.ns().ip("route del 10.244.2.0/24"));
        node.daemon()?.signal(Signal::SIGCONT)?;
        broken?;
        let took =
            wait::until_true("everything is as it was", || Ok(kernel_state::of(node, DEVICE)? == before))?;
        notes.took("restored after lost announcements", took);
        let sockets = node.ns().run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/netlink")?))?;
        let dropped =
            sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
        ensure!(dropped.sum::<u64>() > 0, "nothing was lost, so nothing was shown:\n{sockets}");
        node.ns().ip(&flood.replace("route add", "route del"))?;
        self.connected()
    }

    /// The setting is the operator's, so it is not put back.
    fn forwarding(&self, notes: &Notes) -> Result<()> {
        let node = self.0.node("n1")?;
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.ns().sysctl(setting, "0")?;
            let remedy = format!("sysctl -w {}=1", setting.replace('/', "."));
            let told = || {
                let answer = node.daemon()?.get("/readyz")?;
                Ok(answer.status == 200 && answer.body.contains(&remedy))
            };
            notes.took(&format!("{setting} 0 is told after"), wait::until_true("it is told", told)?);
            node.ns().sysctl(setting, "1")?;
            let well = || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready");
            wait::until_true("all is well", well)?;
        }
        self.connected()
    }

    /// The kernel takes a VXLAN device away with the one below it.
    fn new_underlay(&mut self, notes: &Notes) -> Result<()> {
        let before = kernel_state::of(self.0.node("n1")?, DEVICE)?;
        self.0.node("n1")?.ns().ip("link del eth0")?;
        let gone = || Ok(self.0.node("n1")?.daemon()?.get("/readyz")?.status == 503);
        wait::until_true("the loss is told", gone)?;
        self.0.replug("n1")?;
        let node = self.0.node("n1")?;
        let healed =
            wait::until_true("all is back on the new one", || Ok(kernel_state::of(node, DEVICE)? == before));
        if healed.is_err() {
            ensure!(false, "before:\n{before}\nafter:\n{}", kernel_state::of(node, DEVICE)?);
        }
        notes.took("restored after a new underlay interface", healed?);
        wait::until_true("ready again", || Ok(node.daemon()?.get("/readyz")?.body == "flanneld is ready"))?;
        wait::until_true("pods reach each other", || Ok(self.connected().is_ok())).map(drop)
    }

    fn connected(&self) -> Result<()> {
        let (here, there) = (self.0.pod("n1.a")?, self.0.pod("n2.a")?);
        reach::check(Source::Pod(here), there)?;
        reach::check(Source::Pod(there), here)
    }
}

fn others(lab: &mut Lab, _: &Notes) -> Result<()> {
    let node = lab.vxlan.0.node("n1")?;
    node.ns().ip("address add 172.30.0.1/32 dev flannel.1\nroute add 172.30.1.0/24 dev flannel.1\n\
         route add 10.244.77.0/24 via 192.168.77.254\nroute add 10.244.78.0/24 dev flannel.1 proto static\n\
         neigh add 172.30.0.9 lladdr 02:11:22:33:44:55 dev flannel.1 nud permanent")?;
    // A repair beside them passes over everything of ours, and must not touch what is not.
    node.ns().ip("link set flannel.1 mtu 1300")?;
    let whole = |node: &Node| Ok(node.link(DEVICE)?.is_some_and(|link| link.contains(" mtu 1450 ")));
    wait::until_true("the MTU is restored", || whole(node))?;
    std::thread::sleep(Duration::from_millis(300));
    let routes = node.ns().ip_show("route show")?;
    for route in
        ["172.30.1.0/24 dev flannel.1", "10.244.77.0/24 via 192.168.77.254", "10.244.78.0/24 dev flannel.1"]
    {
        ensure!(routes.contains(route), "{route} is gone:\n{routes}");
    }
    ensure!(node.ns().ip_show("address show dev flannel.1")?.contains("172.30.0.1/32"));
    ensure!(node.ns().ip_show("neigh show dev flannel.1")?.contains("172.30.0.9"));
    node.ns().ip("neigh del 172.30.0.9 dev flannel.1\nroute del 10.244.78.0/24\nroute del 10.244.77.0/24\n\
         route del 172.30.1.0/24\naddress del 172.30.0.1/32 dev flannel.1")
}

fn silence(lab: &mut Lab, _: &Notes) -> Result<()> {
    for backend in [&lab.vxlan, &lab.host_gw] {
        let node = backend.0.node("n1")?;
        let writes =
            || Ok::<_, anyhow::Error>(node.daemon()?.metrics()?.sum("loden_kernel_writes_total", &[]));
        let before = writes()?;
        // Changes of others that are none of ours, and of ours to what they are already.
        for _ in 0..5 {
            node.ns().ip(
                "route add 203.0.113.0/24 via 192.168.77.254\nroute del 203.0.113.0/24\nlink set eth0 up",
            )?;
            std::thread::sleep(Duration::from_millis(60));
        }
        ensure!(writes()? == before, "{} writes although nothing was wrong", writes()? - before);
    }
    Ok(())
}
