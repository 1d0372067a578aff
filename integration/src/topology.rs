//! Nodes, pods and the wire between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::daemon::Launch;
use crate::lab;
use crate::netns::Netns;
pub use crate::node::{Node, Pod};
use crate::nodes_file::{FileFeed, LeaseFeed, NodeManifest};

/// The switch's own address, and every node's default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);

/// The switch's own IPv6 address, and the default gateway of nodes without IPv4.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0xfe);

/// How the underlay treats packets larger than its MTU that the kernel has not cut up yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// veth's default: large segments pass whole, as between guests of one host.
    PassThrough,
    /// Segments are cut before the wire and merged after it, as with a network card that offloads nothing. What a
    /// capture sees is what a cable would carry.
    Segmented,
}

/// Address families of pods, and of the underlay that carries them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 pods. The underlay has IPv6 addresses too, which no Node names.
    V4,
    /// Pods with an address of each, on nodes with an address of each.
    Dual,
    /// IPv6 only: pods and nodes have no IPv4 address.
    V6,
}

impl Families {
    /// Whether there is IPv4.
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    /// Whether pods have IPv6.
    pub fn v6(self) -> bool {
        self != Self::V4
    }
}

/// What a cluster is made of; see [`Cluster::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: u8,
    pods_per_node: u8,
    mtu: u32,
    wire: Wire,
    backend: String,
    nftables: bool,
    families: Families,
    network: String,
    launch: fn(Launch) -> Launch,
}

impl Builder {
    /// Address families of pods and nodes.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// The IPv4 pod network that daemons are told of, in place of [`NETWORK`], which it has to cover.
    #[must_use]
    pub fn network(mut self, network: &str) -> Self {
        network.clone_into(&mut self.network);
        self
    }

    /// How many nodes, at most 250.
    #[must_use]
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// How many pods each node carries, at most 20.
    #[must_use]
    pub fn pods_per_node(mut self, count: u8) -> Self {
        self.pods_per_node = count;
        self
    }

    /// MTU of the underlay, bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// How the underlay treats large segments.
    #[must_use]
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// The `Backend` object of net-conf.json, as JSON.
    #[must_use]
    pub fn backend(mut self, json: &str) -> Self {
        json.clone_into(&mut self.backend);
        self
    }

    /// Sets `EnableNFTables`: rules in nftables instead of iptables.
    #[must_use]
    pub fn nftables(mut self) -> Self {
        self.nftables = true;
        self
    }

    /// Changes every daemon's command line.
    #[must_use]
    pub fn launch(mut self, change: fn(Launch) -> Launch) -> Self {
        self.launch = change;
        self
    }

    /// Builds the nodes and the wire, without pods and with no daemon running.
    ///
    /// # Errors
    /// When the lab was not entered, or the kernel refuses a part.
    pub fn build(self) -> Result<Cluster> {
        let dir = lab::fresh_dir("cluster")?;
        self.write_net_conf(&dir)?;
        let switch = Netns::new("switch")?;
        switch.ip(&format!(
            "link add br0 mtu {mtu} type bridge\naddr add {GATEWAY}/24 dev br0\n\
             addr add {GATEWAY6}/64 dev br0 nodad\nlink set br0 up",
            mtu = self.mtu
        ))?;
        let feed = Box::new(FileFeed::new(dir.join("nodes.yaml")));
        let count = self.nodes;
        let mut cluster = Cluster { spec: self, dir, switch, feed, nodes: Vec::new(), ports: 0 };
        for _ in 0..count {
            cluster.add_node()?;
        }
        cluster.publish()?;
        Ok(cluster)
    }

    fn write_net_conf(&self, dir: &Path) -> Result<()> {
        let (backend, nftables, network) = (&self.backend, self.nftables, &self.network);
        let v6 = format!("\"EnableIPv6\": true, \"IPv6Network\": \"{NETWORK6}\"");
        let networks = match self.families {
            Families::V4 => format!("\"Network\": \"{network}\""),
            Families::Dual => format!("\"Network\": \"{network}\", {v6}"),
            Families::V6 => format!("\"EnableIPv4\": false, {v6}"),
        };
        let text = format!("{{{networks}, \"EnableNFTables\": {nftables}, \"Backend\": {backend}}}\n");
        std::fs::write(dir.join("net-conf.json"), text).context("write net-conf.json")
    }

    /// Builds everything, starts a daemon in each node, waits until all are ready, then attaches the pods with the
    /// MTU that subnet.env asks for, as a CNI plugin would.
    ///
    /// # Errors
    /// As [`Builder::build`], and when a daemon does not become ready.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.build()?;
        cluster.start_daemons()?;
        cluster.attach_pods()?;
        Ok(cluster)
    }
}

/// The cluster network of every lab cluster.
pub const NETWORK: &str = "10.244.0.0/16";

/// The cluster network of IPv6 pods.
pub const NETWORK6: &str = "fd00:10:244::/48";

/// A switch with nodes on it.
pub struct Cluster {
    spec: Builder,
    dir: PathBuf,
    switch: Netns,
    feed: Box<dyn LeaseFeed>,
    nodes: Vec<Node>,
    ports: u32,
}

impl Cluster {
    /// Three nodes with two pods each on an underlay of MTU 1500, UDP backend, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            pods_per_node: 2,
            mtu: 1500,
            wire: Wire::PassThrough,
            backend: "{\"Type\": \"udp\"}".to_owned(),
            nftables: false,
            families: Families::V4,
            network: NETWORK.to_owned(),
            launch: |launch| launch,
        }
    }

    /// All nodes, in the order they joined.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// The node of that name, to start and stop its daemon.
    ///
    /// # Errors
    /// When there is none.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> + Clone {
        self.nodes.iter().flat_map(|node| &node.pods)
    }

    /// The pod of that name, such as `n1.a`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods().find(|pod| pod.name() == name).with_context(|| format!("no pod {name}"))
    }

    /// Address families of pods and nodes.
    pub fn families(&self) -> Families {
        self.spec.families
    }

    /// The switch's own address, of the family that nodes are sure to have.
    pub fn gateway(&self) -> IpAddr {
        if self.spec.families.v4() { GATEWAY.into() } else { GATEWAY6.into() }
    }

    /// The namespace of the underlay's bridge.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// Has daemons that start from now on keep their rules in nftables, or in iptables.
    ///
    /// # Errors
    /// When net-conf.json cannot be written.
    pub fn set_nftables(&mut self, nftables: bool) -> Result<()> {
        self.spec.nftables = nftables;
        self.spec.write_net_conf(&self.dir)
    }

    /// The directory that holds net-conf.json, the nodes file and each node's run files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file feed's own file.
    pub fn nodes_file(&self) -> FileFeed {
        FileFeed::new(self.dir.join("nodes.yaml"))
    }

    /// Replaces the source of leases, for daemons started from now on.
    pub fn use_feed(&mut self, feed: Box<dyn LeaseFeed>) {
        self.feed = feed;
    }

    /// What the feed says when it tells the truth.
    pub fn manifests(&self) -> Vec<NodeManifest> {
        self.nodes.iter().map(Node::manifest).collect()
    }

    /// Tells the feed who the nodes are.
    ///
    /// # Errors
    /// When the feed cannot be changed.
    pub fn publish(&mut self) -> Result<()> {
        let manifests = self.manifests();
        self.feed.publish(&manifests)
    }

    /// Tells the feed something else: that a node has left, changed or claims what is not its own.
    ///
    /// # Errors
    /// When the feed cannot be changed.
    pub fn publish_only(&mut self, manifests: &[NodeManifest]) -> Result<()> {
        self.feed.publish(manifests)
    }

    /// Plugs a new host into the switch: a namespace with `eth0`, and nothing else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plug(&mut self, name: &str, address: Ipv4Addr) -> Result<Netns> {
        let ns = Netns::new(name)?;
        self.wire(&ns, address)?;
        Ok(ns)
    }

    /// Gives a node that has lost its `eth0` another one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replug(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let (ns, address) = (node.ns.clone(), node.address());
        self.wire(&ns, address)
    }

    fn wire(&mut self, ns: &Netns, address: Ipv4Addr) -> Result<()> {
        self.ports += 1;
        let (port, mtu) = (format!("port{}", self.ports), self.spec.mtu);
        let last = address.octets()[3];
        self.switch.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name eth0 netns {path}\nlink set {port} master br0 up",
            path = ns.path()
        ))?;
        ns.ip(&format!("link set eth0 mtu {mtu} up\naddr add fd00:77::{last:x}/64 dev eth0 nodad"))?;
        if self.spec.families.v4() {
            ns.ip(&format!("addr add {address}/24 dev eth0\nroute add default via {GATEWAY}"))?;
        } else {
            ns.ip(&format!("route add default via {GATEWAY6}"))?;
        }
        if self.spec.wire == Wire::Segmented {
            for (side, device) in [(ns, "eth0"), (&self.switch, port.as_str())] {
                side.command("ethtool")
                    .args([
                        "-K",
                        device,
                        "gso",
                        "off",
                        "tso",
                        "off",
                        "gro",
                        "on",
                        "tx-udp-segmentation",
                        "off",
                    ])
                    .run()?;
            }
        }
        Ok(())
    }

    /// Adds the next node to the wire. No daemon runs in it, it has no pods, and the feed does not know it yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_node(&mut self) -> Result<&mut Node> {
        let number = self.nodes.last().map_or(1, |last| last.number + 1);
        ensure!(number < 251, "the underlay has room for 250 nodes");
        let name = format!("n{number}");
        let address = Ipv4Addr::new(192, 168, 77, number);
        let ns = self.plug(&name, address)?;
        let dir = self.dir.join(&name);
        std::fs::create_dir(&dir)?;
        let backend = serde_json::from_str(&self.spec.backend).context("the Backend object")?;
        let families = self.spec.families;
        let node = Node { name, number, families, backend, ns, dir, pods: Vec::new(), daemon: None };
        node.boot()?;
        self.nodes.push(node);
        self.nodes.last_mut().context("the node just added")
    }

    /// Takes a node off the wire with everything in it. The feed is not told.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let at = self
            .nodes
            .iter()
            .position(|node| node.name == name)
            .with_context(|| format!("no node {name}"))?;
        drop(self.nodes.remove(at));
        Ok(())
    }

    /// The daemon's command line for a node, as the lab runs it.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn launch(&self, name: &str) -> Result<Launch> {
        let node = self.node(name)?;
        let mut launch = Launch::new(node.ns.clone(), &node.dir);
        for (flag, value) in self.feed.daemon_args(name)? {
            launch = match value {
                Some(value) => launch.set(flag, value),
                None => launch.flag(flag),
            };
        }
        let launch = launch
            .set("--net-config-path", self.dir.join("net-conf.json"))
            .set("--subnet-file", node.subnet_file())
            .set("--iface", "eth0")
            .flag("--ip-masq")
            .set("--healthz-ip", "127.0.0.1")
            .set("--healthz-port", "8081")
            .env("NODE_NAME", &node.name);
        Ok((self.spec.launch)(launch))
    }

    /// Starts the daemon of one node and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_daemon(&mut self, name: &str) -> Result<()> {
        let daemon = self.launch(name)?.spawn()?;
        self.node_mut(name)?.daemon = Some(daemon);
        Ok(())
    }

    /// Starts every daemon at once, waits until all are ready, and says how long each took from its exec.
    ///
    /// # Errors
    /// When one cannot be started or does not become ready.
    pub fn start_daemons(&mut self) -> Result<Vec<Duration>> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            self.start_daemon(name)?;
        }
        self.nodes.iter_mut().map(|node| node.daemon_mut()?.wait_ready()).collect()
    }

    /// Attaches pods to every node that has none, with the MTU of its subnet.env.
    ///
    /// # Errors
    /// When subnet.env is missing or the kernel refuses.
    pub fn attach_pods(&mut self) -> Result<()> {
        let count = self.spec.pods_per_node;
        for node in self.nodes.iter_mut().filter(|node| node.pods.is_empty()) {
            let mtu = node.subnet_env("FLANNEL_MTU")?.parse()?;
            node.attach_pods(count, mtu)?;
        }
        Ok(())
    }

    /// Attaches pods with links of `mtu` bytes to every node that has none, where no daemon says which MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_pods_with(&mut self, mtu: u32) -> Result<()> {
        let count = self.spec.pods_per_node;
        self.nodes
            .iter_mut()
            .filter(|node| node.pods.is_empty())
            .try_for_each(|node| node.attach_pods(count, mtu))
    }

    /// Pods and plain routes between the nodes instead of an overlay: the same path without us.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route_without_overlay(&mut self) -> Result<()> {
        let (count, mtu) = (self.spec.pods_per_node, self.spec.mtu);
        let peers: Vec<(u8, Ipv4Addr)> =
            self.nodes.iter().map(|node| (node.number, node.address())).collect();
        for node in &mut self.nodes {
            node.attach_pods(count, mtu)?;
            for (number, via) in peers.iter().filter(|(number, _)| *number != node.number) {
                node.ns.ip(&format!("route add 10.244.{number}.0/24 via {via}"))?;
            }
        }
        Ok(())
    }

    /// The end of every daemon's log, for a test that failed.
    pub fn logs(&self) -> String {
        const LINES: usize = 40;
        let mut out = String::new();
        for node in &self.nodes {
            let log = std::fs::read_to_string(node.dir.join("flanneld.log")).unwrap_or_default();
            let skipped = log.lines().count().saturating_sub(LINES);
            out.push_str(&format!("--- flanneld in {} ({skipped} lines above)\n", node.name));
            log.lines().skip(skipped).for_each(|line| out.push_str(&format!("{line}\n")));
        }
        out
    }
}
