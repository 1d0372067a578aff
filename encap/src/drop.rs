//! Why a packet was not forwarded: one variant per reason, and one metric label per variant.

use core::fmt;

/// The one reason for which a packet was dropped (or, where the source check only counts, flagged).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not an IP packet: wrong version, impossible header or total length. Look at who else sends to the tunnel port.
    BadPacket,
    /// No node has a lease for the destination. Look for a node that left, or one whose lease was refused.
    NoRoute,
    /// To a group or a broadcast address, and the tunnel carries unicast only, as flannel's does. Nothing to look at:
    /// the kernel itself announces every new device to groups.
    NotUnicast,
    /// The destination is in our own podCIDR but came to the tunnel: sending it would loop. Look at the local route
    /// to the pod bridge, which is missing or was taken away.
    OwnPrefix,
    /// Longer than the path to that node carries and must not be fragmented. The sender got an ICMP error; look at
    /// pods whose MTU is above the tunnel's, or at firewalls that eat ICMP.
    TooBig,
    /// IPv6 toward a node that did not say it can take IPv6 from this backend. Look at that node's version.
    FamilyUnsupported,
    /// The datagram came from an address that no node has, or from a node but not from the tunnel's port. Look at NAT
    /// between nodes, at a node with several addresses, or for an intruder (a pod that writes to the port, for one).
    UnknownSender,
    /// The inner source belongs to another node, to us, or to no node, though it lies in the cluster network.
    /// Look at the sending node's masquerading, or for an intruder.
    SpoofedSource,
    /// The VXLAN network identifier is not ours. Look at `Backend.VNI`, which is the same on all nodes.
    WrongVni,
    /// The frame in VXLAN is for another device than ours, as a sender's old knowledge of us makes it. Look at the
    /// `backend-data` annotation of this node, and whether the sending node has read it.
    WrongMac,
    /// The frame in VXLAN carries something other than IP, such as ARP, which nobody here has to answer: all nodes know
    /// all devices. Look at who bridges into the tunnel.
    NotIp,
    /// The packet says it is longer than what arrived. Look at MTUs that differ between nodes.
    Truncated,
    /// The network marked the datagram as having met congestion, and the sender of the inner packet does not listen to
    /// marks, only to losses (RFC 6040). Look at the load of the network between the nodes.
    Congestion,
    /// The device or socket could not take more. Look at the load, and at the sizes of socket buffers and queues.
    QueueFull,
    /// The kernel refused to send the datagram. Look at the route to the node's address and at the host's firewall.
    SendFailed,
    /// The tunnel device refused the packet. Look at whether the device is up.
    DeviceFailed,
}

impl DropReason {
    /// Every reason, in the order of [`index`](Self::index).
    pub const ALL: [Self; 16] = [
        Self::BadPacket,
        Self::NoRoute,
        Self::NotUnicast,
        Self::OwnPrefix,
        Self::TooBig,
        Self::FamilyUnsupported,
        Self::UnknownSender,
        Self::SpoofedSource,
        Self::WrongVni,
        Self::WrongMac,
        Self::NotIp,
        Self::Truncated,
        Self::Congestion,
        Self::QueueFull,
        Self::SendFailed,
        Self::DeviceFailed,
    ];

    /// Number of reasons: the length of an array of counters.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`ALL`](Self::ALL) and in an array of counters; below [`COUNT`](Self::COUNT).
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadPacket => "bad_packet",
            Self::NoRoute => "no_route",
            Self::NotUnicast => "not_unicast",
            Self::OwnPrefix => "own_prefix",
            Self::TooBig => "too_big",
            Self::FamilyUnsupported => "family_unsupported",
            Self::UnknownSender => "unknown_sender",
            Self::SpoofedSource => "spoofed_source",
            Self::WrongVni => "wrong_vni",
            Self::WrongMac => "wrong_mac",
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
            Self::Congestion => "congestion",
            Self::QueueFull => "queue_full",
            Self::SendFailed => "send_failed",
            Self::DeviceFailed => "device_failed",
        }
    }

    /// One line for people: what to look at when this counter grows.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::BadPacket => "not an IP packet; find out who else sends to the tunnel's port",
            Self::NoRoute => {
                "no node has a lease for the destination; check that its node is listed and accepted"
            }
            Self::NotUnicast => "multicast or broadcast, which the tunnel does not carry; harmless",
            Self::OwnPrefix => {
                "a pod address of this node came to the tunnel; check the route to the pod bridge"
            }
            Self::TooBig => "longer than the tunnel's MTU; lower the pods' MTU to the one in subnet.env",
            Self::FamilyUnsupported => "IPv6 toward a node that takes only IPv4; upgrade that node",
            Self::UnknownSender => {
                "not from a node's address and tunnel port; check NAT between nodes, or set the public-ip"
            }
            Self::SpoofedSource => "inner source not of the sending node; check masquerading on that node",
            Self::WrongVni => "VXLAN with another network identifier; make Backend.VNI the same on all nodes",
            Self::WrongMac => {
                "VXLAN frame for another device; the sender has old backend-data of this node, check its watch"
            }
            Self::NotIp => {
                "VXLAN frame without an IP packet, such as ARP; find out who bridges into the tunnel"
            }
            Self::Truncated => "shorter than its header says; make the MTU the same on all nodes",
            Self::Congestion => {
                "marked by a congested network for a sender that knows only losses; look at the load between the nodes"
            }
            Self::QueueFull => {
                "a queue was full; reduce the load or raise the socket buffers and queue length"
            }
            Self::SendFailed => {
                "the kernel refused to send; check the route to the node and the host's firewall"
            }
            Self::DeviceFailed => "the tunnel device refused the packet; check that it is up",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
