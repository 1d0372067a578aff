//! What real flannel was seen to do when something is broken, row by row and backend by backend, and what we do instead.
//! The rows are those of the observation of flannel v0.28; the last column of each note is ours, measured.

mod objects;
mod peers;
mod starts;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::apiserver::Options;
use integration::backends::Backend;
use integration::fixture::Kube;
use integration::kernel_state;
use integration::kube_feed::key;
use integration::probe::loss::LossCounter;
use integration::probe::reach;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Builder, Families, Node};
use integration::wait::{self, human};

/// Backends with objects for each peer in the kernel, with a device, and with either.
const KERNEL: &[Backend] = &[Backend::Vxlan, Backend::HostGw];
const DEVICE: &[Backend] = &[Backend::Vxlan, Backend::Udp];
const VXLAN: &[Backend] = &[Backend::Vxlan];
const ALL: &[Backend] = &Backend::ALL;

pub(super) fn suite() -> Checks {
    Suite::<Golden>::new()
        .each_of(KERNEL, "SIGTERM", starts::sigterm)
        .each_of(&[Backend::Udp], "SIGTERM", starts::sigterm_udp)
        .each_of(ALL, "SIGTERM or SIGKILL, start later", starts::restarts)
        .each_of(ALL, "kill -9 and restart: state, MAC, annotations", starts::identical)
        .each_of(ALL, "own Node deleted, then created again", starts::own_node_again)
        .each_of(ALL, "podCIDR changed (Node re-created)", starts::pod_cidr)
        .each_of(ALL, "API server down, traffic flowing; a change after it is back", starts::api_down)
        .each_of(
            ALL,
            "start while the API server is down; the same with an empty kernel",
            starts::without_api,
        )
        .each_of(ALL, "peer deleted while the daemon was down (F2)", starts::stale_peer)
        .each_of(ALL, "node's underlay address changes", objects::new_address)
        .each_of(ALL, "underlay link down and up at once", objects::link_flap)
        .each_of(ALL, "underlay MTU 1500 -> 1400", objects::underlay_mtu)
        .each_of(ALL, "route of a peer deleted (udp: of the network)", objects::route)
        .each_of(VXLAN, "FDB entry or neighbour of a peer deleted", objects::fdb_or_neighbour)
        .each_of(DEVICE, "device address flushed", objects::address_flushed)
        .each_of(DEVICE, "device down", objects::device_down)
        .each_of(DEVICE, "device deleted (F3)", objects::device_deleted)
        .each_of(DEVICE, "device MTU changed", objects::device_mtu)
        .each_of(VXLAN, "device MAC changed", objects::device_mac)
        .each_of(VXLAN, "iptables: chain flushed; nat and filter flushed; chains deleted", objects::iptables)
        .each_of(VXLAN, "a foreign ACCEPT put before the jump in nat POSTROUTING", objects::foreign_accept)
        .each_of(
            VXLAN,
            "nft mode: table flushed or deleted (F4); FORWARD policy DROP, both modes (F5)",
            objects::other_rules,
        )
        .each_of(VXLAN, "subnet.env deleted", objects::subnet_env)
        .each_of(ALL, "own annotation removed (F7)", peers::own_annotations)
        .each_of(
            ALL,
            "peer's public-ip = garbage, 127.0.0.1, 0.0.0.0, our own or another node's",
            peers::bad_address,
        )
        .each_of(VXLAN, "peer's backend-data = null (no MAC)", peers::no_mac)
        .each_of(
            ALL,
            "peer's backend-type foreign, kube-subnet-manager \"false\", after it was accepted",
            peers::stranger,
        )
        .each_of(ALL, "a second Node claims n2's podCIDR", peers::thief)
        .each_of(VXLAN, "dual stack: only the v4 MAC of a peer changes (F1)", peers::one_mac)
        .each_of(
            VXLAN,
            "encapsulated packet from a host that is no node, from a pod (F12); plain packet via the node",
            peers::intruders,
        )
        .checks()
}

/// For each backend two nodes with both families on a real API server, built when first asked for.
struct Golden(BTreeMap<Backend, Kube>);

impl Setup for Golden {
    fn build() -> Result<Self> {
        Ok(Self(BTreeMap::new()))
    }

    fn explain(&self) -> String {
        self.0.iter().map(|(backend, kube)| format!("{backend}\n{}", kube.cluster.logs())).collect()
    }
}

impl Golden {
    fn on(&mut self, backend: Backend) -> Result<&mut Kube> {
        match self.0.entry(backend) {
            Entry::Occupied(built) => Ok(built.into_mut()),
            Entry::Vacant(room) => {
                let shape = |builder: Builder| builder.backend(backend.conf()).families(Families::Dual);
                let kube = Kube::with(Options::default(), shape, |_, _| Ok(()))?;
                wait_connected(&kube)?;
                Ok(room.insert(kube))
            }
        }
    }
}

/// What flannel was seen to do: with vxlan, host-gw and udp.
fn flannel(backend: Backend, [vxlan, host_gw, udp]: [&'static str; 3]) -> &'static str {
    match backend {
        Backend::Vxlan => vxlan,
        Backend::HostGw => host_gw,
        Backend::Udp => udp,
    }
}

fn wait_connected(kube: &Kube) -> Result<Duration> {
    wait::until_true("pods reach each other", || Ok(reach::first_two(&kube.cluster).is_ok()))
}

/// What a node holds: in the kernel, and where the daemon carries packets also the peers that it knows.
fn state(node: &Node) -> Result<String> {
    let mut lines = BTreeSet::new();
    for device in ["flannel.1", "flannel-v6.1", "flannel0"] {
        lines.extend(kernel_state::of(node, device)?.lines().map(str::to_owned));
    }
    if node.link("flannel0")?.is_some() {
        for row in node.routes()?.iter().filter(|row| row["state"] == "active") {
            lines.insert(format!("peer: {} {} {}", row["node"], row["node_ip"], row["prefixes"]));
        }
    }
    Ok(lines.into_iter().collect::<Vec<_>>().join("\n"))
}

fn row(notes: &Notes, backend: Backend, what: &str, flannel: &str, ours: &str) {
    notes.add(format!("{backend}: {what} | flannel: {flannel} | {ours}"));
}

/// A datagram every 2 ms in both directions of the pair, and a third direction is its answer.
fn traffic(kube: &Kube) -> Result<LossCounter> {
    LossCounter::start(
        kube.cluster.pod("n1.a")?.ns(),
        kube.cluster.pod("n2.a")?.ip(),
        Duration::from_millis(2),
    )
}

fn annotation(kube: &Kube, name: &str) -> Result<Option<String>> {
    Ok(kube.server.node("n1")?.metadata.annotations.unwrap_or_default().remove(&key(name)))
}

fn wait_state(kube: &Kube, part: &str, there: bool) -> Result<Duration> {
    let node = kube.n1()?;
    wait::until_true(&format!("{part} in what the node holds: {there}"), || {
        Ok(state(node)?.contains(part) == there)
    })
}

/// Breaks something on n1 and waits until everything is as it was.
fn heals(
    golden: &mut Golden,
    backend: Backend,
    notes: &Notes,
    flannel: &str,
    breaks: impl FnOnce(&Kube) -> Result<()>,
) -> Result<()> {
    let kube = golden.on(backend)?;
    let node = kube.n1()?;
    let before = state(node)?;
    let repairs = || kube.metric("loden_repairs_total", &[]);
    let counted = repairs()?;
    breaks(kube)?;
    let took = wait::until_true("everything is as it was", || Ok(state(node)? == before));
    if took.is_err() {
        ensure!(false, "before:\n{before}\nafter:\n{}", state(node)?);
    }
    wait::until_true("a repair is counted", || Ok(repairs()? > counted))?;
    row(notes, backend, "restored after", flannel, &human(took?));
    wait_connected(kube).map(drop)
}
