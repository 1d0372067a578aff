//! Random desired states and random damage through the real kernel, for each kernel backend and both families: at most
//! two looks change anything, and the next one finds nothing to write.
//!
//! `LODEN_SEED=7` repeats a run; a failure names its seed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use integration::kernel_state::ROUTE_PROTOCOL;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Suite};
use integration::topology::{Cluster, Families, Node};
use integration::wait;
use nix::sys::signal::Signal;

const ROUNDS: usize = 6;
/// Peers that may be there.
const PEERS: u8 = 40;
const DEVICES: [&str; 2] = ["flannel.1", "flannel-v6.1"];

pub(super) fn suite() -> Checks {
    Suite::<()>::new()
        .check("vxlan: two looks, then silence", |(), notes| rounds(Kind::Vxlan, notes))
        .check("vxlan with DirectRouting: two looks, then silence", |(), notes| rounds(Kind::Direct, notes))
        .check("host-gw: two looks, then silence", |(), notes| rounds(Kind::HostGw, notes))
        .checks()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vxlan,
    Direct,
    HostGw,
}

impl Kind {
    fn backend(self) -> &'static str {
        match self {
            Self::Vxlan => r#"{"Type": "vxlan"}"#,
            Self::Direct => r#"{"Type": "vxlan", "DirectRouting": true}"#,
            Self::HostGw => r#"{"Type": "host-gw"}"#,
        }
    }
}

/// A peer: its pods are those of `number`, its addresses and devices those of `place`.
#[derive(Debug, Clone, Copy)]
struct Peer {
    number: u8,
    place: u8,
    /// On a link with us, and not behind a router.
    near: bool,
    /// It runs another backend than we do.
    stranger: bool,
}

impl Peer {
    fn pods(&self, v6: bool) -> (String, u8) {
        if v6 {
            (format!("fd00:10:244:{:x}::", 0x100 + u16::from(self.number)), 64)
        } else {
            (format!("10.244.{}.0", 100 + self.number), 24)
        }
    }

    fn address(&self, v6: bool) -> Result<IpAddr> {
        let last = 100 + self.place;
        let text = match (v6, self.near) {
            (false, true) => format!("192.168.77.{last}"),
            (false, false) => format!("172.20.0.{last}"),
            (true, true) => format!("fd00:77::{last:x}"),
            (true, false) => format!("fd00:20::{last:x}"),
        };
        Ok(text.parse()?)
    }

    fn mac(&self, v6: bool) -> String {
        format!("0e:00:00:00:{:02x}:{:02x}", u8::from(v6), self.place)
    }

    fn manifest(&self, kind: Kind) -> Result<NodeManifest> {
        let ours = if kind == Kind::HostGw { "host-gw" } else { "vxlan" };
        let other = if kind == Kind::HostGw { "vxlan" } else { "host-gw" };
        let data = |v6| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, self.mac(v6));
        let all = [
            ("backend-type", if self.stranger { other } else { ours }.to_owned()),
            ("backend-data", data(false)),
            ("backend-v6-data", data(true)),
            ("public-ip", self.address(false)?.to_string()),
            ("public-ipv6", self.address(true)?.to_string()),
        ];
        Ok(NodeManifest {
            name: format!("p{}", self.number),
            pod_cidrs: [false, true]
                .map(|v6| {
                    let (base, len) = self.pods(v6);
                    format!("{base}/{len}")
                })
                .into(),
            internal_ips: vec![self.address(false)?, self.address(true)?],
            annotations: all.map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value)).into(),
        })
    }

    /// What the kernel has to hold for it.
    fn wanted(&self, kind: Kind, wanted: &mut BTreeSet<String>) -> Result<()> {
        for v6 in [false, true] {
            let ((base, len), address) = (self.pods(v6), self.address(v6)?);
            if kind == Kind::HostGw || (kind == Kind::Direct && self.near) {
                wanted.insert(format!("route {base}/{len} via {address} dev eth0"));
                continue;
            }
            let (device, mac) = (DEVICES[usize::from(v6)], self.mac(v6));
            wanted.insert(format!("route {base}/{len} via {base} dev {device}"));
            wanted.insert(format!("neighbour {base} {mac} dev {device}"));
            wanted.insert(format!("fdb {mac} {address} dev {device}"));
        }
        Ok(())
    }
}

/// Routes, neighbours and forwarding entries that the kernel holds for peers, and the setting of each device.
fn held(node: &Node, kind: Kind) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let word = |line: &str, at: usize| line.split_whitespace().nth(at).unwrap_or_default().to_owned();
    for family in ["-4", "-6"] {
        for line in node.ns().ip_show(&format!("{family} route show proto {ROUTE_PROTOCOL}"))?.lines() {
            found.insert(format!("route {} via {} dev {}", word(line, 0), word(line, 2), word(line, 4)));
        }
    }
    if kind == Kind::HostGw {
        return Ok(found);
    }
    for (device, family) in DEVICES.iter().zip(["-4", "-6"]) {
        for line in node.ns().ip_show(&format!("{family} neigh show dev {device} nud permanent"))?.lines() {
            found.insert(format!("neighbour {} {} dev {device}", word(line, 0), word(line, 2)));
        }
        for line in node.ns().command("bridge").args(["fdb", "show", "dev", device]).run()?.lines() {
            found.insert(format!("fdb {} {} dev {device}", word(line, 0), word(line, 2)));
        }
        let path = format!("/proc/sys/net/ipv6/conf/{device}/accept_ra");
        let takes = node.ns().run(|| Ok(std::fs::read_to_string(path)?))?;
        if takes.trim() != "0" {
            found.insert(format!("{device} takes router advertisements"));
        }
    }
    Ok(found)
}

/// Looks of the daemon at the kernel that were quiet, that changed something, and that failed; and steps tried.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Passes([f64; 3], f64);

fn passes(node: &Node) -> Result<Passes> {
    let metrics = node.daemon()?.metrics()?;
    let of = |result| metrics.sum("loden_kernel_passes_total", &[("result", result)]);
    let writes = metrics.sum("loden_kernel_writes_total", &[]);
    Ok(Passes([of("quiet"), of("changed"), of("failed")], writes))
}

/// Waits for the end of a look that is under way: half of one before the damage and half of one behind it is none.
fn at_rest(node: &Node) -> Result<Passes> {
    let mut last = passes(node)?;
    wait::until_true("the daemon is at rest", || {
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut last, passes(node)?);
        Ok(before == last)
    })?;
    Ok(last)
}

fn rounds(kind: Kind, notes: &Notes) -> Result<()> {
    let seed = match std::env::var("LODEN_SEED") {
        Ok(seed) => seed.parse().context("LODEN_SEED")?,
        Err(_) => fastrand::u64(..),
    };
    let mut random = Rng::with_seed(seed);
    let builder = Cluster::builder().nodes(1).pods_per_node(0).families(Families::Dual);
    let mut cluster = builder.backend(kind.backend()).start()?;
    let (mut slowest, mut steps, mut damages) = (Duration::ZERO, 0.0, 0);
    for round in 0..ROUNDS {
        let outcome = one_round(&mut cluster, kind, &mut random);
        let (took, writes, damaged) = outcome
            .with_context(|| format!("{kind:?}, round {round} of LODEN_SEED={seed}\n{}", cluster.logs()))?;
        slowest = slowest.max(took);
        (steps, damages) = (steps + writes, damages + damaged);
    }
    notes.add(format!(
        "{kind:?}: {ROUNDS} random states, {damages} damages, {steps} writes, no more than two looks that wrote, then \
         none; slowest {} (LODEN_SEED={seed})",
        wait::human(slowest)
    ));
    Ok(())
}

/// New peers and damage while the daemon gets no time, so that it finds all of it at once.
fn one_round(cluster: &mut Cluster, kind: Kind, random: &mut Rng) -> Result<(Duration, f64, usize)> {
    let mut places: Vec<u8> = (1..=PEERS).collect();
    random.shuffle(&mut places);
    let peers = (1..=PEERS).zip(places).filter_map(|(number, place)| {
        let near = kind == Kind::HostGw || random.bool();
        let stranger = random.u8(0..8) == 0;
        random.bool().then_some(Peer { number, place, near, stranger })
    });
    let mut manifests = cluster.manifests();
    let mut wanted = BTreeSet::new();
    for peer in peers {
        manifests.push(peer.manifest(kind)?);
        if !peer.stranger {
            peer.wanted(kind, &mut wanted)?;
        }
    }
    let before = at_rest(cluster.node("n1")?)?;
    cluster.node("n1")?.daemon()?.signal(Signal::SIGSTOP)?;
    let broken = cluster.publish_only(&manifests).and_then(|()| damage(cluster.node("n1")?, kind, random));
    let node = cluster.node("n1")?;
    node.daemon()?.signal(Signal::SIGCONT)?;
    let damaged = broken?;
    let verified = || Ok::<_, anyhow::Error>(node.flanneld(&["verify"])?.output()?.status.success());
    let converged =
        wait::until_true(
            "the kernel holds what is wanted",
            || Ok(held(node, kind)? == wanted && verified()?),
        );
    if converged.is_err() {
        let held = held(node, kind)?;
        let (missing, extra) = (wanted.difference(&held), held.difference(&wanted));
        let verify = String::from_utf8_lossy(&node.flanneld(&["verify"])?.output()?.stdout).into_owned();
        ensure!(
            false,
            "missing: {:?}, too much: {:?}\n{verify}",
            missing.collect::<Vec<_>>(),
            extra.collect::<Vec<_>>()
        );
    }
    let settled = passes(node)?;
    let changed = settled.0[1] - before.0[1];
    ensure!(changed <= 2.0 && settled.0[2] == before.0[2], "{before:?} became {settled:?}");
    // Whatever makes it look again, it finds nothing to write.
    wait::until_true("a quiet look", || {
        node.ns().ip("address add 172.31.0.1/32 dev eth0\naddress del 172.31.0.1/32 dev eth0")?;
        Ok(passes(node)?.0[0] > settled.0[0])
    })?;
    let after = passes(node)?;
    ensure!(
        (after.0[1], after.0[2], after.1) == (settled.0[1], settled.0[2], settled.1),
        "{settled:?} became {after:?}"
    );
    ensure!(held(node, kind)? == wanted, "it was given up again");
    Ok((converged?, after.1 - before.1, damaged))
}

/// Breaks some things at random; how many commands could be carried out.
fn damage(node: &Node, kind: Kind, random: &mut Rng) -> Result<usize> {
    let mut done = 0;
    for _ in 0..random.usize(3..14) {
        let v6 = random.bool();
        let peer =
            Peer { number: random.u8(1..=PEERS), place: random.u8(1..=PEERS), near: true, stranger: false };
        let ((base, len), mac) = (peer.pods(v6), peer.mac(v6));
        let (device, family) = (DEVICES[usize::from(v6)], if v6 { "-6" } else { "-4" });
        let gateway = if v6 { "fd00:77::fe" } else { "192.168.77.254" };
        let wrong = "02:11:22:33:44:55";
        let tunnel = kind != Kind::HostGw;
        let broken = match random.u8(0..16) {
            0 => node.ns().ip(&format!("route del {base}/{len} proto {ROUTE_PROTOCOL}")),
            1 => node
                .ns()
                .ip(&format!("route change {base}/{len} via {gateway} dev eth0 proto {ROUTE_PROTOCOL}")),
            2 => node.ns().command("ip").args([family, "route", "flush", "proto", "76"]).run().map(drop),
            3 => {
                let rules = if v6 { "ip6tables-nft" } else { "iptables-nft" };
                node.ns().command(rules).args(["-t", "nat", "-F", "FLANNEL-POSTRTG"]).run().map(drop)
            }
            4 => node.ns().nft("flush chain ip filter FLANNEL-FWD"),
            5 => node.ns().command("iptables-nft").args(["-D", "FORWARD", "1"]).run().map(drop),
            _ if !tunnel => continue,
            6 => node.ns().ip(&format!("link del {device}")),
            7 => node.ns().ip(&format!("link set {device} down")),
            8 => node.ns().ip(&format!("link set {device} address {wrong}")),
            9 => node.ns().ip(&format!("link set {device} mtu 1300")),
            10 => node.ns().ip(&format!("address flush dev {device} scope global")),
            11 => node.ns().ip(&format!("neigh replace {base} lladdr {wrong} dev {device} nud permanent")),
            12 => node.ns().ip(&format!("neigh del {base} dev {device}")),
            13 => {
                let verb = if random.bool() { "del" } else { "replace" };
                let to = if v6 { "fd00:77::9" } else { "192.168.77.9" };
                let entry = ["fdb", verb, &mac, "dev", device, "dst", to, "self", "permanent"];
                let entry = if verb == "del" { &entry[..5] } else { &entry[..] };
                node.ns().command("bridge").args(entry).run().map(drop)
            }
            14 => node.ns().nft(["delete table inet loden", "flush set inet loden nodes4"][usize::from(v6)]),
            _ => node.ns().sysctl(&format!("net/ipv6/conf/{device}/accept_ra"), "1"),
        };
        // What is not there cannot be damaged.
        done += usize::from(broken.is_ok());
    }
    Ok(done)
}
