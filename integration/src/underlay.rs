//! What may happen to nodes, and to the network below them.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use crate::netns::Netns;
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

/// Takes power from a node and gives it back: its name, its addresses and its disk are as before, its interface has
/// another Ethernet address, and nothing else is there, neither pods nor a daemon.
///
/// # Errors
/// When there is no such node, or the kernel refuses.
pub fn reboot(cluster: &mut Cluster, name: &str) -> Result<()> {
    let node = cluster.node_mut(name)?;
    node.daemon = None;
    node.pods.clear();
    node.ns = Netns::new(name)?;
    let (address, address6) = (node.address(), node.address6());
    // A real one takes longer than a neighbour's kernel keeps what does not answer.
    for peer in cluster.nodes().iter().filter(|node| node.name() != name) {
        peer.ns().ip(&format!("neigh flush to {address} dev eth0\nneigh flush to {address6} dev eth0"))?;
    }
    cluster.replug(name)?;
    cluster.node(name)?.boot()
}

/// Gives a node other addresses, and tells everybody.
///
/// # Errors
/// When there is no such node, or the kernel refuses.
pub fn renumber(cluster: &mut Cluster, name: &str, new: Ipv4Addr, new6: Ipv6Addr) -> Result<()> {
    let node = cluster.node(name)?;
    let (old, old6) = (node.address().to_string(), node.address6().to_string());
    node.ns().ip(&format!(
        "address del {old}/24 dev eth0\naddress del {old6}/64 dev eth0\n\
         address add {new}/24 dev eth0\naddress add {new6}/64 dev eth0 nodad\n\
         route replace default via {GATEWAY}"
    ))?;
    let mut nodes = cluster.manifests();
    let own = nodes.iter_mut().find(|node| node.name == name).context("its Node")?;
    own.internal_ips = vec![new.into(), new6.into()];
    for (_, value) in own.annotations.iter_mut().filter(|(name, _)| name.contains("public-ip")) {
        *value = value.replace(&old6, &new6.to_string()).replace(&old, &new.to_string());
    }
    cluster.publish_only(&nodes)
}
