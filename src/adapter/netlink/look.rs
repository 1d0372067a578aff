//! One look at everything that is watched.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use netlink_packet_route::AddressFamily;

use super::Rtnl;
use super::read::{self, Indices};
use crate::adapter::{ethtool, sysctl};
use crate::plan::{Device, LinkState, Observed, Parts, Watched};

/// Looks at devices, their addresses and settings. `held` is the index of the TUN device that this process holds, where
/// it is to hold one: another of the same name is none of ours.
pub(in crate::adapter) async fn devices(
    rtnl: &mut Rtnl,
    watched: &Watched,
    held: Option<Option<u32>>,
) -> Result<(Observed, Indices)> {
    let mut observed = Observed::default();
    links(rtnl, watched, held, &mut observed).await.context("cannot read devices")?;
    let names = watched.tunnels.values().map(String::as_str);
    observed.host = sysctl::host(names.chain([watched.external_name.as_str()]));
    let indices: Indices = observed.links.iter().map(|(device, state)| (*device, state.index)).collect();
    for (&device, &index) in &indices {
        read::addresses(rtnl, device, index, &mut observed).await.context("cannot read addresses")?;
    }
    Ok((observed, indices))
}

async fn links(
    rtnl: &mut Rtnl,
    watched: &Watched,
    held: Option<Option<u32>>,
    observed: &mut Observed,
) -> Result<()> {
    let mut external = read::link_by_index(rtnl, watched.external).await?;
    if external.is_none() {
        // An interface that was removed and made anew (a restarted network manager, a driver) has another index.
        external = read::link_by_name(rtnl, &watched.external_name).await?;
    }
    observed.links.extend(external.map(|state| (Device::External, state)));
    for (device, name) in &watched.tunnels {
        let mut state = match held {
            Some(Some(index)) => read::link_by_index(rtnl, index).await?,
            Some(None) => None,
            None => read::link_by_name(rtnl, name).await?,
        };
        if let Some(state) = &mut state {
            state.accepts_ra = sysctl::accepts_ra(name);
            state.tx_checksum = ethtool::tx_checksum(name);
        }
        observed.links.extend(state.map(|state| (*device, state)));
    }
    observed.leftovers = read::aliased(&rtnl.list(&read::vxlan_links()).await?, |alias| watched.marks(alias));
    observed.leftovers.retain(|name| !watched.tunnels.values().any(|ours| ours == name));
    Ok(())
}

/// Looks at what is on the devices that were found.
pub(in crate::adapter) async fn entries(
    rtnl: &mut Rtnl,
    parts: Parts,
    indices: &Indices,
    observed: &mut Observed,
) -> Result<()> {
    let is_ours = |device: &Device| *device != Device::External;
    let links: &BTreeMap<Device, LinkState> = &observed.links;
    let vxlans: Vec<(Device, u32)> = links
        .iter()
        .filter(|(device, state)| is_ours(device) && state.vxlan.is_some())
        .map(|(device, state)| (*device, state.index))
        .collect();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        if parts.routes {
            let ours = indices.iter().filter(|(device, _)| is_ours(device)).map(|(_, index)| Some(*index));
            for by in std::iter::once(None).chain(ours) {
                read::routes(rtnl, family, by, indices, observed).await.context("cannot read routes")?;
            }
        }
        for &vxlan in vxlans.iter().filter(|_| parts.neighbours) {
            read::neighbours(rtnl, family, vxlan, observed).await.context("cannot read neighbours")?;
        }
    }
    for &vxlan in vxlans.iter().filter(|_| parts.fdb) {
        read::fdb(rtnl, vxlan, observed).await.context("cannot read forwarding entries")?;
    }
    Ok(())
}
