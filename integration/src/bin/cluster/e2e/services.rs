//! Services through the real kube-proxy, and names through the real CoreDNS.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::wait;
use serde_json::json;

use super::ask::{self, Protocol, dial, shell};
use super::objects::{self, NAMESPACE};
use super::stage::{Pod, Stage};
use crate::report::Outcome;
use crate::spec::{self, DNS};

/// A change of a Service is written by every kube-proxy within a second or so.
const SETTLED: Duration = Duration::from_secs(60);

/// Asks until somebody answers: a new Service takes a moment to be in every node's rules.
fn settle(stage: &Stage<'_>, via: &Pod, to: SocketAddr, protocol: Protocol) -> Result<()> {
    let answered = || dial(stage.ns(), via.ip.into(), to, protocol, "hostname").map(Some);
    wait::until_within(SETTLED, &format!("{} reaches {to}", via.name), answered).map(drop)
}

/// Who answers in `times` questions; none may go unanswered.
fn answerers(
    stage: &Stage<'_>,
    via: &Pod,
    to: SocketAddr,
    protocol: Protocol,
    times: usize,
) -> Result<BTreeSet<String>> {
    (0..times).map(|_| dial(stage.ns(), via.ip.into(), to, protocol, "hostname")).collect()
}

pub(crate) fn cluster_ip(stage: &Stage<'_>) -> Result<Outcome> {
    stage.apply(&[objects::service("all", "pods", &json!({}))])?;
    let ip = stage.cluster_ip("all")?;
    let pods = stage.pods()?;
    let mut asked = 0;
    for from in &pods {
        for (protocol, port) in [(Protocol::Http, 80), (Protocol::Udp, 90)] {
            let to = SocketAddr::new(ip, port);
            settle(stage, from, to, protocol)?;
            let times = 12 * pods.len();
            let who = answerers(stage, from, to, protocol, times)?;
            // Chance misses one of n pods in 12n questions about once in 100,000 times.
            ensure!(who.len() == pods.len(), "{} reached only {who:?} over {}", from.name, protocol.name());
            asked += times;
        }
    }
    Ok(Outcome::Held(format!("{ip}: {asked} of {asked} questions, {} endpoints", pods.len())))
}

pub(crate) fn node_port(stage: &Stage<'_>) -> Result<Outcome> {
    const PORT: u16 = 30080;
    let last = spec::name(stage.spec.nodes);
    let service = objects::service(
        "nodeport",
        "single",
        &json!({
            "type": "NodePort",
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "nodePort": PORT }],
        }),
    );
    stage.apply(&[objects::pod_on("single", &last, None), service])?;
    let pod = stage.pod_ready("single")?;
    for from in stage.spec.names() {
        let ns = stage.node_ns(&from)?;
        for number in stage.spec.numbers() {
            let to = SocketAddr::new(spec::address(number).into(), PORT);
            wait::until_within(SETTLED, &format!("{from} reaches {to}"), || {
                Ok((ask::get(&ns, to, "/hostname")? == pod.name).then_some(()))
            })?;
        }
    }
    // And as users come: from a host that knows nodes only.
    let outside = stage.outside_ns()?;
    for number in stage.spec.numbers() {
        let to = SocketAddr::new(spec::address(number).into(), PORT);
        ensure!(ask::get(&outside, to, "/hostname")? == pod.name, "from outside, {to} led elsewhere");
    }
    Ok(Outcome::Held(format!("port {PORT} of every node, from every node and from outside, pod on {last}")))
}

pub(crate) fn headless(stage: &Stage<'_>) -> Result<Outcome> {
    stage.apply(&[objects::service("headless", "pods", &json!({ "clusterIP": "None" }))])?;
    let pods = stage.pods()?;
    let expected: BTreeSet<String> = pods.iter().map(|pod| pod.ip.to_string()).collect();
    let name = format!("headless.{NAMESPACE}.svc.cluster.local");
    let from = pods.first().context("no pods")?;
    wait::until_within(SETTLED, &format!("{name} has every pod"), || {
        let found = shell(stage.ns(), from.ip.into(), &format!("dig +short A {name}"))?;
        Ok((found.lines().map(str::to_owned).collect::<BTreeSet<_>>() == expected).then_some(()))
    })?;
    Ok(Outcome::Held(format!("{} addresses", expected.len())))
}

pub(crate) fn external_name(stage: &Stage<'_>) -> Result<Outcome> {
    let target = format!("all.{NAMESPACE}.svc.cluster.local");
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "alias", "namespace": NAMESPACE },
        "spec": { "type": "ExternalName", "externalName": target },
    });
    stage.apply(&[service, objects::service("all", "pods", &json!({}))])?;
    let from = stage.pods()?.first().context("no pods")?.clone();
    let name = format!("alias.{NAMESPACE}.svc.cluster.local");
    wait::until_within(SETTLED, &format!("{name} is an alias"), || {
        let found = shell(stage.ns(), from.ip.into(), &format!("dig +short CNAME {name}"))?;
        Ok((found.trim_end_matches('.') == target).then_some(()))
    })?;
    let body = shell(stage.ns(), from.ip.into(), &format!("curl -sS --max-time 10 http://{name}/hostname"))?;
    ensure!(body.starts_with("pods-"), "the alias led to `{body}`");
    Ok(Outcome::Held(format!("{name} → {target}")))
}

pub(crate) fn affinity(stage: &Stage<'_>) -> Result<Outcome> {
    const TIMES: usize = 20;
    stage.apply(&[objects::service("sticky", "pods", &json!({ "sessionAffinity": "ClientIP" }))])?;
    let to = SocketAddr::new(stage.cluster_ip("sticky")?, 80);
    for from in stage.pods()? {
        settle(stage, &from, to, Protocol::Http)?;
        let who = answerers(stage, &from, to, Protocol::Http, TIMES)?;
        ensure!(who.len() == 1, "{} was sent to {who:?}", from.name);
    }
    Ok(Outcome::Held(format!("{TIMES} questions from each pod, one answerer each")))
}

pub(crate) fn endpoints(stage: &Stage<'_>) -> Result<Outcome> {
    stage
        .apply(&[objects::deployment("changing", 1), objects::service("changing", "changing", &json!({}))])?;
    let to = SocketAddr::new(stage.cluster_ip("changing")?, 80);
    let from = stage.pods()?.first().context("no pods")?.clone();
    let mut took = Vec::new();
    for replicas in [1, 4, 2, 0, 1] {
        stage.apply(&[objects::deployment("changing", replicas)])?;
        stage.rolled_out("deployment/changing")?;
        let count = usize::try_from(replicas)?;
        let (_, waited) =
            wait::until_within(SETTLED, &format!("the Service has {replicas} endpoints"), || {
                let pods: BTreeSet<String> =
                    stage.pods_of("changing")?.into_iter().map(|pod| pod.name).collect();
                let who = match answerers(stage, &from, to, Protocol::Http, 12 * count.max(1)) {
                    Err(_) if replicas == 0 => BTreeSet::new(),
                    other => other?,
                };
                Ok((pods.len() == count && who == pods).then_some(()))
            })?;
        took.push(format!("{replicas} after {}", wait::human(waited)));
    }
    stage.delete(&["deployment/changing", "service/changing"])?;
    Ok(Outcome::Held(took.join(", ")))
}

pub(crate) fn dns(stage: &Stage<'_>) -> Result<Outcome> {
    let listed = stage.kubectl.get(&["-n", "kube-system", "pods", "-l", "k8s-app=kube-dns"])?;
    let items = listed["items"].as_array().context("a list without items")?;
    let mut servers = vec![DNS.to_string()];
    for pod in items {
        servers.push(pod["status"]["podIP"].as_str().context("a CoreDNS pod without address")?.to_owned());
    }
    let mut asked = 0;
    for from in stage.pods()? {
        for server in &servers {
            for transport in ["+notcp", "+tcp"] {
                let command =
                    format!("dig +short +tries=1 {transport} @{server} kubernetes.default.svc.cluster.local");
                let found = shell(stage.ns(), from.ip.into(), &command)?;
                let found: IpAddr =
                    found.parse().with_context(|| format!("{} at {server}: {found}", from.name))?;
                ensure!(found.to_string() == "10.96.0.1", "{} at {server}: {found}", from.name);
                asked += 1;
            }
        }
    }
    Ok(Outcome::Held(format!("{asked} of {asked} questions to {} servers", servers.len())))
}

pub(crate) fn host_port(stage: &Stage<'_>) -> Result<Outcome> {
    const PORT: u16 = 18080;
    stage.apply(&[objects::pod_on("hostport", &spec::name(1), Some(PORT))])?;
    let pod = stage.pod_ready("hostport")?;
    let to = SocketAddr::new(spec::address(1).into(), PORT);
    let mut asked = 0;
    for node in stage.spec.names().skip(1) {
        let name = ask::get(&stage.node_ns(&node)?, to, "/hostname")?;
        ensure!(name == pod.name, "{node} asked {to} and {name} answered");
        asked += 1;
    }
    for from in stage.pods()? {
        let name = dial(stage.ns(), from.ip.into(), to, Protocol::Http, "hostname")?;
        ensure!(name == pod.name, "{} asked {to} and {name} answered", from.name);
        asked += 1;
    }
    stage.delete(&["pod/hostport"])?;
    Ok(Outcome::Held(format!("{to}: {asked} of {asked} questions from nodes and pods")))
}

/// The path of an Ingress: client, proxy pod, and behind its own Service a pod on another node.
pub(crate) fn ingress(stage: &Stage<'_>) -> Result<Outcome> {
    let (first, last) = (spec::name(1), spec::name(stage.spec.nodes));
    stage.apply(&[
        objects::pod_on("backend", &last, None),
        objects::service("backend", "backend", &json!({})),
    ])?;
    let backend = stage.pod_ready("backend")?;
    let target = stage.cluster_ip("backend")?;
    let front = objects::service(
        "ingress",
        "ingress",
        &json!({
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        }),
    );
    stage.apply(&[objects::proxy_on("ingress", &first, &target.to_string()), front])?;
    stage.pod_ready("ingress")?;
    let to = SocketAddr::new(stage.cluster_ip("ingress")?, 80);
    let ns = stage.node_ns(&last)?;
    let (answer, _) =
        wait::until_within(SETTLED, "the proxy forwards", || ask::get(&ns, to, "/hostname").map(Some))?;
    ensure!(answer == backend.name, "the proxy led to `{answer}`");
    stage.delete(&["pod/ingress", "pod/backend", "service/ingress", "service/backend"])?;
    Ok(Outcome::Held(format!("{last} → {to} → proxy on {first} → {target} → pod on {last}")))
}
