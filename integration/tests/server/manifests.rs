//! What we ship is accepted by a real API server and asks for no more than it needs.

use anyhow::{Context, Result};
use integration::apiserver::{ApiServer, NAMESPACE, Options, SERVICE_ACCOUNT, SHIPPED_MANIFEST};
use integration::manifests::{documents, find};
use serde_json::{Value, json};

#[test]
fn a_real_api_server_accepts_it() -> Result<()> {
    let server = ApiServer::start(Options::default())?;
    // A dry run stores nothing, so what lives in a namespace is refused unless the namespace is there already.
    server.kubectl(&["create", "namespace", NAMESPACE])?;
    let printed = server.kubectl(&["apply", "--server-side", "--dry-run=server", "-f", SHIPPED_MANIFEST])?;
    let expected = [
        "namespace/loden-system",
        "serviceaccount/loden",
        "clusterrole.rbac.authorization.k8s.io/loden",
        "clusterrolebinding.rbac.authorization.k8s.io/loden",
        "validatingadmissionpolicy.admissionregistration.k8s.io/loden-own-node",
        "validatingadmissionpolicybinding.admissionregistration.k8s.io/loden-own-node",
        "configmap/loden-config",
        "daemonset.apps/loden",
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
    let stored = server.kubectl(&["get", "daemonset", "loden", "-n", NAMESPACE, "-o", "json"])?;
    let daemonset: Value = serde_json::from_str(&stored)?;
    let pod = &daemonset["spec"]["template"]["spec"];

    assert_eq!(pod["hostNetwork"], json!(true));
    assert_eq!(pod["hostPID"], Value::Null, "hostPID is not needed");
    assert_eq!(pod["hostIPC"], Value::Null, "hostIPC is not needed");
    assert_eq!(pod["serviceAccountName"], json!(SERVICE_ACCOUNT));
    assert_eq!(pod["priorityClassName"], json!("system-node-critical"));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));

    let daemon = &pod["containers"][0];
    let [plugin, installer] = [0, 1].map(|number| &pod["initContainers"][number]);
    assert_eq!(pod["containers"].as_array().map(Vec::len), Some(1));
    assert_eq!(pod["initContainers"].as_array().map(Vec::len), Some(2));
    for container in [daemon, plugin, installer] {
        let security = &container["securityContext"];
        let name = &container["name"];
        assert_ne!(security["privileged"], json!(true), "{name} is privileged");
        assert_eq!(security["allowPrivilegeEscalation"], json!(false), "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], json!(true), "{name}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
    }
    assert_eq!(daemon["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    for container in [plugin, installer] {
        assert_eq!(container["securityContext"]["capabilities"]["add"], Value::Null);
    }
    assert_eq!(
        daemon["env"],
        json!([{
            "name": "NODE_NAME",
            "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "spec.nodeName" } },
        }])
    );

    // The CNI folders are the init containers' business only, and the tun device is the component udp's.
    assert_eq!(host_paths(pod, daemon)?, ["/run/flannel", "/run/xtables.lock"]);
    assert_eq!(host_paths(pod, plugin)?, ["/opt/cni/bin"]);
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

/// Objects of flannel's released manifest bear these names, and applying ours must not change them.
#[test]
fn no_name_in_it_is_flannels() -> Result<()> {
    for object in documents(&std::fs::read_to_string(SHIPPED_MANIFEST)?)? {
        let metadata = &object["metadata"];
        for name in [&metadata["name"], &metadata["namespace"]].into_iter().filter_map(Value::as_str) {
            assert!(name.starts_with("loden"), "{} is {name}", object["kind"]);
        }
    }
    Ok(())
}

fn shipped(kind: &str) -> Result<Value> {
    find(&documents(&std::fs::read_to_string(SHIPPED_MANIFEST)?)?, kind).cloned()
}

/// The host's paths that `container` sees, in the order of its mounts.
fn host_paths<'a>(pod: &'a Value, container: &'a Value) -> Result<Vec<&'a str>> {
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let mounted = |mount: &Value| volumes.iter().find(|volume| volume["name"] == mount["name"]);
    Ok(mounts.iter().filter_map(mounted).filter_map(|volume| volume["hostPath"]["path"].as_str()).collect())
}
