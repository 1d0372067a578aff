//! What we ship is accepted by a real API server and asks for no more than it needs.

use anyhow::{Context, Result};
use integration::apiserver::{ApiServer, NAMESPACE, Options, SERVICE_ACCOUNT, SHIPPED_MANIFEST};
use serde_json::{Value, json};

#[test]
fn a_real_api_server_accepts_it() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    // A dry run stores nothing, so what lives in a namespace is refused unless the namespace is there already.
    server.kubectl(&["create", "namespace", NAMESPACE])?;
    let printed = server.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", SHIPPED_MANIFEST])?;
    let expected = [
        "namespace/kube-flannel",
        "serviceaccount/flannel",
        "clusterrole.rbac.authorization.k8s.io/flannel",
        "clusterrolebinding.rbac.authorization.k8s.io/flannel",
        "validatingadmissionpolicy.admissionregistration.k8s.io/flannel-own-node",
        "validatingadmissionpolicybinding.admissionregistration.k8s.io/flannel-own-node",
        "configmap/kube-flannel-cfg",
        "daemonset.apps/kube-flannel-ds",
    ];
    let accepted: Vec<&str> = printed.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(accepted, expected, "kubectl printed:\n{printed}");
    assert!(
        server.kubectl(&["get", "daemonset", "-A", "-o", "name"])?.is_empty(),
        "a dry run must store nothing"
    );
    Ok(())
}

/// The server's defaults are part of what runs, so the checks read the DaemonSet back from it.
#[test]
fn it_asks_for_as_little_as_works() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    server.apply_shipped_manifest()?;
    let stored = server.kubectl(&["get", "daemonset", "kube-flannel-ds", "-n", NAMESPACE, "-o", "json"])?;
    let daemonset: Value = serde_json::from_str(&stored)?;
    let pod = &daemonset["spec"]["template"]["spec"];

    assert_eq!(pod["hostNetwork"], json!(true));
    assert_eq!(pod["hostPID"], Value::Null, "hostPID is not needed");
    assert_eq!(pod["hostIPC"], Value::Null, "hostIPC is not needed");
    assert_eq!(pod["serviceAccountName"], json!(SERVICE_ACCOUNT));
    assert_eq!(pod["priorityClassName"], json!("system-node-critical"));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));

    let daemon = &pod["containers"][0];
    let installer = &pod["initContainers"][0];
    assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1));
    assert_eq!(pod["initContainers"].as_array().map(Vec::len), Some(1));
    for container in [daemon, installer] {
        let security = &container["securityContext"];
        let name = &container["name"];
        assert_ne!(security["privileged"], json!(true), "{name} is privileged");
        assert_eq!(security["allowPrivilegeEscalation"], json!(false), "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], json!(true), "{name}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
    }
    assert_eq!(daemon["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    assert_eq!(installer["securityContext"]["capabilities"]["add"], Value::Null);
    assert_eq!(
        daemon["env"],
        json!([{
            "name": "NODE_NAME",
            "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } },
        }])
    );

    // The CNI folder is the init container's business only.
    assert_eq!(host_paths(pod, daemon)?, ["/run/flannel", "/run/xtables.lock", "/dev/net/tun"]);
    assert_eq!(host_paths(pod, installer)?, ["/etc/cni/net.d"]);
    Ok(())
}

#[test]
fn the_configurations_in_it_are_json() -> Result<()> {
    let configmap = shipped("ConfigMap")?;
    let part = |key: &str| -> Result<Value> {
        let text = configmap["data"][key].as_str().with_context(|| format!("the ConfigMap has no {key}"))?;
        serde_json::from_str(text).with_context(|| format!("{key} is not JSON"))
    };
    let net = part("net-conf.json")?;
    assert_eq!(net["Backend"], json!({ "Type": "vxlan" }));
    assert_eq!(net["Network"], json!("10.244.0.0/16"));
    let cni = part("cni-conf.json")?;
    assert_eq!(cni["plugins"][0]["type"], json!("flannel"));
    assert_eq!(cni["plugins"][1]["type"], json!("portmap"));
    Ok(())
}

#[test]
fn its_role_reads_nodes_and_patches_their_status() -> Result<()> {
    let role = shipped("ClusterRole")?;
    assert_eq!(
        role["rules"],
        json!([
            { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
            { "apiGroups": [""], "resources": ["events"], "verbs": ["create"] },
        ])
    );
    Ok(())
}

fn shipped(kind: &str) -> Result<Value> {
    documents(&std::fs::read_to_string(SHIPPED_MANIFEST)?)?
        .into_iter()
        .find(|document| document["kind"] == kind)
        .with_context(|| format!("no {kind} in {SHIPPED_MANIFEST}"))
}

fn documents(text: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(text)?)
}

/// The host's paths that `container` sees, in the order of its mounts.
fn host_paths<'a>(pod: &'a Value, container: &'a Value) -> Result<Vec<&'a str>> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let mounted = |mount: &Value| volumes.iter().find(|volume| volume["name"] == mount["name"]);
    Ok(mounts.iter().filter_map(mounted).filter_map(|volume| volume["hostPath"]["path"].as_str()).collect())
}
