//! Routes of the main table, as `ip route` shows them.

use std::net::IpAddr;

use encap::{PeerId, Prefix};

use super::{Device, Object, Stage};
use crate::plan::diff::Sides;
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;

/// Protocol number of the routes that are ours (`rtm_protocol`; not among those that iproute2's `rt_protos` gives to
/// others). It tells them from an operator's after a restart.
pub const ROUTE_PROTOCOL: u8 = 76;

/// Metric of the blackhole route: behind every other route to the same prefix, above all the bridge's own.
pub const BLACKHOLE_METRIC: u32 = 1_000_000;

/// What one route is told from another by, within the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination.
    pub to: Prefix,
    /// Metric as the kernel reports it: IPv6 has 1024 where none was given.
    pub metric: u32,
}

impl RouteKey {
    /// The route to `to` without a metric.
    pub fn new(to: Prefix) -> Self {
        Self { to, metric: if to.is_ipv4() { 0 } else { 1024 } }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// Straight out of a device.
    Device(Device),
    /// To a gateway.
    Gateway {
        /// Its address.
        via: IpAddr,
        /// Out of this device.
        device: Device,
        /// The gateway is taken to be on the device's link, whatever its addresses say.
        onlink: bool,
    },
    /// Nowhere.
    Blackhole,
    /// Seen only: something that is not ours, such as several gateways or a device we do not know.
    Other,
}

impl Hop {
    /// The device that packets leave by.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Device(device) | Self::Gateway { device, .. } => Some(device),
            Self::Blackhole | Self::Other => None,
        }
    }
}

/// A route of the main table, less its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where it leads.
    pub hop: Hop,
    /// Largest packet toward this destination, bytes; `None` for the device's.
    pub mtu: Option<u32>,
    /// Who made it: [`ROUTE_PROTOCOL`] is us, 3 ("boot") is flannel or somebody at a shell.
    pub protocol: u8,
}

impl Route {
    /// `RTPROT_BOOT`: what flannel's routes carry, and everybody's `ip route add`.
    pub const BOOT: u8 = 3;

    /// A route of ours.
    pub fn ours(hop: Hop) -> Self {
        Self { hop, mtu: None, protocol: ROUTE_PROTOCOL }
    }
}

/// A step of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put it.
    Put {
        /// Its key.
        key: RouteKey,
        /// All else of it.
        route: Route,
        /// Whether it takes the place of another. The node's own routes take only that of an earlier one of ours.
        replace: bool,
        /// The peer that is reached by it.
        peer: Option<PeerId>,
    },
    /// Remove it.
    Remove {
        /// Its key.
        key: RouteKey,
        /// Exactly this one of that key.
        route: Route,
    },
}

/// Steps from the routes that are there to those that should be.
pub(in crate::plan) fn steps(sides: &Sides<'_>) -> Vec<Step> {
    let (desired, observed) = (sides.desired, sides.observed);
    let mut steps = Vec::new();
    for (&key, wanted) in &desired.routes {
        let gone = wanted.value.hop.device().is_some_and(|device| sides.is_fresh(device));
        let all = observed.routes.get(&key);
        if gone || !all.is_some_and(|all| all.contains(&wanted.value)) {
            let earlier = all.is_some_and(|all| all.iter().any(|route| is_ours(sides, &key, route)));
            let replace = earlier || wanted.peer.is_some();
            steps.push(Step::Put { key, route: wanted.value, replace, peer: wanted.peer });
        }
    }
    for (&key, routes) in &observed.routes {
        let wanted = desired.routes.get(&key).map(|wanted| &wanted.value);
        // The only one of its key is the one that the wanted route takes the place of.
        if routes.len() == 1 && wanted.is_some() {
            continue;
        }
        let stale = routes.iter().filter(|route| wanted != Some(route) && is_ours(sides, &key, route));
        steps.extend(stale.map(|&route| Step::Remove { key, route }));
    }
    steps
}

/// Whether a route that is not wanted is ours to remove: it carries our number, or it is one that a flannel left on a
/// device that is ours now.
fn is_ours(sides: &Sides<'_>, key: &RouteKey, route: &Route) -> bool {
    let inside = sides.desired.networks.iter().any(|network| network.covers(&key.to));
    let tunnel = route.hop.device().filter(|device| matches!(device, Device::Tunnel(_)));
    // The device takes its routes along.
    if tunnel.is_some_and(|device| !sides.stays(device)) {
        return false;
    }
    match route.protocol {
        ROUTE_PROTOCOL => inside || tunnel.is_some(),
        Route::BOOT => inside && tunnel.is_some(),
        _ => false,
    }
}

impl super::Step for Step {
    fn stage(&self) -> Stage {
        match self {
            Self::Put { .. } => Stage::Route,
            Self::Remove { .. } => Stage::DropRoute,
        }
    }

    fn object(&self) -> Object {
        Object::Route
    }

    fn failure(&self) -> Code {
        match self {
            Self::Put { peer: Some(_), .. } => Code::PeerNotProgrammed,
            Self::Put { peer: None, .. } => Code::KernelFailing,
            Self::Remove { .. } => Code::KernelWarning,
        }
    }

    fn peer(&self) -> Option<PeerId> {
        match self {
            Self::Put { peer, .. } => *peer,
            Self::Remove { .. } => None,
        }
    }

    fn device(&self) -> Option<Device> {
        let (Self::Put { route, .. } | Self::Remove { route, .. }) = self;
        route.hop.device()
    }

    fn describe(&self, watched: &Watched) -> String {
        match self {
            Self::Put { key, route, .. } => format!("add route {}", words(key, route, None, watched)),
            Self::Remove { key, route } => format!("remove route {}", words(key, route, None, watched)),
        }
    }

    fn command(&self, watched: &Watched) -> Option<String> {
        let words = |key, route: &Route| words(key, route, Some(route.protocol), watched);
        Some(match self {
            Self::Put { key, route, replace, .. } => {
                format!("ip route {} {}", if *replace { "replace" } else { "add" }, words(key, route))
            }
            Self::Remove { key, route } => format!("ip route del {}", words(key, route)),
        })
    }

    fn note(&self, known: &mut Observed) -> Parts {
        match *self {
            Self::Put { key, route, replace, .. } => {
                let all = known.routes.entry(key).or_default();
                // The kernel replaces the first of several, whichever that is.
                let replaced = all.len() == 1 && replace && all.iter().all(|only| only.hop != Hop::Other);
                if !all.is_empty() && !replaced {
                    return Parts::ROUTES;
                }
                *all = [route].into();
            }
            Self::Remove { key, route } => {
                let Some(all) = known.routes.get_mut(&key) else { return Parts::NONE };
                // Of several the kernel may have meant another.
                if all.len() > 1 {
                    return Parts::ROUTES;
                }
                all.remove(&route);
                if all.is_empty() {
                    known.routes.remove(&key);
                }
            }
        }
        Parts::NONE
    }
}

/// A route as iproute2 prints and takes it, with or without the number of who made it.
fn words(key: &RouteKey, route: &Route, protocol: Option<u8>, watched: &Watched) -> String {
    let to = key.to;
    let mut text = match route.hop {
        Hop::Device(device) => format!("{to} dev {}", watched.name(device)),
        Hop::Gateway { via, device, onlink } => {
            format!("{to} via {via} dev {}{}", watched.name(device), if onlink { " onlink" } else { "" })
        }
        Hop::Blackhole => format!("blackhole {to} metric {}", key.metric),
        Hop::Other => to.to_string(),
    };
    if let Some(protocol) = protocol {
        text.push_str(&format!(" proto {protocol}"));
    }
    if let Some(mtu) = route.mtu {
        text.push_str(&format!(" mtu {mtu}"));
    }
    text
}
