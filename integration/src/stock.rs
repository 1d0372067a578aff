//! The kernel state of a node on which a real flannel ran until now, made by hand as it was observed there.

use std::fmt::Write as _;

use anyhow::Result;

use crate::topology::Node;

/// What flannel v0.28 leaves with `vxlan`: `flannel.1` with its address, and route, neighbour and forwarding entry of
/// each of `peers`.
///
/// # Errors
/// When the kernel refuses.
pub fn vxlan(node: &Node, peers: &[&Node]) -> Result<()> {
    let mut batch = format!(
        "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning\n\
         address add {own}/32 dev flannel.1\nlink set flannel.1 up\n",
        mac = node.vtep_mac(),
        local = node.address(),
        own = node.pod_address(0),
    );
    for peer in peers {
        let (gateway, mac) = (peer.pod_address(0), peer.vtep_mac());
        let _ = writeln!(batch, "neigh add {gateway} lladdr {mac} dev flannel.1 nud permanent");
        let _ = writeln!(batch, "route add {gateway}/24 via {gateway} dev flannel.1 onlink");
    }
    node.ns().ip(&batch)?;
    node.ns().sysctl("net/ipv6/conf/flannel.1/accept_ra", "0")?;
    for peer in peers {
        let (mac, to) = (peer.vtep_mac(), peer.address().to_string());
        let entry = ["fdb", "add", &mac, "dev", "flannel.1", "dst", &to, "self", "permanent"];
        node.ns().command("bridge").args(entry).run()?;
    }
    rules(node)
}

/// What it leaves with `host-gw`: a route to each of `peers`.
///
/// # Errors
/// When the kernel refuses.
pub fn host_gw(node: &Node, peers: &[&Node]) -> Result<()> {
    for peer in peers {
        node.ns().ip(&format!("route add {}/24 via {} dev eth0", peer.pod_address(0), peer.address()))?;
    }
    rules(node)
}

/// Its chains, with `--ip-masq`.
///
/// # Errors
/// When iptables refuses.
pub fn rules(node: &Node) -> Result<()> {
    let own = node.pod_cidr();
    let masq = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    let rules = format!(
        "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD {forward} -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s 10.244.0.0/16 {forward} -j ACCEPT\n\
         -A FLANNEL-FWD -d 10.244.0.0/16 {forward} -j ACCEPT\nCOMMIT\n\
         *nat\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING {masq} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {own} -d 10.244.0.0/16 {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d {own} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d {own} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 {masq} -j MASQUERADE --random-fully\nCOMMIT\n"
    );
    node.ns().command("iptables-nft-restore").arg("--noflush").input(rules).run().map(drop)
}
