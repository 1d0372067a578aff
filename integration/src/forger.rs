//! A host that speaks VXLAN by hand, truthfully or not: with a Node it is a node, without one a stranger.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail};
use etherparse::{PacketBuilder, VlanId};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::nodes_file::NodeManifest;
use crate::topology::{Cluster, Node};

/// UDP port of flannel's VXLAN backend.
pub const PORT: u16 = 8472;

/// What a forged packet claims to be.
#[derive(Debug, Clone, Copy)]
pub struct Forged {
    /// Network identifier.
    pub vni: u32,
    /// Inner source.
    pub from: IpAddr,
    /// Inner destination.
    pub to: SocketAddr,
    /// A priority tag (802.1Q, VLAN 0) in front of the inner packet, which a kernel takes off without a word.
    pub tagged: bool,
}

impl Forged {
    /// An untagged packet in VNI 1.
    pub fn new(from: impl Into<IpAddr>, to: impl Into<SocketAddr>) -> Self {
        Self { vni: 1, from: from.into(), to: to.into(), tagged: false }
    }

    /// The payload of the tunnel datagram, for the VXLAN device of `node`.
    ///
    /// # Errors
    /// When inner source and destination are of two families.
    pub fn datagram(&self, node: &Node) -> Result<Vec<u8>> {
        const TEXT: &[u8] = b"let me in";
        let mac = mac(&node.vtep_mac())?;
        let frame = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 66], mac);
        let mut bytes = vec![8, 0, 0, 0];
        bytes.extend((self.vni << 8).to_be_bytes());
        let (from_port, port) = (1234, self.to.port());
        match (self.from, self.to.ip(), self.tagged) {
            (IpAddr::V4(from), IpAddr::V4(to), false) => {
                frame.ipv4(from.octets(), to.octets(), 64).udp(from_port, port).write(&mut bytes, TEXT)?;
            }
            (IpAddr::V4(from), IpAddr::V4(to), true) => {
                let frame = frame.single_vlan(VlanId::ZERO).ipv4(from.octets(), to.octets(), 64);
                frame.udp(from_port, port).write(&mut bytes, TEXT)?;
            }
            (IpAddr::V6(from), IpAddr::V6(to), false) => {
                frame.ipv6(from.octets(), to.octets(), 64).udp(from_port, port).write(&mut bytes, TEXT)?;
            }
            (IpAddr::V6(from), IpAddr::V6(to), true) => {
                let frame = frame.single_vlan(VlanId::ZERO).ipv6(from.octets(), to.octets(), 64);
                frame.udp(from_port, port).write(&mut bytes, TEXT)?;
            }
            _ => bail!("{self:?} is no packet"),
        }
        Ok(bytes)
    }
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{text} is no Ethernet address"))
}

/// A host on the underlay, 192.168.77.`number` and fd00:77::`number`.
pub struct Forger {
    number: u8,
    ns: Netns,
    v4: UdpSocket,
    v6: UdpSocket,
}

impl Forger {
    /// Plugs it in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(cluster: &mut Cluster, number: u8) -> Result<Self> {
        let ns = cluster.plug(&format!("forger{number}"), Ipv4Addr::new(192, 168, 77, number))?;
        let (v4, v6) = ns.run(|| {
            Ok((UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?))
        })?;
        Ok(Self { number, ns, v4, v6 })
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// The name of its Node.
    pub fn name(&self) -> String {
        format!("forger{}", self.number)
    }

    /// Address `last` of 10.244.`number`.0/24.
    pub fn pod(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, last)
    }

    /// Address `last` of fd00:10:244:`number`::/64.
    pub fn pod6(&self, last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, last)
    }

    /// Address `last` of each of its pod networks.
    pub fn pods(&self, last: u8) -> [IpAddr; 2] {
        [self.pod(last).into(), self.pod6(last.into()).into()]
    }

    /// Its own address on the underlay: IPv6's.
    fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, self.number.into())
    }

    /// The Node that makes it one, with pod prefixes of the given lengths.
    pub fn manifest(&self, len: u8, len6: u8) -> NodeManifest {
        let (v4, v6) = (Ipv4Addr::new(192, 168, 77, self.number), self.address6());
        let data = json!({"VNI": 1, "VtepMAC": format!("0e:66:00:00:00:{:02x}", self.number)}).to_string();
        let all = [
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", data.clone()),
            ("public-ip", v4.to_string()),
            ("backend-v6-data", data),
            ("public-ipv6", v6.to_string()),
        ];
        NodeManifest {
            name: self.name(),
            pod_cidrs: vec![format!("{}/{len}", self.pod(0)), format!("{}/{len6}", self.pod6(0))],
            internal_ips: vec![v4.into(), v6.into()],
            annotations: all.map(|(key, value)| (format!("flannel.alpha.coreos.com/{key}"), value)).into(),
        }
    }

    /// Sends a forged packet to `node`, in an outer packet of the family of `forged`.
    ///
    /// # Errors
    /// When the kernel refuses to send it.
    pub fn send(&self, node: &Node, forged: &Forged) -> Result<()> {
        self.send_over(node, forged, forged.from.is_ipv6())
    }

    /// Sends a forged packet to `node`, in an outer packet of IPv6 or IPv4.
    ///
    /// # Errors
    /// When the kernel refuses to send it.
    pub fn send_over(&self, node: &Node, forged: &Forged, v6: bool) -> Result<()> {
        let datagram = forged.datagram(node)?;
        if v6 {
            self.v6.send_to(&datagram, (node.address6(), PORT)).context("send over IPv6")?;
        } else {
            self.v4.send_to(&datagram, (node.address(), PORT)).context("send over IPv4")?;
        }
        Ok(())
    }

    /// Sends a forged packet to `node` over IPv6 in two fragments, of which the first has `first` bytes (a multiple of
    /// eight) from the outer UDP header on. No socket of its own makes fragments so small.
    ///
    /// # Errors
    /// When the kernel refuses to send one.
    pub fn send_fragments(&self, node: &Node, forged: &Forged, first: usize) -> Result<()> {
        const FRAGMENT: i32 = 44;
        const UDP: u8 = 17;
        const IPV6_HEADER: usize = 40;
        let outer = PacketBuilder::ipv6(self.address6().octets(), node.address6().octets(), 64);
        let mut packet = Vec::new();
        outer.udp(40_000, PORT).write(&mut packet, &forged.datagram(node)?)?;
        let (first, rest) = packet[IPV6_HEADER..].split_at(first);
        let socket =
            self.ns.run(|| Ok(Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(FRAGMENT)))?))?;
        let id = fastrand::u32(..).to_be_bytes();
        // In the header the offset stands in bytes, because its lowest three bits are others: the last is "more".
        for (part, offset) in [(first, 1), (rest, u16::try_from(first.len())?)] {
            let mut bytes = vec![UDP, 0];
            bytes.extend(offset.to_be_bytes());
            bytes.extend(id);
            bytes.extend(part);
            let to = SocketAddr::new(node.address6().into(), 0);
            socket.send_to(&bytes, &to.into()).context("send a fragment")?;
        }
        Ok(())
    }
}
