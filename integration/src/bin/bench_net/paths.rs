//! The ways from one node's pod to another's that are compared.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use integration::net_conf;
use integration::netns::Netns;
use integration::probe::bulk::End;
use integration::topology::{Cluster, Wire};

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From node to node, without pods and without an overlay.
    Host,
    /// Pods over a VXLAN device of the kernel's, set up as flannel does, by hand.
    Vxlan,
    /// Pods over our daemon without offloads.
    Plain,
    /// Pods over our daemon as it comes.
    Offload,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Host, Self::Vxlan, Self::Plain, Self::Offload];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "host to host",
            Self::Vxlan => "kernel VXLAN",
            Self::Plain => "Loden, plain",
            Self::Offload => "Loden",
        }
    }
}

/// A cluster of two nodes with one way between them.
pub(crate) struct Path {
    pub(crate) kind: Kind,
    cluster: Cluster,
}

impl Path {
    pub(crate) fn build(kind: Kind, wire: Wire, mtu: u32, partial_checksum: bool) -> Result<Self> {
        let builder = Cluster::builder().nodes(2).pods_per_node(1).wire(wire).mtu(mtu).launch(|launch| {
            // The kernel's VXLAN has no rules here either, and rules mean connection tracking.
            launch.unset("--ip-masq").env("FLANNELD_IPTABLES_FORWARD_RULES", "false")
        });
        let mut cluster = match kind {
            Kind::Host => builder.build()?,
            Kind::Vxlan => vxlan(builder.build()?, mtu - 50)?,
            Kind::Plain => builder.launch(plain).start()?,
            Kind::Offload => builder.start()?,
        };
        if kind == Kind::Offload && partial_checksum {
            net_conf::partial_checksum(&mut cluster)?;
        }
        Ok(Self { kind, cluster })
    }

    /// Where load begins and where it ends.
    pub(crate) fn ends(&self) -> Result<(End<'_>, End<'_>)> {
        let end = |name: &str| -> Result<End<'_>> {
            if self.kind == Kind::Host {
                let node = self.cluster.node(name)?;
                return Ok(End { ns: node.ns(), ip: node.address() });
            }
            let pod = self.cluster.pod(&format!("{name}.a"))?;
            Ok(End { ns: pod.ns(), ip: pod.ip() })
        };
        Ok((end("n1")?, end("n2")?))
    }

    /// Resident memory of the daemons, bytes; none where none runs.
    pub(crate) fn resident(&self) -> Option<u64> {
        let sizes = self.cluster.nodes().iter().map(|node| node.daemon().ok()?.resident().ok());
        sizes.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    pub(crate) fn logs(&self) -> String {
        self.cluster.logs()
    }
}

fn plain(launch: integration::daemon::Launch) -> integration::daemon::Launch {
    let launch = launch.unset("--ip-masq").env("FLANNELD_IPTABLES_FORWARD_RULES", "false");
    launch.env("LODEN_OFFLOAD_DISABLE", "all")
}

/// What flannel's VXLAN backend makes: device, address, and for each peer a route, a neighbour and an FDB entry.
fn vxlan(mut cluster: Cluster, mtu: u32) -> Result<Cluster> {
    let nodes: Vec<(Netns, u8, Ipv4Addr)> = cluster
        .nodes()
        .iter()
        .map(|node| (node.ns().clone(), node.address().octets()[3], node.address()))
        .collect();
    let mac = |number: u8| format!("02:00:00:00:00:{number:02x}");
    for (ns, number, address) in &nodes {
        ns.ip(&format!(
            "link add flannel.1 address {} mtu {mtu} type vxlan id 1 dev eth0 local {address} dstport 8472 nolearning\n\
             link set flannel.1 up\naddr add 10.244.{number}.0/32 dev flannel.1",
            mac(*number)
        ))?;
        for (_, peer, via) in nodes.iter().filter(|(_, peer, _)| peer != number) {
            ns.ip(&format!(
                "route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev flannel.1 onlink\n\
                 neigh add 10.244.{peer}.0 lladdr {} dev flannel.1",
                mac(*peer)
            ))?;
            ns.command("bridge")
                .args(["fdb", "append", &mac(*peer), "dev", "flannel.1", "dst", &via.to_string()])
                .run()
                .context("make an FDB entry")?;
        }
    }
    cluster.attach_pods_with(mtu)?;
    Ok(cluster)
}
