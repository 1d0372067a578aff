//! The objects that rows make.

use serde_json::{Value, json};

use crate::images::AGNHOST;

/// Everything of the suite is in here.
pub(crate) const NAMESPACE: &str = "loden-e2e";

pub(crate) fn namespace() -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } })
}

fn netexec(arguments: &[&str]) -> Value {
    let command: Vec<&str> = ["netexec"].iter().chain(arguments).copied().collect();
    json!({
        "name": "netexec",
        "image": AGNHOST,
        "imagePullPolicy": "Never",
        "args": command,
    })
}

/// One pod per node that answers at 8080 (HTTP) and 8081 (UDP), or in the node's own network at `port`.
pub(crate) fn everywhere(name: &str, host_port: Option<u16>) -> Value {
    let port = format!("--http-port={}", host_port.unwrap_or(8080));
    // It calls itself healthy only once it serves datagrams; in the node's network that port must be another.
    let arguments: Vec<&str> = if host_port.is_some() { vec![&port, "--udp-port=8069"] } else { vec![&port] };
    let mut container = netexec(&arguments);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/healthz", "port": host_port.unwrap_or(8080) }, "periodSeconds": 1 });
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "updateStrategy": { "rollingUpdate": { "maxUnavailable": "100%" } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": {
                    "hostNetwork": host_port.is_some(),
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                },
            },
        },
    })
}

/// A number of pods anywhere.
pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    let mut container = netexec(&["--http-port=8080"]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container] },
            },
        },
    })
}

/// One pod on one node; `host_port` leads to its HTTP port.
pub(crate) fn pod_on(name: &str, node: &str, host_port: Option<u16>) -> Value {
    let mut container = netexec(&["--http-port=8080"]);
    if let Some(host_port) = host_port {
        container["ports"] = json!([{ "containerPort": 8080, "hostPort": host_port }]);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
        "spec": { "nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container] },
    })
}

/// A Service of the pods labelled `app`; `more` goes into its spec.
pub(crate) fn service(name: &str, app: &str, more: &Value) -> Value {
    let mut spec = json!({
        "selector": { "app": app },
        "ports": [
            { "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" },
            { "name": "udp", "port": 90, "targetPort": 8081, "protocol": "UDP" },
        ],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec })
}

/// A reverse proxy (tinyproxy) on one node, which sends everything to `target`.
pub(crate) fn proxy_on(name: &str, node: &str, target: &str) -> Value {
    let config = format!("Port 8080\nReverseOnly Yes\nReversePath \"/\" \"http://{target}/\"\n");
    let command = format!("printf '%s' '{config}' > /tmp/proxy.conf; exec tinyproxy -d -c /tmp/proxy.conf");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "proxy",
                "image": AGNHOST,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", command],
            }],
        },
    })
}
