//! IPv4 and IPv6 pods over the UDP backend, leases from a real API server: the families live apart.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::apiserver::Options;
use integration::fixture::Kube;
use integration::kube_feed::{annotated, key};
use integration::nodes_file::NodeManifest;
use integration::probe::reach;
use integration::probe::udp::{self, Asker};
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::Families;
use integration::wait;

pub(super) fn suite() -> Checks {
    Suite::<Dual>::new()
        .check("every pod and node reaches every pod over both families, untranslated", everybody)
        .check("a full-size IPv6 packet passes, one byte more is refused with the size", full_size)
        .check("subnet.env holds both families in flannel's order", subnet_env)
        .check("flannel0 has an address for each own podCIDR and a route for each network", device)
        .check("a flannel peer gets IPv4, and IPv6 to it is refused and counted", flannel_peer)
        .check("a change in one family takes effect while the other is bad", one_family_bad)
        .check("a family that goes and comes back is followed, here and at the peers", later)
        .checks()
}

struct Dual(Kube);

impl Setup for Dual {
    fn build() -> Result<Self> {
        Ok(Self(Kube::with(Options::default(), |builder| builder.families(Families::Dual), |_, _| Ok(()))?))
    }

    fn explain(&self) -> String {
        self.0.explain()
    }
}

/// An address in the IPv6 pod network that the hand-made host 192.168.77.50 claims.
const FAR: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0x50, 0, 0, 0, 7);

/// The Node of the hand-made host, with the podCIDR of each family.
fn handmade(Dual(kube): &Dual, v6: &str) -> NodeManifest {
    let node = annotated(kube.first.manifest());
    NodeManifest { pod_cidrs: vec![node.pod_cidrs[0].clone(), v6.to_owned()], ..node }
}

fn everybody(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    let pairs: Vec<_> = reach::pairs(&kube.cluster).collect();
    ensure!(pairs.len() == 2 + 4, "{} pairs", pairs.len());
    pairs.into_iter().try_for_each(|(from, to)| {
        ensure!(to.ips().count() == 2);
        reach::check(from, to)
    })
}

fn full_size(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    let (from, to) = (kube.cluster.pod("n1.a")?, kube.cluster.pod("n2.a")?.ip6().context("IPv6")?);
    let mut asker = Asker::new(from.ns(), to)?.dont_fragment()?;
    // Less the headers of IPv6 and UDP.
    let largest = 1472 - 48;
    asker.echo(largest, udp::PATIENCE)?;
    let error =
        asker.echo(largest + 1, udp::PATIENCE).err().context("1,473 bytes passed a tunnel of 1,472")?;
    ensure!(format!("{error:#}").contains("too long"), "{error:#}");
    Ok(())
}

fn subnet_env(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    let text = std::fs::read_to_string(kube.n1()?.subnet_file())?;
    ensure!(
        text == "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                 FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n\
                 FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
        "{text}"
    );
    Ok(())
}

fn device(Dual(kube): &mut Dual, _: &Notes) -> Result<()> {
    let shown = |command: &str| kube.n1()?.ns().ip_show(command);
    let addresses = shown("-brief address show dev flannel0")?;
    ensure!(addresses.contains("10.244.1.0/32") && addresses.contains("fd00:10:244:1::/128"), "{addresses}");
    let routes = format!("{}{}", shown("-4 route show dev flannel0")?, shown("-6 route show dev flannel0")?);
    ensure!(routes.contains("10.244.0.0/16") && routes.contains("fd00:10:244::/48"), "{routes}");
    Ok(())
}

fn flannel_peer(dual: &mut Dual, _: &Notes) -> Result<()> {
    let node = handmade(dual, "fd00:10:244:50::/64");
    let Dual(kube) = dual;
    kube.server.create_node(&node.clone().into())?;
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    kube.first.pending()?;
    let refused = |kube: &Kube| kube.metric("loden_drops_total", &[("reason", "family_unsupported")]);
    let before = refused(kube)?;
    let pod = kube.cluster.pod("n1.a")?;
    let error = udp::ask(pod.ns(), FAR, b"hostname").err().context("an answer from nobody")?;
    ensure!(format!("{error:#}").contains("unreachable"), "no ICMPv6 error: {error:#}");
    ensure!(kube.first.pending()? == 0, "IPv6 was sent to a flannel");
    ensure!(refused(kube)? > before, "not counted");

    // With our annotation it is one of us, and takes both.
    kube.set(&node.name, "loden", Some(r#"{"MTU":1472,"capabilities":["ipv6"]}"#))?;
    wait::until_true("IPv6 packets at the peer", || {
        let _ = Asker::new(pod.ns(), FAR)?.ask(b"hostname", Duration::from_millis(1));
        Ok(kube.first.pending()? > 0)
    })?;
    kube.server.delete_node(&node.name)?;
    kube.wait_gone(&node.name)?;
    Ok(())
}

fn one_family_bad(dual: &mut Dual, _: &Notes) -> Result<()> {
    let node = handmade(dual, "fd99::/64");
    let Dual(kube) = dual;
    kube.server.create_node(&node.clone().into())?;
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    kube.wait_body(&["degraded"])?;
    let row = kube.n1()?.route(&node.name)?.context("no row")?;
    let note = row["note"].as_str().unwrap_or_default();
    ensure!(note.contains("fd99::/64") && note.contains("no IPv6 lease"), "{row}");
    let moved = kube.second.address.to_string();
    kube.server.annotate_node(&node.name, &key("public-ip"), Some(&moved))?;
    kube.wait_traffic(kube.first.pod(7), &kube.second)?;
    kube.server.delete_node(&node.name)?;
    kube.wait_gone(&node.name)?;
    kube.wait_ready()?;
    Ok(())
}

/// A podCIDR of a Node cannot be changed, so the Node is made anew.
fn later(Dual(kube): &mut Dual, notes: &Notes) -> Result<()> {
    let whole = kube.cluster.node("n2")?.manifest();
    let v4_only = NodeManifest { pod_cidrs: whole.pod_cidrs[..1].to_vec(), ..whole.clone() };
    let prefixes =
        |kube: &Kube| Ok::<_, anyhow::Error>(kube.n1()?.route("n2")?.map(|row| row["prefixes"].clone()));
    let both = serde_json::json!(["10.244.2.0/24", "fd00:10:244:2::/64"]);
    ensure!(prefixes(kube)? == Some(both.clone()));
    let subnet = |kube: &Kube| kube.cluster.node("n2")?.subnet_env("FLANNEL_IPV6_SUBNET");
    subnet(kube)?;

    kube.server.delete_node("n2")?;
    kube.server.create_node(&v4_only.into())?;
    wait::until_true("n1 has one prefix of n2", || {
        Ok(prefixes(kube)? == Some(serde_json::json!(["10.244.2.0/24"])))
    })?;
    wait::until_true("n2's subnet.env has one family", || Ok(subnet(kube).is_err()))?;
    kube.server.delete_node("n2")?;
    kube.server.create_node(&whole.into())?;
    let took = wait::until_true("n1 has both prefixes of n2", || Ok(prefixes(kube)? == Some(both.clone())))?;
    notes.took("a family that came back is in n1's table after", took);
    wait::until_true("n2's subnet.env has both families", || Ok(subnet(kube).is_ok()))?;
    wait::until_true("everybody reaches everybody again", || {
        Ok(reach::pairs(&kube.cluster).all(|(from, to)| reach::check(from, to).is_ok()))
    })?;
    Ok(())
}
