//! Removes what kernel backends of ours leave behind.

use anyhow::{Context, Result, bail};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::blocking::Socket;
use super::read::{self, destination};
use super::wire::Rtnetlink;
use crate::plan::{ALIAS, ROUTE_PROTOCOL};

/// Removes devices that carry our mark and routes that carry our number, of whatever network; says which.
pub fn remove_ours() -> Result<Vec<String>> {
    let mut rtnl = Socket::<Rtnetlink>::open().context("cannot open a netlink socket")?;
    let (mut requests, mut names) = (Vec::new(), Vec::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.header.protocol = ROUTE_PROTOCOL.into();
        for found in rtnl.list(&Message::GetRoute(filter)).context("cannot read routes")? {
            let Message::NewRoute(route) = found else { continue };
            let ours = u8::from(route.header.protocol) == ROUTE_PROTOCOL
                && route.header.table == RouteHeader::RT_TABLE_MAIN;
            if let Some(to) = destination(&route).filter(|_| ours) {
                names.push(format!("route {to}"));
                requests.push((Message::DelRoute(route), 0));
            }
        }
    }
    let links = rtnl.list(&read::vxlan_links()).context("cannot read devices")?;
    for name in read::aliased(&links, |alias| alias.starts_with(ALIAS)) {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.clone()));
        requests.push((Message::DelLink(link), 0));
        names.push(format!("device {name}"));
    }
    let outcomes = rtnl.write(&requests).context("cannot write to the kernel")?;
    for (name, outcome) in names.iter().zip(outcomes) {
        if let Err(refusal) = outcome {
            bail!("cannot remove {name}: {refusal}");
        }
    }
    Ok(names)
}
