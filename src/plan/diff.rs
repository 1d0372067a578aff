//! The steps from what the kernel holds to what it should hold.

use std::collections::BTreeSet;
use std::fmt;

use encap::Prefix;

use super::firewall::{self, FirewallOp, FirewallState};
use super::{Desired, TunnelSpec};

/// A network device as the kernel reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Interface index.
    pub index: u32,
    /// MTU, bytes.
    pub mtu: u32,
    /// Transmit queue, packets.
    pub queue_len: u32,
    /// Administratively up.
    pub up: bool,
}

/// The tunnel device as the kernel reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelState {
    /// The device.
    pub link: LinkState,
    /// Its addresses with their prefix length (an address of `/24` is not the `/32` that we want).
    pub addresses: BTreeSet<(std::net::IpAddr, u8)>,
    /// Destinations of its unicast routes in the main table.
    pub routes: BTreeSet<Prefix>,
}

/// What the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The external interface; `None` when it is gone.
    pub external: Option<LinkState>,
    /// The tunnel; `None` when there is no such device or this process does not hold it open.
    pub tunnel: Option<TunnelState>,
    /// Traffic rules, ours and what others have put in their way.
    pub firewall: FirewallState,
}

/// One step. Devices are named, not numbered: a step may follow the one that creates its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Open the TUN device and hand it to the data path.
    OpenTunnel {
        /// Device name.
        name: String,
    },
    /// Set the transmit queue.
    SetQueueLen {
        /// Device name.
        link: String,
        /// Packets.
        packets: u32,
    },
    /// Set the MTU.
    SetMtu {
        /// Device name.
        link: String,
        /// Bytes.
        mtu: u32,
    },
    /// Set the device up.
    SetUp {
        /// Device name.
        link: String,
    },
    /// Remove an address.
    RemoveAddress {
        /// Device name.
        link: String,
        /// Address.
        address: std::net::IpAddr,
        /// Prefix length.
        len: u8,
    },
    /// Add an address.
    AddAddress {
        /// Device name.
        link: String,
        /// Address as a host prefix.
        address: Prefix,
    },
    /// Add a route to the main table.
    AddRoute {
        /// Device name.
        link: String,
        /// Destination.
        to: Prefix,
    },
    /// A step of the traffic rules.
    Firewall(FirewallOp),
}

/// What kind of kernel object a step touches: the label of the repair metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// A device: its existence, state or queue.
    Link,
    /// A device's MTU.
    Mtu,
    /// An address.
    Address,
    /// A route.
    Route,
    /// Traffic rules.
    Firewall,
}

impl Object {
    /// All of them, for metrics that start at zero.
    pub const ALL: [Self; 5] = [Self::Link, Self::Mtu, Self::Address, Self::Route, Self::Firewall];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Mtu => "mtu",
            Self::Address => "address",
            Self::Route => "route",
            Self::Firewall => "firewall",
        }
    }
}

impl Op {
    /// The kind of object that the step touches.
    pub fn object(&self) -> Object {
        match self {
            Self::OpenTunnel { .. } | Self::SetQueueLen { .. } | Self::SetUp { .. } => Object::Link,
            Self::SetMtu { .. } => Object::Mtu,
            Self::RemoveAddress { .. } | Self::AddAddress { .. } => Object::Address,
            Self::AddRoute { .. } => Object::Route,
            Self::Firewall(_) => Object::Firewall,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenTunnel { name } => write!(f, "open tunnel device {name}"),
            Self::SetQueueLen { link, packets } => write!(f, "set the queue of {link} to {packets} packets"),
            Self::SetMtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
            Self::SetUp { link } => write!(f, "set {link} up"),
            Self::RemoveAddress { link, address, len } => {
                write!(f, "remove address {address}/{len} from {link}")
            }
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::AddRoute { link, to } => write!(f, "add route {to} dev {link}"),
            Self::Firewall(op) => op.fmt(f),
        }
    }
}

/// Steps from `observed` to `desired`, in an order the kernel accepts: device, MTU, up, addresses, routes, rules.
///
/// No step when there is no difference. Routes and addresses outside the cluster networks are not ours and stay.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    // A device that is about to be opened has nothing yet; comparing with that makes one pass enough.
    let fresh = TunnelState::default();
    if observed.tunnel.is_none() {
        ops.push(Op::OpenTunnel { name: desired.tunnel.name.clone() });
    }
    tunnel(&desired.tunnel, observed.tunnel.as_ref().unwrap_or(&fresh), &mut ops);
    ops.extend(firewall::diff(&desired.firewall, &observed.firewall).into_iter().map(Op::Firewall));
    ops
}

fn tunnel(want: &TunnelSpec, have: &TunnelState, ops: &mut Vec<Op>) {
    let link = || want.name.clone();
    if have.link.queue_len != want.queue_len {
        ops.push(Op::SetQueueLen { link: link(), packets: want.queue_len });
    }
    if have.link.mtu != want.mtu {
        ops.push(Op::SetMtu { link: link(), mtu: want.mtu });
    }
    if !have.link.up {
        ops.push(Op::SetUp { link: link() });
    }
    // New addresses before stale ones go: losing its last address costs a device its routes.
    let missing = want.addresses.iter().filter(|w| !have.addresses.contains(&(w.addr(), w.len())));
    ops.extend(missing.map(|address| Op::AddAddress { link: link(), address: *address }));
    let wanted = |address, len| want.addresses.iter().any(|w| w.addr() == address && w.len() == len);
    let stale = have.addresses.iter().filter(|(address, len)| {
        !wanted(*address, *len) && want.networks.iter().any(|network| network.contains(*address))
    });
    ops.extend(stale.map(|&(address, len)| Op::RemoveAddress { link: link(), address, len }));
    // The kernel flushes a device's routes when it goes down.
    let flushed = !have.link.up;
    let absent = want.routes.iter().filter(|to| flushed || !have.routes.contains(*to));
    ops.extend(absent.map(|to| Op::AddRoute { link: link(), to: *to }));
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::firewall::{Firewall, Manager};
    use crate::plan::{Intent, desired};

    fn want() -> Desired {
        let intent = Intent {
            tunnel: "flannel0".into(),
            encapsulation: encap::Encapsulation::Udp,
            underlay: encap::Family::V4,
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            own_prefixes: vec!["10.244.1.0/24".parse().unwrap()],
            firewall: Firewall { manager: Manager::Iptables, rules: Vec::new() },
        };
        desired(&intent, 1472)
    }

    /// The rules a kernel follows, small enough to check by eye.
    fn apply(state: &mut Observed, op: &Op) {
        if let Op::OpenTunnel { .. } = op {
            assert!(state.tunnel.is_none(), "the device is there already");
            let link = LinkState { index: 7, mtu: 1500, queue_len: 500, up: false };
            state.tunnel = Some(TunnelState { link, ..TunnelState::default() });
            return;
        }
        let tunnel = state.tunnel.as_mut().expect("a step on a device that does not exist");
        match op {
            Op::SetQueueLen { packets, .. } => tunnel.link.queue_len = *packets,
            Op::SetMtu { mtu, .. } => tunnel.link.mtu = *mtu,
            Op::SetUp { .. } => tunnel.link.up = true,
            Op::AddAddress { address, .. } => {
                assert!(tunnel.addresses.insert((address.addr(), address.len())), "EEXIST");
            }
            Op::RemoveAddress { address, len, .. } => {
                assert!(tunnel.addresses.remove(&(*address, *len)), "EADDRNOTAVAIL");
                if tunnel.addresses.is_empty() {
                    tunnel.routes.clear();
                }
            }
            Op::AddRoute { to, .. } => {
                assert!(tunnel.link.up, "ENETDOWN");
                assert!(tunnel.routes.insert(*to), "EEXIST");
            }
            Op::OpenTunnel { .. } | Op::Firewall(_) => {}
        }
    }

    fn tunnel_states() -> impl Strategy<Value = Option<TunnelState>> {
        let address = prop_oneof![
            Just(("10.244.1.0", 32u8)),
            Just(("10.244.1.0", 24)),
            Just(("10.244.9.0", 32)),
            Just(("192.0.2.1", 32)),
        ];
        let addresses = prop::collection::btree_set(address, 0..4)
            .prop_map(|set| set.into_iter().map(|(a, len)| (a.parse::<IpAddr>().unwrap(), len)).collect());
        let route = prop_oneof![Just("10.244.0.0/16"), Just("198.51.100.0/24")];
        let routes = prop::collection::btree_set(route, 0..3)
            .prop_map(|set| set.into_iter().map(|to| to.parse().unwrap()).collect::<BTreeSet<Prefix>>());
        let link =
            (prop_oneof![Just(1472u32), Just(1500)], prop_oneof![Just(500u32), Just(10_000)], any::<bool>());
        prop::option::of((link, addresses, routes).prop_map(|((mtu, queue_len, up), addresses, routes)| {
            let routes = if up { routes } else { BTreeSet::new() };
            TunnelState { link: LinkState { index: 7, mtu, queue_len, up }, addresses, routes }
        }))
    }

    proptest! {
        #[test]
        fn one_pass_converges_and_the_next_does_nothing(tunnel in tunnel_states()) {
            let before = tunnel.clone();
            let mut state = Observed { external: None, tunnel, firewall: FirewallState::default() };
            for op in diff(&want(), &state) {
                apply(&mut state, &op);
            }
            prop_assert_eq!(diff(&want(), &state), vec![]);
            // What is not ours is still there.
            let after = state.tunnel.unwrap();
            for foreign in before.iter().flat_map(|t| &t.addresses).filter(|(a, _)| a.to_string() == "192.0.2.1") {
                prop_assert!(after.addresses.contains(foreign));
            }
            for foreign in before.iter().flat_map(|t| &t.routes).filter(|r| r.to_string() == "198.51.100.0/24") {
                prop_assert!(after.routes.contains(foreign));
            }
        }
    }
}
