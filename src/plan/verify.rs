//! What is wanted beside what is there, for people: how many of each, what differs, and the command that puts it right.
//! Where that is the daemon's business alone, rules of any length above all, the command has it try at once.

use std::collections::BTreeMap;

use encap::PeerId;

use super::firewall::{FirewallOp, FirewallState, Home, OWN_TABLE, nftables};
use super::{
    Desired, Device, Hop, LinkChange, LinkKind, Object, Observed, Op, Route, RouteKey, Watched, diff,
};

/// The comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Of each kind of object that is wanted at all: how many.
    pub wanted: BTreeMap<Object, usize>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Where traffic rules are kept, in words.
    pub rules: Vec<String>,
}

/// One step that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub object: Object,
    /// The step in words.
    pub step: String,
    /// A command that takes it.
    pub command: String,
    /// On whose account.
    pub peer: Option<PeerId>,
}

/// Compares. `repair` is the command that has the daemon try what no other does.
pub fn compare(desired: &Desired, observed: &Observed, watched: &Watched, repair: &str) -> Comparison {
    let counts = [
        (Object::Link, desired.links.len()),
        (Object::Address, desired.addresses.len()),
        (Object::Route, desired.routes.len()),
        (Object::Neighbour, desired.neighbours.len()),
        (Object::Fdb, desired.fdb.len()),
        (Object::Firewall, desired.firewall.places(&observed.firewall).len()),
    ];
    let ops = diff(desired, observed);
    let differences = ops.iter().map(|op| Difference {
        object: op.object(),
        step: step(op, &observed.firewall, watched),
        command: command(op, watched).unwrap_or_else(|| repair.to_owned()),
        peer: op.peer(),
    });
    Comparison {
        wanted: counts.into_iter().filter(|(_, count)| *count > 0).collect(),
        differences: differences.collect(),
        rules: desired.firewall.places(&observed.firewall),
    }
}

/// Of rules it also matters whether somebody took them away or wrote over them.
fn step(op: &Op, rules: &FirewallState, watched: &Watched) -> String {
    let there = match op {
        Op::Firewall(FirewallOp::Install(home, _)) => rules.homes.contains_key(home),
        Op::Firewall(FirewallOp::InstallGuard(_)) => rules.guard.is_some(),
        _ => return op.describe(watched),
    };
    let stands = if there { "what is there is not what was written" } else { "nothing is there" };
    format!("{} ({stands})", op.describe(watched))
}

/// The command of iproute2 that does what a step does, where there is one.
fn command(op: &Op, watched: &Watched) -> Option<String> {
    let dev = |device: &Device| watched.name(*device).to_owned();
    Some(match op {
        Op::RemoveLink { name } => format!("ip link del {name}"),
        Op::CreateLink { spec, .. } => {
            // A TUN lives only as long as the process that holds it.
            let LinkKind::Vxlan { mac, vxlan } = &spec.kind else { return None };
            let local = vxlan.local.map(|ip| format!(" local {ip}")).unwrap_or_default();
            let learning = if vxlan.learning { "learning" } else { "nolearning" };
            let gbp = if vxlan.gbp { " gbp" } else { "" };
            format!(
                "ip link add {} address {mac} mtu {} type vxlan id {}{local} dev {} dstport {} {learning}{gbp}",
                spec.name, spec.mtu, vxlan.vni, watched.external_name, vxlan.port
            )
        }
        Op::SetLink { device, change } => set_link(&dev(device), change, watched),
        Op::AddAddress { device, address } => format!("ip address add {address} dev {}", dev(device)),
        Op::RemoveAddress { device, address, len } => {
            format!("ip address del {address}/{len} dev {}", dev(device))
        }
        Op::PutFdb { device, mac, to, .. } => {
            format!("bridge fdb replace {mac} dev {} dst {to} self permanent", dev(device))
        }
        Op::RemoveFdb { device, mac, to } => {
            format!("bridge fdb del {mac} dev {} dst {to} self", dev(device))
        }
        Op::PutNeighbour { device, ip, mac, .. } => {
            format!("ip neigh replace {ip} lladdr {mac} dev {} nud permanent", dev(device))
        }
        Op::RemoveNeighbour { device, ip } => format!("ip neigh del {ip} dev {}", dev(device)),
        Op::PutRoute { key, route, replace, .. } => {
            format!(
                "ip route {} {}",
                if *replace { "replace" } else { "add" },
                route_words(key, route, watched)
            )
        }
        Op::RemoveRoute { key, route } => format!("ip route del {}", route_words(key, route, watched)),
        Op::Firewall(FirewallOp::Remove(Home::Nftables(family))) => {
            format!("nft delete table {}", nftables::table(*family))
        }
        Op::Firewall(FirewallOp::RemoveGuard) => format!("nft delete table inet {OWN_TABLE}"),
        // It may have thousands of lines, and what is there decides which.
        Op::Firewall(_) => return None,
    })
}

fn set_link(dev: &str, change: &LinkChange, watched: &Watched) -> String {
    match change {
        LinkChange::QueueLen(packets) => format!("ip link set {dev} txqueuelen {packets}"),
        LinkChange::Mtu(mtu) => format!("ip link set {dev} mtu {mtu}"),
        LinkChange::Mac(mac) => format!("ip link set {dev} address {mac}"),
        LinkChange::Underlay { local, .. } => {
            format!("ip link set {dev} type vxlan local {local} dev {}", watched.external_name)
        }
        LinkChange::Learning(on) => {
            format!("ip link set {dev} type vxlan {}", if *on { "learning" } else { "nolearning" })
        }
        LinkChange::Alias => format!("ip link set {dev} alias '{}'", watched.alias),
        LinkChange::TxChecksum(on) => format!("ethtool -K {dev} tx {}", if *on { "on" } else { "off" }),
        LinkChange::IgnoreRa => format!("sysctl -w net.ipv6.conf.{}.accept_ra=0", dev.replace('.', "/")),
        LinkChange::Up => format!("ip link set {dev} up"),
    }
}

fn route_words(key: &RouteKey, route: &Route, watched: &Watched) -> String {
    let to = key.to;
    let mut text = match route.hop {
        Hop::Device(device) => format!("{to} dev {}", watched.name(device)),
        Hop::Gateway { via, device, onlink } => {
            format!("{to} via {via} dev {}{}", watched.name(device), if onlink { " onlink" } else { "" })
        }
        Hop::Blackhole => format!("blackhole {to} metric {}", key.metric),
        Hop::Other => to.to_string(),
    };
    text.push_str(&format!(" proto {}", route.protocol));
    if let Some(mtu) = route.mtu {
        text.push_str(&format!(" mtu {mtu}"));
    }
    text
}
