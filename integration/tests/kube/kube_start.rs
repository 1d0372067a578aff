//! How a daemon starts on the Kubernetes API: what it waits for, what it refuses, and what it says meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{Access, ApiServer, Options};
use integration::daemon::Launch;
use integration::kube_feed::{KubeFeed, PORT};
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Setup, Suite};
use integration::topology::{Cluster, GATEWAY};
use integration::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<One>::new()
        .check("in a pod it needs no flag to find the API server", in_a_pod)
        .check("flannel: node without podCIDR -> waited for, and followed", no_pod_cidr)
        .check("flannel: no such Node -> waited for, and followed", no_node)
        .check("flannel: API server refuses connections -> named", refused)
        .check("flannel: API certificate of an unknown CA -> named", unknown_ca)
        .check("flannel: wrong token (401) -> named", unauthorized)
        .check("flannel: no RBAC permission (403) -> named", forbidden)
        .check("a server that hangs is named", hangs)
        .check("a name that does not resolve is named", dns)
        .check("a server that is not there yet is waited for", late)
        .check("without NODE_NAME the pod says which node this is", by_pod)
        .check("flannel: NODE_NAME and POD_NAME unset -> exit 1 and how to set them", no_name)
        .check("flannel: kubeconfig missing -> exit 1 and the path", no_kubeconfig)
        .check("a bad kubeconfig or URL is exit 1 and says which", bad_way)
        .check("a kubeconfig that wants a program run is refused", exec)
        .checks()
}

/// One node and an API server; each check starts the daemon.
struct One {
    cluster: Cluster,
    server: Arc<ApiServer>,
}

impl Setup for One {
    fn build() -> Result<Self> {
        let mut cluster = Cluster::builder().nodes(1).build()?;
        let server = KubeFeed::install(&mut cluster, Options::default())?;
        Ok(Self { cluster, server })
    }

    fn explain(&self) -> String {
        self.cluster.logs()
    }
}

impl One {
    fn launch(&self) -> Result<Launch> {
        self.cluster.launch("n1")
    }

    fn by(&self, access: Access) -> Result<Launch> {
        Ok(self.launch()?.set("--kubeconfig-file", self.server.kubeconfig(access)?))
    }

    /// Starts it with nothing that an earlier daemon remembered.
    fn start(&mut self, launch: Launch) -> Result<()> {
        let cache = self.cluster.node("n1")?.cache_file();
        if cache.exists() {
            std::fs::remove_file(cache)?;
        }
        let daemon = launch.spawn()?;
        self.cluster.node_mut("n1")?.adopt(daemon);
        Ok(())
    }

    /// The daemon lives, is not ready, and names `parts` in its readiness and its log, and `reason` in its metrics.
    fn waits(&self, parts: &[&str], reason: Option<&str>) -> Result<()> {
        let daemon = self.cluster.node("n1")?.daemon()?;
        let told = wait::until_true(&format!("{parts:?} in /readyz"), || {
            let answer = daemon.get("/readyz")?;
            Ok(answer.status == 503 && parts.iter().all(|part| answer.body.contains(part)))
        });
        told.with_context(|| format!("/readyz says: {:?}", daemon.get("/readyz").map(|answer| answer.body)))?;
        let log = daemon.log()?;
        ensure!(parts.iter().all(|part| log.contains(part)), "{parts:?} are missing in the log:\n{log}");
        ensure!(daemon.get("/healthz")?.status == 200, "waiting is no failure");
        let metrics = daemon.metrics()?;
        ensure!(metrics.sum("loden_ready", &[]) == 0.0);
        if let Some(reason) = reason {
            ensure!(
                metrics.sum("loden_watch_restarts_total", &[("reason", reason)]) >= 1.0,
                "no {reason} counted"
            );
            ensure!(metrics.sum("loden_lease_source_up", &[]) == 0.0);
        }
        Ok(())
    }

    /// Starts a daemon that cannot reach the API server, and stops it again.
    fn waits_in_vain(&mut self, launch: Launch, parts: &[&str], reason: &str) -> Result<()> {
        self.start(launch)?;
        self.waits(parts, Some(reason))?;
        self.stop()
    }

    fn wait_ready(&mut self) -> Result<std::time::Duration> {
        self.cluster.node_mut("n1")?.daemon_mut()?.wait_ready()
    }

    fn stop(&mut self) -> Result<()> {
        let (status, _) = self.cluster.node_mut("n1")?.stop_daemon(Signal::SIGTERM)?;
        ensure!(status.success(), "{status}");
        Ok(())
    }

    /// Runs to the end, which must be exit 1 with `parts` in the message.
    fn refuses(&self, launch: Launch, parts: &[&str]) -> Result<()> {
        let exit = launch.run_to_end()?;
        ensure!(exit.code == Some(1), "{exit:?}");
        for part in parts {
            ensure!(exit.said.contains(part), "`{part}` is missing in: {}", exit.said);
        }
        ensure!(!exit.said.contains("panicked"), "{}", exit.said);
        Ok(())
    }

    /// The daemon's kubeconfig, changed.
    fn kubeconfig(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<PathBuf> {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.server.node_kubeconfig("n1")?)?)?;
        change(&mut config);
        let path = self.cluster.dir().join(name);
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Makes `nodes` the only ones.
    fn publish(&mut self, nodes: &[NodeManifest]) -> Result<()> {
        self.cluster.publish_only(nodes)
    }
}

/// `/run`, to which `/var/run` leads, is the lab's own; so this is where a pod finds its service account.
fn in_a_pod(one: &mut One, notes: &Notes) -> Result<()> {
    let inside = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    std::fs::create_dir_all(inside)?;
    let folder = one.server.service_account_folder("n1")?;
    for name in ["token", "ca.crt", "namespace"] {
        std::fs::copy(folder.join(name), inside.join(name))?;
    }
    let launch = one.launch()?.unset("--kubeconfig-file");
    one.refuses(launch.clone(), &["--kubeconfig-file", "service account"])?;
    let launch = launch.env("KUBERNETES_SERVICE_HOST", GATEWAY.to_string());
    one.start(launch.env("KUBERNETES_SERVICE_PORT", PORT.to_string()))?;
    let took = one.wait_ready()?;
    notes.took("start to ready, one node", took);
    one.stop()
}

fn no_pod_cidr(one: &mut One, notes: &Notes) -> Result<()> {
    let whole = one.cluster.node("n1")?.manifest();
    one.publish(&[])?;
    one.publish(&[NodeManifest { pod_cidrs: Vec::new(), ..whole.clone() }])?;
    one.start(one.launch()?)?;
    one.waits(&["node n1 has no podCIDR yet"], None)?;
    one.publish(&[whole])?;
    let ready =
        wait::until_true("ready", || Ok(one.cluster.node("n1")?.daemon()?.get("/readyz")?.status == 200))?;
    notes.took("ready after the podCIDR was assigned", ready);
    one.stop()
}

fn no_node(one: &mut One, notes: &Notes) -> Result<()> {
    one.publish(&[])?;
    one.start(one.launch()?)?;
    one.waits(&["node n1 is not in the Kubernetes API at https://"], None)?;
    one.publish(&[one.cluster.node("n1")?.manifest()])?;
    let ready =
        wait::until_true("ready", || Ok(one.cluster.node("n1")?.daemon()?.get("/readyz")?.status == 200))?;
    notes.took("ready after the Node was created", ready);
    one.stop()
}

fn refused(one: &mut One, _: &Notes) -> Result<()> {
    one.waits_in_vain(
        one.by(Access::NobodyListens)?,
        &["connection refused", "192.168.77.254", "--kube-api-url"],
        "refused",
    )
}

fn unknown_ca(one: &mut One, _: &Notes) -> Result<()> {
    one.waits_in_vain(
        one.by(Access::UnknownCa)?,
        &["unknown authority", "certificate-authority-data"],
        "unknown_ca",
    )
}

fn unauthorized(one: &mut One, _: &Notes) -> Result<()> {
    one.waits_in_vain(one.by(Access::BadToken)?, &["401", "token"], "unauthorized")
}

fn forbidden(one: &mut One, _: &Notes) -> Result<()> {
    one.waits_in_vain(one.by(Access::NoRbac)?, &["403", "nodes is forbidden", "ClusterRole"], "forbidden")
}

fn hangs(one: &mut One, _: &Notes) -> Result<()> {
    one.server.pause()?;
    let outcome = one.waits_in_vain(one.launch()?, &["no answer in time"], "timeout");
    one.server.resume()?;
    outcome
}

fn dns(one: &mut One, _: &Notes) -> Result<()> {
    let launch = one.launch()?.set("--kube-api-url", "https://no-such-host.invalid:6443");
    one.waits_in_vain(launch, &["cannot be resolved", "no-such-host.invalid"], "dns")
}

fn late(one: &mut One, notes: &Notes) -> Result<()> {
    one.server.kill();
    one.start(one.launch()?)?;
    one.waits(&["connection refused"], Some("refused"))?;
    one.server.restart()?;
    let ready =
        wait::until_true("ready", || Ok(one.cluster.node("n1")?.daemon()?.get("/readyz")?.status == 200))?;
    notes.took("ready after the API server came up", ready);
    one.stop()
}

fn by_pod(one: &mut One, _: &Notes) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "flanneld-x", "namespace": "loden-system" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "x", "image": "x" }] },
    });
    let path = one.cluster.dir().join("pod.json");
    std::fs::write(&path, pod.to_string())?;
    one.server.kubectl(&["apply", "-f", &path.to_string_lossy()])?;
    let launch = |one: &One, access: Access, pod: &str| -> Result<Launch> {
        Ok(one.by(access)?.without_env("NODE_NAME").env("POD_NAME", pod).env("POD_NAMESPACE", "loden-system"))
    };
    one.refuses(launch(one, Access::Daemon, "flanneld-x")?, &["NODE_NAME is not set", "403", "fieldRef"])?;
    one.refuses(launch(one, Access::Admin, "absent")?, &["NODE_NAME is not set", "404"])?;
    one.refuses(launch(one, Access::Admin, "../secrets")?, &["POD_NAME", "../secrets"])?;
    one.start(launch(one, Access::Admin, "flanneld-x")?)?;
    one.wait_ready()?;
    one.stop()
}

fn no_name(one: &mut One, _: &Notes) -> Result<()> {
    one.refuses(one.launch()?.without_env("NODE_NAME"), &["NODE_NAME is not set", "spec.nodeName"])
}

fn no_kubeconfig(one: &mut One, _: &Notes) -> Result<()> {
    one.refuses(
        one.launch()?.set("--kubeconfig-file", "/nonexistent"),
        &["--kubeconfig-file /nonexistent", "No such file"],
    )
}

fn bad_way(one: &mut One, _: &Notes) -> Result<()> {
    let launch = || one.launch();
    one.refuses(launch()?.set("--kubeconfig-file", "/etc/hostname"), &["--kubeconfig-file /etc/hostname"])?;
    for url in ["here", "192.168.77.254:6443", "https://"] {
        one.refuses(launch()?.set("--kube-api-url", url), &["--kube-api-url", url, "https://HOST:PORT"])?;
    }
    Ok(())
}

fn exec(one: &mut One, _: &Notes) -> Result<()> {
    let ran = one.cluster.dir().join("ran");
    let path = one.kubeconfig("exec.kubeconfig", |config| {
        config["users"][0]["user"] = json!({ "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "touch",
            "args": [ran],
            "interactiveMode": "Never",
        } });
    })?;
    one.refuses(
        one.launch()?.set("--kubeconfig-file", path),
        &["exec.kubeconfig", "running a program", "token"],
    )?;
    ensure!(!ran.exists(), "the program was run");
    Ok(())
}
