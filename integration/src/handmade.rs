//! A node that is nothing but a UDP socket: it speaks the wire format by hand, truthfully or not.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Context, Result};
use serde_json::json;

use crate::netns::Netns;
use crate::nodes_file::NodeManifest;
use crate::probe::udp::PATIENCE;
use crate::topology::{Cluster, Node};

/// flannel's UDP port, at both ends of every datagram.
pub const PORT: u16 = 8285;

/// A host on the underlay with a socket on flannel's port. Whether it is a node is up to the nodes file.
pub struct Handmade {
    /// Its address on the underlay.
    pub address: Ipv4Addr,
    number: u8,
    socket: UdpSocket,
    _ns: Netns,
}

impl Handmade {
    /// Plugs in the host 192.168.77.`number`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(cluster: &mut Cluster, number: u8) -> Result<Self> {
        let address = Ipv4Addr::new(192, 168, 77, number);
        let ns = cluster.plug(&format!("handmade{number}"), address)?;
        let socket = ns.run(|| {
            let socket = UdpSocket::bind((address, PORT))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        Ok(Self { address, number, socket, _ns: ns })
    }

    /// Address `last` of the pod network it claims, 10.244.`number`.0/24.
    pub fn pod(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, last)
    }

    /// Address `last` of its IPv6 pod network, fd00:10:244:`number`::/64.
    pub fn pod6(&self, last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, last)
    }

    /// The name of its Node.
    pub fn name(&self) -> String {
        format!("handmade{}", self.number)
    }

    /// The Node that makes it one.
    pub fn manifest(&self) -> NodeManifest {
        NodeManifest {
            name: self.name(),
            pod_cidrs: vec![format!("{}/24", self.pod(0))],
            internal_ips: vec![self.address.into()],
            annotations: Vec::new(),
        }
    }

    /// The Node that makes it one for pods of both families.
    pub fn dual_manifest(&self) -> NodeManifest {
        let mut manifest = self.manifest();
        manifest.pod_cidrs.push(format!("{}/64", self.pod6(0)));
        let caps = json!({"MTU": u16::MAX, "capabilities": ["ipv6"]}).to_string();
        manifest.annotations.push(("flannel.alpha.coreos.com/loden".into(), caps));
        manifest
    }

    /// Sends the payload of one tunnel datagram.
    ///
    /// # Errors
    /// When the kernel refuses to send it.
    pub fn send(&self, to: &Node, payload: &[u8]) -> Result<()> {
        self.socket.send_to(payload, (to.address(), PORT)).context("send a tunnel datagram")?;
        Ok(())
    }

    /// Takes what has arrived already, and says how many datagrams that was.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn pending(&self) -> Result<usize> {
        self.socket.set_nonblocking(true)?;
        let mut count = 0;
        while self.socket.recv(&mut [0; 1]).is_ok() {
            count += 1;
        }
        self.socket.set_nonblocking(false)?;
        Ok(count)
    }

    /// The payload of the next tunnel datagram, and the address it came from.
    ///
    /// # Errors
    /// When none comes.
    pub fn receive(&self) -> Result<(Vec<u8>, Ipv4Addr, u16)> {
        let mut buffer = vec![0; 1 << 16];
        let (length, from) = self.socket.recv_from(&mut buffer).context("no tunnel datagram came")?;
        buffer.truncate(length);
        match from.ip() {
            std::net::IpAddr::V4(ip) => Ok((buffer, ip, from.port())),
            std::net::IpAddr::V6(ip) => anyhow::bail!("a datagram from {ip} on an IPv4 socket"),
        }
    }
}
