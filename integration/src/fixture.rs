//! The setups that several test files begin with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::apiserver::{ApiServer, NodeSpec, Options};
use crate::handmade::Handmade;
use crate::kube_feed::{KubeFeed, annotated, key};
use crate::nodes_file::NodeManifest;
use crate::probe::loss::LossCounter;
use crate::probe::udp::Asker;
use crate::suite::Setup;
use crate::topology::{Builder, Cluster, Node};
use crate::wait;

/// Two nodes with a pod each, known from a file.
pub struct Two(pub Cluster);

impl Setup for Two {
    fn build() -> Result<Self> {
        Ok(Self(Cluster::builder().nodes(2).pods_per_node(1).start()?))
    }

    fn explain(&self) -> String {
        self.0.logs()
    }
}

/// Two nodes with a pod each that know each other from an API server, and two hand-made hosts that are no Nodes yet.
pub struct Kube {
    /// The nodes.
    pub cluster: Cluster,
    /// Where they are known.
    pub server: Arc<ApiServer>,
    /// 192.168.77.50.
    pub first: Handmade,
    /// 192.168.77.51.
    pub second: Handmade,
}

impl Setup for Kube {
    fn build() -> Result<Self> {
        Self::on(Options::default())
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl Kube {
    /// Builds it on a server of another kind.
    ///
    /// # Errors
    /// As [`Setup::build`].
    pub fn on(options: Options) -> Result<Self> {
        Self::with(options, |builder| builder, |_, _| Ok(()))
    }

    /// Builds it with other nodes, and does something before the daemons start.
    ///
    /// # Errors
    /// As [`Setup::build`], and those of `before`.
    pub fn with(
        options: Options,
        shape: impl FnOnce(Builder) -> Builder,
        before: impl FnOnce(&Cluster, &ApiServer) -> Result<()>,
    ) -> Result<Self> {
        let mut cluster = shape(Cluster::builder().nodes(2).pods_per_node(1)).build()?;
        let server = KubeFeed::install(&mut cluster, options)?;
        before(&cluster, &server)?;
        cluster.start_daemons()?;
        cluster.attach_pods()?;
        cluster.node("n1")?.wait_lease("n2")?;
        cluster.node("n2")?.wait_lease("n1")?;
        let first = Handmade::plug(&mut cluster, 50)?;
        let second = Handmade::plug(&mut cluster, 51)?;
        Ok(Self { cluster, server, first, second })
    }

    /// The first node, which most checks look at.
    ///
    /// # Errors
    /// When it was removed.
    pub fn n1(&self) -> Result<&Node> {
        self.cluster.node("n1")
    }

    /// Creates the Node `fake<number>` with 10.244.`number`.0/24 at 192.168.99.`number`, where nobody is.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn create(&self, number: u8) -> Result<String> {
        let node = annotated(NodeManifest {
            name: format!("fake{number}"),
            pod_cidrs: vec![format!("10.244.{number}.0/24")],
            internal_ips: vec![[192, 168, 99, number].into()],
            annotations: Vec::new(),
        });
        let name = node.name.clone();
        self.server.create_node(&NodeSpec::from(node))?;
        Ok(name)
    }

    /// Sets an annotation of flannel's on a Node, or removes it.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn set(&self, node: &str, name: &str, value: Option<&str>) -> Result<()> {
        self.server.annotate_node(node, &key(name), value).map(drop)
    }

    /// Cuts n1 off the API server: what it sends there is answered with a reset.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut_off(&self) -> Result<()> {
        self.n1()?.ns().nft(
            "table ip lab_cut { chain out { type filter hook output priority 0;\n\
             tcp dport 6443 reject with tcp reset\n}\n}",
        )
    }

    /// Ends [`Kube::cut_off`].
    ///
    /// # Errors
    /// When it was not.
    pub fn mend(&self) -> Result<()> {
        self.n1()?.ns().nft("delete table ip lab_cut")
    }

    /// Waits until n1's daemon has forgotten `peer`.
    ///
    /// # Errors
    /// When it does not within the deadline.
    pub fn wait_gone(&self, peer: &str) -> Result<Duration> {
        let node = self.n1()?;
        wait::until_true(&format!("{peer} is gone"), || Ok(node.route(peer)?.is_none()))
    }

    /// Waits until n1's `/readyz` answers 200 with all of `parts`.
    ///
    /// # Errors
    /// When it does not within the deadline; with what it says instead.
    pub fn wait_body(&self, parts: &[&str]) -> Result<Duration> {
        let daemon = self.n1()?.daemon()?;
        wait::until_true(&format!("{parts:?} in /readyz"), || {
            let answer = daemon.get("/readyz")?;
            Ok(answer.status == 200 && parts.iter().all(|part| answer.body.contains(part)))
        })
        .with_context(|| format!("/readyz says {:?}", daemon.get("/readyz").map(|answer| answer.body)))
    }

    /// Waits until n1's daemon has no worry.
    ///
    /// # Errors
    /// As [`Kube::wait_body`].
    pub fn wait_ready(&self) -> Result<Duration> {
        let daemon = self.n1()?.daemon()?;
        wait::until_true("ready without a worry", || Ok(daemon.get("/readyz")?.body == "flanneld is ready"))
            .with_context(|| format!("/readyz says {:?}", daemon.get("/readyz").map(|answer| answer.body)))
    }

    /// Waits until what n1's pod sends to `to` arrives at `at`.
    ///
    /// # Errors
    /// When it does not within the deadline.
    pub fn wait_traffic(&self, to: Ipv4Addr, at: &Handmade) -> Result<Duration> {
        let asker = Asker::new(self.cluster.pod("n1.a")?.ns(), to)?;
        wait::until_true(&format!("packets for {to} at {}", at.address), || {
            let _ = asker.ask(b"hostname", Duration::from_millis(1));
            Ok(at.pending()? > 0)
        })
    }

    /// A metric of n1's daemon, summed over what `labels` leave open.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.n1()?.daemon()?.metrics()?.sum(name, labels))
    }

    /// A datagram every 5 ms from n1's pod to n2's.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn traffic(&self) -> Result<LossCounter> {
        let (from, to) = (self.cluster.pod("n1.a")?, self.cluster.pod("n2.a")?);
        LossCounter::start(from.ns(), to.ip(), Duration::from_millis(5))
    }
}
