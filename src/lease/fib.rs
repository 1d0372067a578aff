//! From leases to the forwarding table.

use std::net::IpAddr;

use encap::{Fib, NextHop, Owner, PeerCaps, Prefix};

use super::{Half, Lease, OwnLease, Snapshot};

/// The table for a snapshot: our own prefixes and pods are local, a peer's go to its public address.
///
/// `tunnel_mtu` is our own tunnel's MTU in bytes; a packet for a peer that announced a smaller one
/// may not be larger than that.
pub fn fib(snapshot: &Snapshot, networks: &[Prefix], tunnel_mtu: u16) -> Fib {
    let mut builder = Fib::builder();
    for network in networks {
        builder.network(*network);
    }
    if let OwnLease::Ready(prefixes) = &snapshot.own {
        for prefix in prefixes {
            builder.route(*prefix, Owner::Local);
        }
    }
    for pod in snapshot.host_routes.iter().filter(|route| route.peer.is_none()) {
        builder.route(Prefix::host(pod.address), Owner::Local);
    }
    for lease in &snapshot.peers {
        for half in lease.halves() {
            let hop = NextHop {
                peer: lease.id,
                addr: half.public_ip,
                mtu: lease.caps.as_ref().map_or(tunnel_mtu, |caps| tunnel_mtu.min(caps.mtu)),
                caps: caps(lease, half),
                mac: half.vtep_mac,
            };
            for prefix in &half.prefixes {
                builder.route(*prefix, Owner::Peer(hop));
            }
        }
    }
    for (addr, lease) in senders(snapshot) {
        builder.sender(addr, lease.id);
    }
    builder.build()
}

/// Outer source addresses and the nodes that send from them. A later entry for an address replaces an earlier one. Public
/// addresses come last, because each is checked to be one node's only. A node may list anybody's address among its other
/// ones; of those the first node's entry stays.
pub fn senders(snapshot: &Snapshot) -> impl Iterator<Item = (IpAddr, &Lease)> {
    let listed = snapshot
        .peers
        .iter()
        .rev()
        .flat_map(|lease| lease.addresses.iter().map(move |addr| (*addr, &**lease)));
    let public = snapshot.peers.iter().flat_map(|lease| lease.public_ips().map(move |addr| (addr, &**lease)));
    listed.chain(public)
}

/// What can be sent to a peer.
///
/// A VXLAN peer, a kernel among them, needs to announce nothing: each frame says which family is in it, every VXLAN carries
/// congestion marks over (RFC 6040), and none judges a sender by its port. But a kernel takes the checksums in it for finished.
fn caps(lease: &Lease, half: &Half) -> PeerCaps {
    if half.vtep_mac.is_some() {
        return PeerCaps { ipv6: true, ecn: true, flow_ports: true, partial_checksum: false };
    }
    lease.caps.as_ref().map(super::LodenCaps::peer_caps).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use encap::PeerId;

    use super::*;
    use crate::lease::{ByFamily, LodenCaps};

    fn lease(id: u32, prefix: &str, addresses: &[&str], caps: Option<LodenCaps>) -> Arc<Lease> {
        let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let half = Half { prefixes: vec![prefix.parse().unwrap()], public_ip: addresses[0], vtep_mac: None };
        let halves = ByFamily { v4: Some(half), v6: None };
        Arc::new(Lease { id: PeerId(id), node: format!("n{id}"), halves, addresses, caps })
    }

    #[test]
    fn routes_and_senders() {
        let caps = LodenCaps { mtu: 1400, ipv6: true, ..LodenCaps::default() };
        let snapshot = Snapshot {
            generation: 1,
            own: OwnLease::Ready(vec!["10.244.1.0/24".parse().unwrap()]),
            own_facts: None,
            peers: vec![
                lease(7, "10.244.2.0/24", &["192.168.77.2", "192.168.77.3", "10.9.9.9"], None),
                lease(3, "10.244.3.0/24", &["192.168.77.3", "10.9.9.9"], Some(caps)),
            ],
            refused: Vec::new(),
            mismatched: Vec::new(),
            unlisted: Vec::new(),
            host_routes: Arc::default(),
            refused_pods: Arc::default(),
        };
        let network = "10.244.0.0/16".parse().unwrap();
        let fib = fib(&snapshot, &[network], 1472);
        assert_eq!(fib.networks(), [network]);
        let at = |ip: &str| fib.lookup(ip.parse().unwrap()).copied();
        assert_eq!(at("10.244.1.9"), Some(Owner::Local));
        let plain = NextHop {
            peer: PeerId(7),
            addr: "192.168.77.2".parse().unwrap(),
            mtu: 1472,
            caps: PeerCaps::default(),
            mac: None,
        };
        assert_eq!(at("10.244.2.9"), Some(Owner::Peer(plain)));
        let able = PeerCaps { ipv6: true, ..PeerCaps::default() };
        let loden = NextHop {
            peer: PeerId(3),
            addr: "192.168.77.3".parse().unwrap(),
            mtu: 1400,
            caps: able,
            mac: None,
        };
        assert_eq!(at("10.244.3.9"), Some(Owner::Peer(loden)));
        assert_eq!(at("10.244.4.9"), None);

        let sender = |ip: &str| fib.sender(ip.parse().unwrap());
        assert_eq!(sender("192.168.77.2"), Some(PeerId(7)));
        assert_eq!(sender("192.168.77.3"), Some(PeerId(3)), "a public address is nobody else's");
        assert_eq!(sender("10.9.9.9"), Some(PeerId(7)), "the first keeps");
        assert_eq!(sender("192.168.77.4"), None);
    }

    /// A kernel announces nothing, and a Loden node in VXLAN is not asked what it announced for the UDP backend.
    #[test]
    fn a_vxlan_peer_takes_what_every_vxlan_takes() {
        let announced = LodenCaps { mtu: 1450, partial_checksum: true, ..LodenCaps::default() };
        for announced in [None, Some(announced)] {
            let mut peer = lease(7, "10.244.2.0/24", &["192.168.77.2"], announced);
            let half = Arc::get_mut(&mut peer).and_then(|lease| lease.halves.v4.as_mut()).unwrap();
            half.vtep_mac = Some("02:00:00:00:00:02".parse().unwrap());
            let half = half.clone();
            let want = PeerCaps { ipv6: true, ecn: true, flow_ports: true, partial_checksum: false };
            assert_eq!(caps(&peer, &half), want);
        }
    }
}
