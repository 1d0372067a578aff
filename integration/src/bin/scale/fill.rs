//! The load: Nodes as large as those of a real cluster, and what happens to them.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::apiserver::ApiServer;
use integration::kube_feed::key;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_local};

/// Requests at a time.
const ABREAST: usize = 16;
/// Images that a node lists: the kubelet's own limit.
const IMAGES: u32 = 50;
/// Marks the Nodes that are ours to delete.
const LABEL: &str = "example.com/filler";

/// Makes Nodes `node-0` to `node-<n>`, and of each a /24 of 10.0.0.0/8 from 10.8.0.0 on.
pub(crate) struct Filler {
    server: Arc<ApiServer>,
    filled: u32,
    /// The next Node of the churn; its name is never used twice.
    next: u32,
}

impl Filler {
    pub(crate) fn new(server: Arc<ApiServer>) -> Self {
        Self { server, filled: 0, next: 100_000 }
    }

    /// Size of one Node as JSON, before the server adds its own.
    pub(crate) fn bytes_per_node(&self) -> Result<usize> {
        Ok(serde_json::to_vec(&node(0)?)?.len())
    }

    pub(crate) fn fill_to(&mut self, nodes: u32) -> Result<()> {
        let numbers = self.filled..nodes;
        self.server.call(move |client| async move {
            let numbers: Vec<u32> = numbers.collect();
            for some in numbers.chunks(ABREAST) {
                all(some.iter().map(|number| create(client.clone(), *number))).await?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        self.filled = nodes;
        Ok(())
    }

    /// Kubelets' heartbeats: a new time in a condition, which changes nothing for us.
    pub(crate) fn heartbeats(&mut self, rate: u32, seconds: u32) -> Result<u32> {
        let nodes = self.filled;
        self.server.call(move |client| async move {
            paced(rate, seconds, |number| heartbeat(client.clone(), number.wrapping_mul(7919) % nodes)).await
        })
    }

    /// `rate` Nodes a second come, and each goes a second later.
    pub(crate) fn churn(&mut self, rate: u32, seconds: u32) -> Result<u32> {
        let first = self.next;
        self.next += rate * seconds;
        self.server.call(move |client| async move {
            let come_and_go = |number: u32| {
                let client = client.clone();
                async move {
                    create(client.clone(), first + number).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Api::<Node>::all(client).delete(&name(first + number), &DeleteParams::default()).await?;
                    Ok(())
                }
            };
            Ok::<_, anyhow::Error>(2 * paced(rate, seconds, come_and_go).await?)
        })
    }

    pub(crate) fn delete_all(&mut self) -> Result<()> {
        self.filled = 0;
        self.server.call(|client| async move {
            let all = ListParams::default().labels(LABEL);
            Api::<Node>::all(client).delete_collection(&DeleteParams::default(), &all).await.map(drop)
        })
    }
}

/// Begins `rate` things a second, whether or not those before are done, and waits for all in the end.
async fn paced<F>(rate: u32, seconds: u32, begin: impl Fn(u32) -> F) -> Result<u32>
where
    F: Future<Output = Result<()>> + 'static,
{
    let started = Instant::now();
    let mut begun: Vec<JoinHandle<Result<()>>> = Vec::new();
    for number in 0..rate * seconds {
        let due = Duration::from_secs(1) * number / rate;
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        begun.push(spawn_local(begin(number)));
    }
    for one in begun {
        one.await??;
    }
    Ok(rate * seconds)
}

async fn all<F>(work: impl Iterator<Item = F>) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    let begun: Vec<_> = work.map(spawn_local).collect();
    for one in begun {
        one.await??;
    }
    Ok(())
}

async fn create(client: Client, number: u32) -> Result<()> {
    let node = node(number)?;
    Api::all(client)
        .create(&PostParams::default(), &node)
        .await
        .with_context(|| format!("create Node {number}"))?;
    Ok(())
}

async fn heartbeat(client: Client, number: u32) -> Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let patch = Patch::Strategic(
        json!({ "status": { "conditions": [{ "type": "Ready", "lastHeartbeatTime": now }] } }),
    );
    let nodes: Api<Node> = Api::all(client);
    nodes.patch_status(&name(number), &PatchParams::default(), &patch).await?;
    Ok(())
}

fn name(number: u32) -> String {
    format!("node-{number}.europe-west1.example.com")
}

/// What a kubelet, the cloud's controllers and flannel write into a Node.
fn node(number: u32) -> Result<Node> {
    let [_, high, low, _] = (number.wrapping_mul(256)).to_be_bytes();
    let pods = format!("10.{}.{low}.0/24", 8 + u32::from(high));
    let address = format!("172.{}.{high}.{low}", 16 + number / 65_536);
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason,
            "message": format!("kubelet has {reason} on this node, as far as it can tell by itself"),
            "lastHeartbeatTime": "2026-11-21T15:00:00Z", "lastTransitionTime": "2026-11-01T15:00:00Z",
        })
    };
    let image = |image: u32| {
        let path = format!("registry.example.com/team-{}/service-{image}", image % 7);
        json!({
            "names": [format!("{path}@sha256:{:064x}", u64::from(image).wrapping_mul(0x9e37_79b9_7f4a_7c15)), format!("{path}:v1.{image}.0")],
            "sizeBytes": 30_000_000 + image,
        })
    };
    let resources = json!({ "cpu": "8", "memory": "32855596Ki", "pods": "110", "ephemeral-storage": "101430960Ki", "hugepages-2Mi": "0" });
    let mut annotations = serde_json::Map::new();
    for (name, value) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", ""),
        ("backend-data", "null"),
        ("public-ip", address.as_str()),
    ] {
        annotations.insert(key(name), value.into());
    }
    annotations.insert("node.alpha.kubernetes.io/ttl".into(), "0".into());
    annotations.insert("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into());
    let node: Value = json!({
        "metadata": {
            "name": name(number),
            "annotations": annotations,
            "labels": {
                LABEL: "true",
                "kubernetes.io/hostname": name(number), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "n2-standard-8",
                "topology.kubernetes.io/region": "europe-west1", "topology.kubernetes.io/zone": "europe-west1-b",
            },
        },
        "spec": { "podCIDR": pods, "podCIDRs": [pods], "providerID": format!("cloud://project/europe-west1-b/{}", name(number)) },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": address },
                { "type": "Hostname", "address": name(number) },
            ],
            "capacity": resources, "allocatable": resources,
            "conditions": [
                condition("Ready", "True", "KubeletReady"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("NetworkUnavailable", "False", "FlannelIsUp"),
            ],
            "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64", "bootID": "6f9d6c1e-0000-4000-8000-000000000000",
                "containerRuntimeVersion": "containerd://2.1.0", "kernelVersion": "6.1.0-30-cloud-amd64",
                "kubeProxyVersion": "", "kubeletVersion": "v1.36.1", "machineID": "6f9d6c1e000040008000000000000000",
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "systemUUID": "6f9d6c1e-0000-4000-8000-000000000000",
            },
        },
    });
    Ok(serde_json::from_value(node)?)
}
