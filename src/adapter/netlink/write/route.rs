//! Routes of the main table.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use nix::errno::Errno;

use super::{Request, family};
use crate::adapter::netlink::read::Indices;
use crate::adapter::netlink::wire::Refusal;
use crate::plan::object::route::Step;
use crate::plan::{Device, Hop, Route, RouteKey};

/// The request for one step; `None` when its device is not there.
pub(super) fn request(step: &Step, indices: &Indices) -> Option<Request> {
    Some(match step {
        Step::Put { key, route, replace, .. } => {
            let mode = if *replace { NLM_F_REPLACE } else { NLM_F_EXCL };
            (Message::NewRoute(route_message(key, route, indices)?), NLM_F_CREATE | mode)
        }
        Step::Remove { key, route } => {
            let mut message = route_message(key, route, indices)?;
            message.header.scope = RouteScope::NoWhere;
            (Message::DelRoute(message), 0)
        }
    })
}

/// The two requests that get an IPv6 route in after the kernel has refused it. It takes no gateway that is said to be on
/// a device's link while that address is routed by another device (`ip6_route_check_nh_onlink`), and a VTEP's address is
/// in the very prefix that is to be routed. So the prefix first leads to the device itself.
pub(super) fn detour(step: &Step, refusal: &Refusal, indices: &Indices) -> Option<[Request; 2]> {
    let &Step::Put { key, route, peer, .. } = step else { return None };
    let Hop::Gateway { device, onlink: true, .. } = route.hop else { return None };
    if key.to.is_ipv4() || refusal.errno != Errno::EINVAL {
        return None;
    }
    let put = |hop| request(&Step::Put { key, route: Route { hop, ..route }, replace: true, peer }, indices);
    Some([put(Hop::Device(device))?, put(route.hop)?])
}

/// The cause of a refusal, where the kernel's word for it says too little, and what to do about it.
pub(super) fn explain(step: &Step, errno: Errno) -> (Option<&'static str>, Option<&'static str>) {
    let Step::Put { route, .. } = step else { return (None, None) };
    let direct = matches!(route.hop, Hop::Gateway { device: Device::External, .. });
    match errno {
        Errno::EEXIST => (
            Some("there is a route to this network by another device"),
            Some("`ip route show` names it; remove it, or choose another Network"),
        ),
        Errno::ENETUNREACH | Errno::EINVAL | Errno::EHOSTUNREACH if direct => (
            None,
            Some(
                "that node's address is on no link of the external interface: host-gw needs all nodes in one \
                 layer-2 network; use vxlan, which can route directly where that is possible (DirectRouting)",
            ),
        ),
        _ => (None, None),
    }
}

fn route_message(key: &RouteKey, route: &Route, indices: &Indices) -> Option<RouteMessage> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(key.to.addr());
    message.header.destination_prefix_length = key.to.len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = route.protocol.into();
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(key.to.addr().into()));
    if key.metric != RouteKey::new(key.to).metric {
        message.attributes.push(RouteAttribute::Priority(key.metric));
    }
    if let Some(device) = route.hop.device() {
        message.attributes.push(RouteAttribute::Oif(*indices.get(&device)?));
    }
    match route.hop {
        Hop::Gateway { via, onlink, .. } => {
            message.attributes.push(RouteAttribute::Gateway(via.into()));
            if onlink {
                message.header.flags = RouteFlags::Onlink;
            }
        }
        Hop::Blackhole => message.header.kind = RouteType::BlackHole,
        // Of a route that is only ever removed: its key and protocol say which.
        Hop::Other => message.header.kind = RouteType::Unspec,
        Hop::Device(_) => {}
    }
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    Some(message)
}
