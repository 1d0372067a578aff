//! One node and its pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::daemon::{self, Daemon};
use crate::netns::Netns;
use crate::nodes_file::NodeManifest;
use crate::probe::netexec::Netexec;
use crate::process::NsCommand;
use crate::topology::Families;
use crate::wait;

/// One node: a namespace with `eth0` on the switch, `cni0` for its pods, and maybe a daemon.
pub struct Node {
    pub(crate) name: String,
    /// Last octet of its address, and third octet of its pods'.
    pub(crate) number: u8,
    /// The `Backend` object of its net-conf.json.
    pub(crate) backend: Value,
    pub(crate) families: Families,
    pub(crate) ns: Netns,
    pub(crate) dir: PathBuf,
    pub(crate) pods: Vec<Pod>,
    pub(crate) daemon: Option<Daemon>,
}

impl Node {
    /// `n1`, `n2`, ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.number)
    }

    /// Its IPv6 address on the underlay.
    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(self.number))
    }

    /// Its address on the underlay of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.address().into() } else { self.address6().into() }
    }

    /// Address `last` of its pod network; 0 is flannel0's own.
    pub fn pod_address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.number, last)
    }

    /// Address `last` of its IPv6 pod network; 0 is flannel0's own.
    pub fn pod_address6(&self, last: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(self.number), 0, 0, 0, u16::from(last))
    }

    /// Its IPv6 pod network.
    pub fn pod_cidr6(&self) -> String {
        format!("{}/64", self.pod_address6(0))
    }

    /// Address `last` of its pod network of the family of `like`.
    pub fn pod_address_like(&self, like: IpAddr, last: u8) -> IpAddr {
        if like.is_ipv4() { self.pod_address(last).into() } else { self.pod_address6(last).into() }
    }

    /// Its pod network.
    pub fn pod_cidr(&self) -> String {
        format!("{}/24", self.pod_address(0))
    }

    /// Its pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Where its run files and log are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Node object of it.
    pub fn manifest(&self) -> NodeManifest {
        let mut manifest = NodeManifest {
            name: self.name.clone(),
            pod_cidrs: Vec::new(),
            internal_ips: Vec::new(),
            annotations: self.annotations(),
        };
        if self.families.v4() {
            manifest.pod_cidrs.push(self.pod_cidr());
            manifest.internal_ips.push(self.address().into());
        }
        if self.families.v6() {
            manifest.pod_cidrs.push(self.pod_cidr6());
            manifest.internal_ips.push(self.address6().into());
        }
        manifest
    }

    /// What its daemon would publish and peers go by: a file has no place where it could.
    fn annotations(&self) -> Vec<(String, String)> {
        let all = match self.backend["Type"].as_str() {
            Some("vxlan") => self.vxlan_annotations(),
            // Without it a peer of the UDP backend may be a flannel.
            Some("udp") => {
                let able = ["ecn", "flow-ports", "ipv6"];
                vec![("loden", json!({"MTU": u16::MAX, "capabilities": able}).to_string())]
            }
            _ => Vec::new(),
        };
        all.into_iter().map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), value)).collect()
    }

    fn vxlan_annotations(&self) -> Vec<(&'static str, String)> {
        let data = json!({"VNI": self.backend["VNI"].as_u64().unwrap_or(1), "VtepMAC": self.vtep_mac()});
        let mut all = vec![("backend-type", "vxlan".to_owned())];
        if self.families.v4() {
            all.push(("backend-data", data.to_string()));
            all.push(("public-ip", self.address().to_string()));
        }
        if self.families.v6() {
            all.push(("backend-v6-data", data.to_string()));
            all.push(("public-ipv6", self.address6().to_string()));
        }
        all
    }

    /// Address of its VXLAN devices, of which each family has one.
    pub fn vtep_mac(&self) -> String {
        format!("0e:10:24:4a:00:{:02x}", self.number)
    }

    /// The file its daemon writes for the CNI plugin, in a directory that the daemon makes.
    pub fn subnet_file(&self) -> PathBuf {
        self.dir.join("flannel/subnet.env")
    }

    /// The Nodes that its daemon remembers.
    pub fn cache_file(&self) -> PathBuf {
        self.dir.join("flannel/leases.cache")
    }

    /// One value of subnet.env.
    ///
    /// # Errors
    /// When the file or the key is missing.
    pub fn subnet_env(&self, key: &str) -> Result<String> {
        let path = self.subnet_file();
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
            .with_context(|| format!("no {key} in subnet.env:\n{text}"))
    }

    /// Its daemon.
    ///
    /// # Errors
    /// When none runs.
    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().with_context(|| format!("no daemon runs in {}", self.name))
    }

    /// Its daemon.
    ///
    /// # Errors
    /// When none runs.
    pub fn daemon_mut(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().with_context(|| format!("no daemon runs in {}", self.name))
    }

    /// A `flanneld` subcommand aimed at this node's run files, as an operator on the node would type it.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn flanneld(&self, subcommand: &[&str]) -> Result<NsCommand> {
        let command = self.ns.command(daemon::binary()?).args(subcommand);
        Ok(command.arg("--subnet-file").arg(self.subnet_file()))
    }

    /// What `flanneld routes -o json` says on this node.
    ///
    /// # Errors
    /// When no daemon answers.
    pub fn routes(&self) -> Result<Vec<Value>> {
        let printed = self.flanneld(&["routes", "-o", "json"])?.run()?;
        let view: Value = serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))?;
        view["routes"].as_array().cloned().with_context(|| format!("no routes in {view}"))
    }

    /// The row of `flanneld routes` for the node called `peer`, if it has one.
    ///
    /// # Errors
    /// When no daemon answers.
    pub fn route(&self, peer: &str) -> Result<Option<Value>> {
        Ok(self.routes()?.into_iter().find(|row| row["node"] == peer))
    }

    /// Waits until this node's daemon sends to `peer`.
    ///
    /// # Errors
    /// When it does not within the deadline.
    pub fn wait_lease(&self, peer: &str) -> Result<Duration> {
        wait::until_true(&format!("{} knows {peer}", self.name), || {
            Ok(self.route(peer)?.is_some_and(|row| row["state"] == "active"))
        })
    }

    /// Makes a daemon that was started by hand this node's own, in place of any other.
    pub fn adopt(&mut self, daemon: Daemon) -> &mut Daemon {
        self.daemon.insert(daemon)
    }

    /// Stops its daemon with a signal; says how it ended and how long that took.
    ///
    /// # Errors
    /// When none runs, or it does not end.
    pub fn stop_daemon(&mut self, signal: Signal) -> Result<(std::process::ExitStatus, Duration)> {
        match self.daemon.take() {
            Some(daemon) => daemon.stop(signal),
            None => bail!("no daemon runs in {}", self.name),
        }
    }

    /// Has its namespace forward, and adds `cni0` with the first address of each pod network, as a CNI plugin does for
    /// the first pod.
    pub(crate) fn boot(&self) -> Result<()> {
        self.ns.sysctl("net/ipv4/ip_forward", "1")?;
        self.ns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.ns.ip("link add cni0 type bridge\nlink set cni0 up")?;
        if self.families.v4() {
            self.ns.ip(&format!("addr add {}/24 dev cni0", self.pod_address(1)))?;
        }
        if self.families.v6() {
            self.ns.ip(&format!("addr add {}/64 dev cni0 nodad", self.pod_address6(1)))?;
        }
        Ok(())
    }

    /// Removes its pods; [`crate::topology::Cluster::attach_pods`] makes others in their place.
    ///
    /// # Errors
    /// When one is still there after the deadline.
    pub fn restart_pods(&mut self) -> Result<()> {
        self.pods.clear();
        // The kernel takes their links away in its own time, and the names are needed again.
        let gone = || Ok(self.ns.ip_show("link show master cni0")?.is_empty());
        wait::until_true("the pods' links are gone", gone).map(drop)
    }

    /// Attaches pods to `cni0`, with links of `mtu` bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_pods(&mut self, count: u8, mtu: u32) -> Result<()> {
        for index in 0..count {
            let letter = char::from(b'a' + index);
            let name = format!("{}.{letter}", self.name);
            let ns = Netns::new(name.clone())?;
            let ip = self.pod_address(10 + index);
            let ip6 = self.families.v6().then(|| self.pod_address6(10 + index));
            self.ns.ip(&format!(
                "link add veth{letter} mtu {mtu} type veth peer name eth0 netns {path}\n\
                 link set veth{letter} master cni0 up\n\
                 link set veth{letter} type bridge_slave hairpin on",
                path = ns.path()
            ))?;
            ns.ip(&format!("link set eth0 mtu {mtu} up"))?;
            let mut servers = Vec::new();
            if self.families.v4() {
                let gateway = self.pod_address(1);
                ns.ip(&format!("addr add {ip}/24 dev eth0\nroute add default via {gateway}"))?;
                servers.push(Netexec::start(&ns, &name)?);
            }
            if let Some(ip6) = ip6 {
                let gateway = self.pod_address6(1);
                ns.ip(&format!("addr add {ip6}/64 dev eth0 nodad\nroute add default via {gateway}"))?;
                servers.push(Netexec::start_at(&ns, &name, ip6.into())?);
            }
            let (node, ip) = (self.name.clone(), self.families.v4().then_some(ip));
            self.pods.push(Pod { name, node, ns, ip, ip6, mtu, _servers: servers });
        }
        Ok(())
    }

    /// Attributes of one of its links as `ip -details link show` prints them; none when there is no such link.
    ///
    /// # Errors
    /// When `ip` cannot be run.
    pub fn link(&self, device: &str) -> Result<Option<String>> {
        let shown =
            self.ns.command("ip").args(["-oneline", "-details", "link", "show", "dev", device]).output()?;
        Ok(shown.status.success().then(|| String::from_utf8_lossy(&shown.stdout).into_owned()))
    }

    /// Whether anything under our names or flannel's is in nftables, iptables over nf_tables included.
    ///
    /// # Errors
    /// When `nft` cannot be run.
    pub fn has_firewall(&self) -> Result<bool> {
        let ruleset = self.ns.command("nft").args(["list", "ruleset"]).run()?;
        Ok(["FLANNEL-", "flannel-ipv", "inet loden"].iter().any(|name| ruleset.contains(name)))
    }

    /// What an `iptables-save` such as `iptables-nft-save` prints of both tables that flannel uses, without the
    /// comments and counters that differ each time.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn iptables_save(&self, program: &str) -> Result<String> {
        let save = |table| self.ns.command(program).args(["-t", table]).run();
        let text = format!("{}{}", save("filter")?, save("nat")?);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ok(lines
            .map(|line| {
                format!(
                    "{}
",
                    line.split(" [").next().unwrap_or(line)
                )
            })
            .collect())
    }
}

/// One pod: a namespace behind `cni0`, with a [`Netexec`] server in it.
pub struct Pod {
    name: String,
    node: String,
    ns: Netns,
    ip: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    mtu: u32,
    _servers: Vec<Netexec>,
}

impl Pod {
    /// `n1.a`, `n1.b`, ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Its IPv4 address; unspecified, and so nobody's, in a cluster that has none.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Its IPv6 address, in a cluster that has them.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        self.ip6
    }

    /// All its addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6))
    }

    /// The MTU of its link, bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }
}
