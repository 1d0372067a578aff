//! Gathers what decides which interface carries the overlay.

use std::net::IpAddr;

use anyhow::Result;

use crate::adapter::interfaces;
use crate::config::DaemonArgs;
use crate::config::iface::{ExternalInterface, Wish, choose};
use crate::lease::NodeFacts;

/// Whether the command line says which one.
pub(super) fn asked_for(args: &DaemonArgs) -> bool {
    !args.iface.is_empty() || !args.iface_regex.is_empty() || args.iface_can_reach.is_some()
}

/// Chooses it; `facts` are those of our own Node, where they are known.
pub(super) async fn external(args: &DaemonArgs, facts: Option<&NodeFacts>) -> Result<ExternalInterface> {
    let interfaces = interfaces::list().await?;
    let can_reach = match args.iface_can_reach {
        Some(address) => Some((address, interfaces::reaching(address).await?)),
        None => None,
    };
    let annotation = |value: Option<&String>| value.and_then(|text| text.trim().parse::<IpAddr>().ok());
    let annotated: Vec<IpAddr> = facts
        .iter()
        .flat_map(|facts| [&facts.annotations.public_ip, &facts.annotations.public_ipv6])
        .filter_map(|value| annotation(value.as_ref()))
        .collect();
    let forced = facts.map(|facts| &facts.annotations);
    let forced_v4 = forced.and_then(|forced| forced.node_public_ip.as_ref()?.trim().parse().ok());
    let forced_v6 = forced.and_then(|forced| forced.node_public_ipv6.as_ref()?.trim().parse().ok());
    let wish = Wish {
        iface: &args.iface,
        iface_regex: &args.iface_regex,
        can_reach,
        public_ip: forced_v4.or(args.public_ip),
        public_ip6: forced_v6.or(args.public_ipv6),
        annotated: &annotated,
        internal_ips: facts.map_or(&[], |facts| facts.internal_ips.as_slice()),
        default_route: interfaces::default_route().await?,
    };
    Ok(choose(&interfaces, &wish)?)
}
