//! One look at everything that is watched.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rtnetlink::packet_route::AddressFamily;

use super::read::{self, Indices};
use super::socket::Rtnl;
use crate::adapter::{ethtool, sysctl};
use crate::plan::{Device, LinkState, Observed, Watched};

/// Looks at devices, and at what is on them. `held` is the index of the TUN device that this process holds, where it
/// is to hold one: another of the same name is none of ours.
pub(super) async fn look(
    rtnl: &mut Rtnl,
    watched: &Watched,
    held: Option<Option<u32>>,
) -> Result<(Observed, Indices)> {
    let mut observed = Observed::default();
    links(rtnl, watched, held, &mut observed).await.context("cannot read devices")?;
    let names = watched.tunnels.values().map(String::as_str);
    observed.host = sysctl::host(names.chain([watched.external_name.as_str()]));
    let indices: Indices = observed.links.iter().map(|(device, state)| (*device, state.index)).collect();
    entries(rtnl, &indices, &mut observed).await.context("cannot read addresses, routes and neighbours")?;
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
    observed.leftovers = read::aliased(rtnl, |alias| watched.marks(alias)).await?;
    observed.leftovers.retain(|name| !watched.tunnels.values().any(|ours| ours == name));
    Ok(())
}

async fn entries(rtnl: &mut Rtnl, indices: &Indices, observed: &mut Observed) -> Result<()> {
    for (&device, &index) in indices {
        read::addresses(rtnl, device, index, observed).await?;
    }
    let is_ours = |device: &Device| *device != Device::External;
    let links: &BTreeMap<Device, LinkState> = &observed.links;
    let vxlans: Vec<(Device, u32)> = links
        .iter()
        .filter(|(device, state)| is_ours(device) && state.vxlan.is_some())
        .map(|(device, state)| (*device, state.index))
        .collect();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        read::routes(rtnl, family, None, indices, observed).await?;
        for (_, &index) in indices.iter().filter(|(device, _)| is_ours(device)) {
            read::routes(rtnl, family, Some(index), indices, observed).await?;
        }
        for &vxlan in &vxlans {
            read::neighbours(rtnl, family, vxlan, observed).await?;
        }
    }
    for &vxlan in &vxlans {
        read::fdb(rtnl, vxlan, observed).await?;
    }
    Ok(())
}
