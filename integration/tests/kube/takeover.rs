//! flannel's own DaemonSet with our image and nothing else changed: its objects are on a real API server, and our daemon starts
//! with exactly the arguments, the environment and the rights of its pod. No kubelet runs here, so the files that the pod
//! mounts are told to it by flannel's environment variables.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{ApiServer, NodeSpec, Options, folder};
use integration::daemon::Launch;
use integration::kube_feed::{KubeFeed, PORT, annotated};
use integration::manifests::chart;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, GATEWAY};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-flannel";
const ACCOUNT: &str = "flannel";
/// Nodes that claim our node's prefix.
const RIVALS: [&str; 2] = ["rival-1", "rival-2"];
const IMAGE: &str = "registry.example/loden:0.1.0";

pub(super) fn suite() -> Checks {
    Suite::<Taken>::new()
        .check("the release manifest, whose image is changed, runs our daemon", release)
        .check("so does what Helm makes of flannel's chart", helm)
        .checks()
}

/// One node without a daemon, and an API server.
struct Taken {
    cluster: Cluster,
    server: Arc<ApiServer>,
}

impl Setup for Taken {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(1).build()?;
        let server = KubeFeed::install(&mut cluster, Options::default())?;
        // Helm makes none.
        server.kubectl(&["create", "namespace", NAMESPACE])?;
        Ok(Self { cluster, server })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

/// The manifest that flannel's releases have, by the command of its Makefile.
fn release(taken: &mut Taken, notes: &Notes) -> Result<()> {
    let dir = folder("flannel")?.join("Documentation/kustomization/kube-flannel");
    let rendered = taken.server.kubectl(&["kustomize", dir.to_str().context("path")?])?;
    taken.over(&rendered, notes)
}

fn helm(taken: &mut Taken, notes: &Notes) -> Result<()> {
    let rendered = chart(&folder("flannel")?.join("chart/kube-flannel"), NAMESPACE, &json!({}))?;
    taken.over(&rendered, notes)
}

impl Taken {
    fn over(&mut self, rendered: &str, notes: &Notes) -> Result<()> {
        let file = self.server.dir().join("flannel.yaml");
        std::fs::write(&file, rendered)?;
        self.server.kubectl(&["apply", "--server-side", "-f", file.to_str().context("path")?])?;
        let (container, helper) = (format!("kube-flannel={IMAGE}"), format!("install-cni={IMAGE}"));
        let set = ["--namespace", NAMESPACE, "set", "image", "daemonset/kube-flannel-ds"];
        self.server.kubectl(&[&set[..], &[&container, &helper]].concat())?;
        let stored = ["--namespace", NAMESPACE, "get", "daemonset", "kube-flannel-ds", "-o", "json"];
        let daemonset: Value = serde_json::from_str(&self.server.kubectl(&stored)?)?;
        let pod = &daemonset["spec"]["template"]["spec"];
        ensure!(pod["containers"][0]["image"] == IMAGE, "{pod}");

        let launch = self.launch(&pod["containers"][0])?;
        // The released manifest of v0.28.9 asks for no health endpoint, and the chart does.
        let health = launch.value("--healthz-port").is_some();
        let daemon = launch.spawn()?;
        self.cluster.node_mut("n1")?.adopt(daemon);
        let daemon = self.cluster.node_mut("n1")?.daemon_mut()?;
        let took = if health { daemon.wait_ready()? } else { daemon.wait_log("INFO ready tunnel=")? };
        notes.took("start to ready, as flannel's pod", took);
        self.withheld(health)?;
        let (status, _) = self.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}");
        for name in RIVALS {
            self.server.delete_node(name)?;
        }
        let flannels = ["daemonset/kube-flannel-ds", "configmap/kube-flannel-cfg", "serviceaccount/flannel"];
        self.server.kubectl(&[&["delete", "--namespace", NAMESPACE], &flannels[..]].concat())?;
        self.server.kubectl(&["delete", "clusterrole/flannel", "clusterrolebinding/flannel"]).map(drop)
    }

    /// The pod's first container as a process, with what a kubelet would give it.
    fn launch(&self, container: &Value) -> Result<Launch> {
        let node = self.cluster.node("n1")?;
        let words = ["command", "args"].map(|key| container[key].as_array().cloned().unwrap_or_default());
        let words: Vec<String> =
            words.iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let [program, flags @ ..] = words.as_slice() else { anyhow::bail!("no command: {container}") };
        ensure!(program == "/opt/bin/flanneld", "{program}");
        let mut launch = Launch::new(node.ns().clone(), node.dir());
        for flag in flags {
            launch = match flag.split_once('=') {
                Some((flag, value)) => launch.set(flag, value),
                None => launch.flag(flag),
            };
        }
        let token = self.server.token_of_pod(NAMESPACE, ACCOUNT, "kube-flannel-ds-x", "n1")?;
        let inside = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
        std::fs::create_dir_all(inside)?;
        for (name, text) in
            [("token", token.as_str()), ("ca.crt", self.server.ca_pem()), ("namespace", NAMESPACE)]
        {
            std::fs::write(inside.join(name), text)?;
        }
        for variable in container["env"].as_array().context("no environment")? {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => "kube-flannel-ds-x",
                Some("metadata.namespace") => NAMESPACE,
                Some(other) => anyhow::bail!("what is {other}?"),
                None => variable["value"].as_str().context("a variable without a value")?,
            };
            launch = launch.env(variable["name"].as_str().context("name")?, value);
        }
        Ok(launch
            .env("KUBERNETES_SERVICE_HOST", GATEWAY.to_string())
            .env("KUBERNETES_SERVICE_PORT", PORT.to_string())
            .env("FLANNELD_NET_CONFIG_PATH", self.cluster.dir().join("net-conf.json"))
            .env("FLANNELD_SUBNET_FILE", node.subnet_file()))
    }

    /// flannel's role has no right to create Events. Two Nodes are refused, and that is said once, with the remedy.
    fn withheld(&self, health: bool) -> Result<()> {
        for (name, number) in RIVALS.into_iter().zip(60..) {
            let own = self.cluster.node("n1")?.manifest();
            let rival = annotated(NodeManifest {
                name: name.to_owned(),
                internal_ips: vec![[192, 168, 77, number].into()],
                annotations: Vec::new(),
                ..own
            });
            self.server.create_node(&NodeSpec::from(rival))?;
        }
        let daemon = self.cluster.node("n1")?.daemon()?;
        daemon.wait_log("refused and odd Nodes get no Event")?;
        wait::until_true("both were tried", || {
            Ok(!health || daemon.metrics()?.sum("loden_node_events_total", &[("result", "failed")]) >= 2.0)
        })?;
        let log = daemon.log()?;
        let told: Vec<&str> = log.lines().filter(|line| line.contains("get no Event")).collect();
        let [line] = told.as_slice() else { anyhow::bail!("not once: {told:#?}") };
        let command = "kubectl create clusterrolebinding loden-events --clusterrole=loden-events \
                       --serviceaccount=kube-flannel:flannel";
        ensure!(line.contains(command), "{line}");
        Ok(())
    }
}
