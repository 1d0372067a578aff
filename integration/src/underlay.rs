//! What may happen to the network below the nodes.

use anyhow::Result;

use crate::topology::{Cluster, GATEWAY, GATEWAY6};

/// Puts a router between two nodes, which are neighbours otherwise: the switch's own network stack.
///
/// # Errors
/// When the kernel refuses.
pub fn router_between(cluster: &Cluster, one: &str, other: &str) -> Result<()> {
    let switch = cluster.switch();
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // They are neighbours after all, and are not to be told.
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/br0/send_redirects", "0"),
    ] {
        switch.sysctl(key, value)?;
    }
    for (from, to) in [(one, other), (other, one)] {
        let (from, to) = (cluster.node(from)?, cluster.node(to)?);
        from.ns().ip(&format!(
            "route replace {}/32 via {GATEWAY}\nroute replace {}/128 via {GATEWAY6}",
            to.address(),
            to.address6()
        ))?;
    }
    Ok(())
}

/// From now on what that router passes on to a node is at most `mtu` bytes long.
///
/// # Errors
/// When the kernel refuses.
pub fn narrow(cluster: &Cluster, to: &str, mtu: u32) -> Result<()> {
    let to = cluster.node(to)?;
    cluster.switch().ip(&format!(
        "route replace {}/32 dev br0 mtu {mtu}\nroute replace {}/128 dev br0 mtu {mtu}",
        to.address(),
        to.address6()
    ))
}
