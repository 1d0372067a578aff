//! Events on refused Nodes, and two Nodes that claim one podCIDR, on a real API server.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::apiserver::{Access, NodeSpec};
use integration::fixture::Kube;
use integration::handmade::Handmade;
use integration::kube_feed::annotated;
use integration::nodes_file::NodeManifest;
use integration::suite::{Checks, Notes, Suite};
use integration::wait;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

pub(super) fn suite() -> Checks {
    Suite::<Kube>::new()
        .check(
            "of two Nodes with one podCIDR the first keeps it, the second gets an Event and the podCIDR next",
            duplicate,
        )
        .check("the Event is one, however many daemons see the same, and kubectl shows it", one_event)
        .check("a Node whose refusal is over at once gets no Event", passing)
        .check("the own Node without a podCIDR gets an Event", own_node)
        .check("a Node of another backend gets an Event", other_backend)
        .check("A4.3: a public-ip that its Node does not list is used, and said in log, metric, routes and an Event", unlisted)
        .check("without the right to write Events the map is whole", forbidden)
        .checks()
}

/// The Node of `at`, which claims the podCIDR of `claimed`.
fn claiming(at: &Handmade, claimed: &Handmade) -> NodeManifest {
    annotated(NodeManifest { pod_cidrs: claimed.manifest().pod_cidrs, ..at.manifest() })
}

/// Events on a Node.
fn events(kube: &Kube, node: &str) -> Result<Vec<Event>> {
    let fields = format!("involvedObject.kind=Node,involvedObject.name={node}");
    kube.server.call(move |client| async move {
        let events: Api<Event> = Api::namespaced(client, "default");
        Ok::<_, kube::Error>(events.list(&ListParams::default().fields(&fields)).await?.items)
    })
}

fn wait_event(kube: &Kube, node: &str) -> Result<(Event, Duration)> {
    wait::until(&format!("an Event on {node}"), || Ok(events(kube, node)?.pop()))
}

fn create(kube: &Kube, node: NodeManifest) -> Result<()> {
    kube.server.create_node(&NodeSpec::from(node)).map(drop)
}

fn wait_refused(kube: &Kube, count: f64) -> Result<()> {
    for node in ["n1", "n2"] {
        let daemon = kube.cluster.node(node)?.daemon()?;
        wait::until_true("refusals of overlaps", || {
            Ok(daemon.metrics()?.sum("loden_refused_nodes", &[("reason", "overlap")]) == count)
        })?;
    }
    Ok(())
}

fn duplicate(kube: &mut Kube, notes: &Notes) -> Result<()> {
    let pod: Ipv4Addr = kube.first.pod(7);
    create(kube, annotated(kube.first.manifest()))?;
    kube.wait_traffic(pod, &kube.first)?;
    create(kube, claiming(&kube.second, &kube.first))?;
    wait_refused(kube, 1.0)?;
    kube.wait_traffic(pod, &kube.first)?;
    let name = kube.second.name();
    let (event, took) = wait_event(kube, &name)?;
    notes.took("an Event on a refused Node after", took);
    let message = event.message.clone().unwrap_or_default();
    ensure!(message.contains("10.244.50.0/24") && message.contains(&kube.first.name()), "{message}");
    ensure!(
        event.type_.as_deref() == Some("Warning") && event.reason.as_deref() == Some("LeaseRefused"),
        "{event:?}"
    );
    ensure!(event.reporting_component.as_deref() == Some("flanneld"), "{event:?}");
    ensure!(event.involved_object.uid == kube.server.node(&name)?.metadata.uid, "{event:?}");

    // The first goes: the second is right at once. The first comes back: now it is the second.
    kube.server.delete_node(&kube.first.name())?;
    notes.took("the podCIDR is the second's after", kube.wait_traffic(pod, &kube.second)?);
    wait_refused(kube, 0.0)?;
    create(kube, annotated(kube.first.manifest()))?;
    wait_refused(kube, 1.0)?;
    kube.wait_traffic(pod, &kube.second)?;
    // The second goes: the first is right at once.
    kube.server.delete_node(&name)?;
    notes.took("the podCIDR is the first's again after", kube.wait_traffic(pod, &kube.first)?);
    wait_refused(kube, 0.0)
}

fn one_event(kube: &mut Kube, _: &Notes) -> Result<()> {
    let tried = || -> Result<f64> {
        let of = |node: &str| -> Result<f64> {
            let metrics = kube.cluster.node(node)?.daemon()?.metrics()?;
            ensure!(metrics.sum("loden_node_events_total", &[("result", "failed")]) == 0.0, "{node} failed");
            Ok(metrics.sum("loden_node_events_total", &[]))
        };
        Ok(of("n1")? + of("n2")?)
    };
    let before = tried()?;
    create(kube, NodeManifest { name: "crowd".into(), ..claiming(&kube.second, &kube.first) })?;
    // Two daemons speak, and both have spoken.
    wait::until_true("both daemons have spoken", || Ok(tried()? >= before + 2.0))?;
    let found = events(kube, "crowd")?;
    ensure!(found.len() == 1 && found[0].count == Some(1), "{found:?}");
    let described = kube.server.kubectl(&["describe", "node", "crowd"])?;
    ensure!(described.contains("LeaseRefused") && described.contains("flanneld"), "{described}");
    kube.server.delete_node("crowd")
}

fn passing(kube: &mut Kube, _: &Notes) -> Result<()> {
    create(kube, NodeManifest { name: "brief".into(), ..claiming(&kube.second, &kube.first) })?;
    wait_refused(kube, 1.0)?;
    kube.server.delete_node("brief")?;
    wait_refused(kube, 0.0)?;
    // The Event of a Node that is refused later shows that the time for this one is over.
    create(kube, NodeManifest { name: "lasting".into(), ..claiming(&kube.second, &kube.first) })?;
    wait_event(kube, "lasting")?;
    ensure!(events(kube, "brief")?.is_empty(), "an Event for a moment's refusal");
    kube.server.delete_node("lasting")
}

fn own_node(kube: &mut Kube, _: &Notes) -> Result<()> {
    let third = kube.cluster.add_node()?.name().to_owned();
    let mut nodes = kube.cluster.manifests();
    nodes.retain(|node| node.name == third);
    let bare = NodeManifest { pod_cidrs: Vec::new(), ..nodes.remove(0) };
    create(kube, bare)?;
    kube.cluster.start_daemon(&third)?;
    let (event, _) = wait_event(kube, &third)?;
    let message = event.message.unwrap_or_default();
    ensure!(message.contains("podCIDR") && message.contains("allocate-node-cidrs"), "{message}");
    kube.server.delete_node(&third)?;
    kube.cluster.remove_node(&third)
}

fn other_backend(kube: &mut Kube, _: &Notes) -> Result<()> {
    let name = kube.create(60)?;
    kube.set(&name, "backend-type", Some("vxlan"))?;
    let (event, _) = wait_event(kube, &name)?;
    ensure!(event.reason.as_deref() == Some("BackendMismatch"), "{event:?}");
    let message = event.message.unwrap_or_default();
    ensure!(message.contains("vxlan") && message.contains("Backend.Type"), "{message}");
    ensure!(kube.metric("loden_backend_mismatches", &[])? == 1.0);
    kube.server.delete_node(&name)?;
    kube.wait_gone(&name).map(drop)
}

fn unlisted(kube: &mut Kube, _: &Notes) -> Result<()> {
    let name = kube.first.name();
    let elsewhere = kube.second.address.to_string();
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    ensure!(kube.metric("loden_unlisted_addresses", &[])? == 0.0, "all is as it should be");
    kube.set(&name, "public-ip", Some(&elsewhere))?;
    kube.wait_traffic(kube.first.pod(7), &kube.second)?;
    let daemon = kube.n1()?.daemon()?;
    daemon.wait_log("is none of its status.addresses")?;
    wait::until_true("the metric", || Ok(kube.metric("loden_unlisted_addresses", &[])? == 1.0))?;
    let row = kube.n1()?.route(&name)?.unwrap_or_default();
    ensure!(row.to_string().contains("status.addresses"), "{row}");
    let told =
        || Ok(events(kube, &name)?.into_iter().find(|e| e.reason.as_deref() == Some("AddressNotListed")));
    let (event, _) = wait::until("an Event", told)?;
    let message = event.message.unwrap_or_default();
    ensure!(message.contains(&elsewhere) && message.contains("public-ip-overwrite"), "{message}");
    ensure!(daemon.get("/readyz")?.body == "flanneld is ready", "it is no fault");
    // Who writes it into the overwrite too, means it.
    kube.set(&name, "public-ip-overwrite", Some(&elsewhere))?;
    wait::until_true("nothing to warn of", || Ok(kube.metric("loden_unlisted_addresses", &[])? == 0.0))?;
    kube.set(&name, "public-ip-overwrite", None)?;
    kube.set(&name, "public-ip", Some(&kube.first.address.to_string()))?;
    kube.wait_traffic(kube.first.pod(7), &kube.first).map(drop)
}

fn forbidden(kube: &mut Kube, _: &Notes) -> Result<()> {
    let role = kube.server.kubectl(&["get", "clusterrole", "loden", "-o", "jsonpath={.rules}"])?;
    let rules: Vec<Value> = serde_json::from_str(&role)?;
    let fewer: Vec<&Value> = rules.iter().filter(|rule| rule["resources"] != json!(["events"])).collect();
    ensure!(fewer.len() + 1 == rules.len(), "{rules:?}");
    let patch = json!({ "rules": fewer }).to_string();
    kube.server.kubectl(&["patch", "clusterrole", "loden", "--type=merge", "-p", &patch])?;
    wait::until_true("the role is in force", || {
        let may = kube.server.call_as(Access::Daemon, |client| async move {
            let event: Event = serde_json::from_value(json!({
                "metadata": { "name": "probe" }, "involvedObject": { "kind": "Node", "name": "x" },
            }))
            .unwrap_or_default();
            Api::<Event>::namespaced(client, "default")
                .create(&kube::api::PostParams::default(), &event)
                .await
        });
        kube.server.call(|client| async move {
            let events: Api<Event> = Api::namespaced(client, "default");
            match events.delete("probe", &kube::api::DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        })?;
        Ok(may.is_err())
    })?;
    create(kube, NodeManifest { name: "mute".into(), ..claiming(&kube.second, &kube.first) })?;
    let daemon = kube.n1()?.daemon()?;
    daemon.wait_concern("EventsRefused")?;
    ensure!(daemon.log()?.contains("403"), "the cause is named");
    ensure!(kube.metric("loden_node_events_total", &[("result", "failed")])? >= 1.0);
    kube.wait_traffic(kube.first.pod(7), &kube.first)?;
    kube.server.delete_node("mute")?;
    daemon.wait_no_concern("EventsRefused").map(drop)
}
