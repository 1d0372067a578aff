//! What a cluster is made of, and where its files are.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// What `up` was asked for.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// How many nodes; the first also carries the API server
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// Pods and Services have an IPv4 and an IPv6 address each
    #[arg(long)]
    pub(crate) dual: bool,
    /// How kube-proxy makes Services
    #[arg(long, value_enum, default_value = "nftables")]
    pub(crate) proxy: Proxy,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value = "udp")]
    pub(crate) backend: Backend,
    /// Run flanneld as the shipped DaemonSet, in an image made of this build, instead of as a process of each node
    #[arg(long)]
    pub(crate) daemonset: bool,
}

/// kube-proxy's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Proxy {
    /// kube-proxy writes nftables rules.
    Nftables,
    /// kube-proxy runs iptables.
    Iptables,
}

/// Backends of `net-conf.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backend {
    /// The daemon carries packets in UDP.
    Udp,
    /// The kernel carries packets in VXLAN.
    Vxlan,
    /// Plain routes.
    HostGw,
}

/// All pods of a cluster.
pub(crate) const POD_NETWORK: &str = "10.244.0.0/16";
/// All pods' IPv6 addresses.
pub(crate) const POD_NETWORK_6: &str = "fd00:10:244::/56";
/// Where DNS answers: an address of [`Spec::service_cidrs`].
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// A host that knows the nodes and has never heard of pods.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

impl Spec {
    /// The nodes' numbers.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.nodes
    }

    /// The nodes' names.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> + use<> {
        self.numbers().map(name)
    }

    pub(crate) fn pod_cidrs(&self) -> String {
        self.families(POD_NETWORK, POD_NETWORK_6)
    }

    pub(crate) fn service_cidrs(&self) -> String {
        self.families("10.96.0.0/16", "fd00:10:96::/112")
    }

    /// The addresses a kubelet reports for its node.
    pub(crate) fn node_ips(&self, number: u8) -> String {
        self.families(&address(number).to_string(), &address6(number).to_string())
    }

    /// The flannel configuration of this cluster.
    pub(crate) fn net_conf(&self) -> serde_json::Value {
        let mut conf = serde_json::json!({
            "Network": POD_NETWORK,
            "EnableNFTables": true,
            "Backend": { "Type": self.backend.to_string() },
        });
        if self.dual {
            conf["EnableIPv6"] = true.into();
            conf["IPv6Network"] = POD_NETWORK_6.into();
        }
        conf
    }

    fn families(&self, v4: &str, v6: &str) -> String {
        if self.dual { format!("{v4},{v6}") } else { v4.to_owned() }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, backend, proxy, .. } = self;
        let families = if self.dual { "dual-stack" } else { "IPv4" };
        let flannel = if self.daemonset { "DaemonSet" } else { "process" };
        write!(f, "{nodes} nodes, {families}, backend {backend}, kube-proxy {proxy}, flanneld as {flannel}")
    }
}

/// The name of the node with that number.
pub(crate) fn name(number: u8) -> String {
    format!("n{number}")
}

/// A node's address on the wire.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, number)
}

/// A node's IPv6 address on the wire.
pub(crate) fn address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(number))
}

/// The folder of the one cluster that a machine can have. It must be on a real file system: containers' layers cannot
/// lie on an overlay.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    /// `LODEN_CLUSTER_DIR`, or a folder in /var/tmp.
    pub(crate) fn find() -> Self {
        let dir = std::env::var_os("LODEN_CLUSTER_DIR").unwrap_or_else(|| "/var/tmp/loden-cluster".into());
        Self { dir: dir.into() }
    }

    pub(crate) fn spec(&self) -> Result<Spec> {
        let path = self.dir.join("spec.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no cluster is up: {} is missing", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Held while a cluster is started.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.with_extension("lock")
    }

    /// Programs that run inside nodes and must not change under them when something is built.
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// Exists once the supervisor has started everything.
    pub(crate) fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    pub(crate) fn node(&self, name: &str) -> NodeDirs {
        let dir = self.dir.join("nodes").join(name);
        NodeDirs {
            etc: dir.join("etc"),
            etc_work: dir.join("etc.work"),
            var: dir.join("var"),
            opt: dir.join("opt"),
        }
    }
}

/// What a node has for itself of the machine's file system.
pub(crate) struct NodeDirs {
    /// What differs in /etc.
    pub(crate) etc: PathBuf,
    /// The overlay's own.
    pub(crate) etc_work: PathBuf,
    /// All of /var.
    pub(crate) var: PathBuf,
    /// All of /opt.
    pub(crate) opt: PathBuf,
}

impl NodeDirs {
    pub(crate) fn create(&self) -> Result<()> {
        let log = self.var.join("log");
        let kubernetes = self.etc.join("kubernetes");
        let flannel = self.etc.join("kube-flannel");
        let programs = self.opt.join("loden");
        let tmp = self.var.join("tmp");
        let nets = self.etc.join("cni/net.d");
        for dir in [&self.etc_work, &log, &kubernetes, &flannel, &programs, &tmp, &nets] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(())
    }
}

/// Writes a file and names it when that fails, as it does on a full disk.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
