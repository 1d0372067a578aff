//! IPv6 pods over an IPv6 underlay, and no IPv4 anywhere: the UDP backend, leases from a real API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{ApiServer, Options};
use integration::daemon::Launch;
use integration::kube_feed::{KubeFeed, key};
use integration::probe::reach;
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, Families};
use integration::wait;
use nix::sys::signal::Signal;

pub(super) fn suite() -> Checks {
    Suite::<V6>::new()
        .check("every pod and node reaches every pod, untranslated", everybody)
        .check("a full-size packet passes, one byte more is refused with the size", full_size)
        .check(
            "subnet.env holds IPv6 alone, and an MTU that leaves room for the outer IPv6 header",
            subnet_env,
        )
        .check("the address is published as public-ipv6, and nothing is said of IPv4", annotations)
        .check("public-ipv6-overwrite is published in its place", overwrite)
        .check("node-public-ipv6 chooses the interface", node_public_ipv6)
        .check("a daemon that is killed and started again carries on", killed)
        .check("over vxlan: every pod reaches every pod, with an MTU of 1430", |_, _| {
            other_backend(r#"{"Type": "vxlan"}"#, "1430")
        })
        .check("over host-gw: every pod reaches every pod, with the underlay's MTU", |_, _| {
            other_backend(r#"{"Type": "host-gw"}"#, "1500")
        })
        .checks()
}

struct V6 {
    cluster: Cluster,
    server: Arc<ApiServer>,
}

impl Setup for V6 {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).families(Families::V6).build()?;
        let server = KubeFeed::install(&mut cluster, Options::default())?;
        cluster.start_daemons()?;
        cluster.attach_pods()?;
        cluster.node("n1")?.wait_lease("n2")?;
        cluster.node("n2")?.wait_lease("n1")?;
        Ok(Self { cluster, server })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl V6 {
    fn annotations(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.server.node("n1")?.metadata.annotations.unwrap_or_default())
    }

    fn wait_published(&self, address: &str) -> Result<()> {
        wait::until_true(&format!("public-ipv6 is {address}"), || {
            Ok(self.annotations()?.get(&key("public-ipv6")).is_some_and(|ip| ip == address))
        })?;
        Ok(())
    }

    fn restart(&mut self, signal: Signal, change: impl FnOnce(Launch) -> Launch) -> Result<()> {
        self.cluster.node_mut("n1")?.stop_daemon(signal)?;
        let daemon = change(self.cluster.launch("n1")?).spawn()?;
        self.cluster.node_mut("n1")?.adopt(daemon).wait_ready()?;
        Ok(())
    }
}

fn everybody(v6: &mut V6, _: &Notes) -> Result<()> {
    let pairs: Vec<_> = reach::pairs(&v6.cluster).collect();
    ensure!(pairs.len() == 2 + 4, "{} pairs", pairs.len());
    pairs.into_iter().try_for_each(|(from, to)| {
        ensure!(to.ips().count() == 1 && to.ips().all(|ip| ip.is_ipv6()));
        reach::check(from, to)
    })
}

fn full_size(v6: &mut V6, _: &Notes) -> Result<()> {
    let (from, to) = (v6.cluster.pod("n1.a")?, v6.cluster.pod("n2.a")?.ip6().context("IPv6")?);
    let mut asker = Asker::new(from.ns(), to)?.dont_fragment()?;
    // Less the headers of IPv6 and UDP.
    let largest = 1452 - 48;
    asker.echo(largest, udp::PATIENCE)?;
    let error =
        asker.echo(largest + 1, udp::PATIENCE).err().context("1,453 bytes passed a tunnel of 1,452")?;
    ensure!(format!("{error:#}").contains("too long"), "{error:#}");
    Ok(())
}

fn subnet_env(v6: &mut V6, _: &Notes) -> Result<()> {
    let text = std::fs::read_to_string(v6.cluster.node("n1")?.subnet_file())?;
    ensure!(
        text == "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
                 FLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n",
        "{text}"
    );
    Ok(())
}

fn annotations(v6: &mut V6, _: &Notes) -> Result<()> {
    v6.wait_published("fd00:77::1")?;
    let all = v6.annotations()?;
    let names: Vec<_> = all.keys().filter_map(|key| key.strip_prefix("flannel.alpha.coreos.com/")).collect();
    ensure!(
        names == ["backend-data", "backend-type", "kube-subnet-manager", "loden", "public-ipv6"],
        "{all:?}"
    );
    Ok(())
}

fn overwrite(v6: &mut V6, _: &Notes) -> Result<()> {
    v6.server.annotate_node("n1", &key("public-ipv6-overwrite"), Some("2001:db8::9"))?;
    v6.wait_published("2001:db8::9")?;
    v6.server.annotate_node("n1", &key("public-ipv6-overwrite"), None)?;
    v6.wait_published("fd00:77::1")
}

/// A second interface with an address of its own, which nothing else would choose.
fn node_public_ipv6(v6: &mut V6, _: &Notes) -> Result<()> {
    let ns = v6.cluster.node("n1")?.ns().clone();
    ns.ip("link add other type veth peer name otherend\nlink set other up\nlink set otherend up\naddr add 2001:db8:9::1/64 dev other nodad")?;
    v6.server.annotate_node("n1", &key("node-public-ipv6"), Some("2001:db8:9::1"))?;
    v6.restart(Signal::SIGTERM, |launch| launch.unset("--iface"))?;
    v6.wait_published("2001:db8:9::1")?;
    let log = v6.cluster.node("n1")?.daemon()?.log()?;
    ensure!(log.contains("2001:db8:9::1 is on other"), "{log}");
    v6.server.annotate_node("n1", &key("node-public-ipv6"), None)?;
    v6.restart(Signal::SIGTERM, |launch| launch)?;
    v6.wait_published("fd00:77::1")?;
    ns.ip("link delete other")?;
    v6.cluster.node("n2")?.wait_lease("n1")?;
    everybody(v6, &Notes::default())
}

fn killed(v6: &mut V6, _: &Notes) -> Result<()> {
    v6.restart(Signal::SIGKILL, |launch| launch)?;
    everybody(v6, &Notes::default())
}

/// A cluster of its own, known from a file.
fn other_backend(backend: &str, mtu: &str) -> Result<()> {
    let cluster =
        Cluster::builder().nodes(2).pods_per_node(1).families(Families::V6).backend(backend).start()?;
    let check = || {
        ensure!(cluster.node("n1")?.subnet_env("FLANNEL_MTU")? == mtu);
        let pods = reach::pairs(&cluster).filter(|(from, _)| matches!(from, reach::Source::Pod(_)));
        pods.into_iter().try_for_each(|(from, to)| reach::check(from, to))
    };
    check().with_context(|| cluster.logs())
}
