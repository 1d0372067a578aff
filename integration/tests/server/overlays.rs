//! What kustomize and Helm make of what we ship: a real API server accepts each of it, and it is what it is called.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::apiserver::{ApiServer, NAMESPACE, Options};
use integration::manifests::{SHIPPED, chart, documents, find, kustomize};
use serde_json::{Value, json};

/// A server that has the namespace, so that a dry run finds it.
fn server(namespaces: &[&str]) -> Result<ApiServer> {
    let server = ApiServer::start(Options::default())?;
    for namespace in namespaces {
        server.kubectl(&["create", "namespace", namespace])?;
    }
    Ok(server)
}

/// A dry run on the server stores nothing, and here a warning is an error.
fn accepted(server: &ApiServer, rendered: &str) -> Result<()> {
    let file = server.dir().join("rendered.yaml");
    std::fs::write(&file, rendered)?;
    let file = file.to_str().context("path")?;
    let apply = ["apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", file];
    server.kubectl(&apply).map(drop)
}

/// The objects but the Namespace, which a chart does not make; configurations are compared as what they say.
fn objects(text: &str) -> Result<Vec<Value>> {
    let mut objects = documents(text)?;
    objects.retain(|object| object["kind"] != "Namespace");
    for object in &mut objects {
        for key in ["net-conf.json", "cni-conf.json"] {
            if let Some(conf) = object["data"].get_mut(key) {
                *conf = serde_json::from_str(conf.as_str().context("text")?)?;
            }
        }
    }
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    objects.sort_by_key(name);
    Ok(objects)
}

fn net_conf(objects: &[Value]) -> Result<&Value> {
    Ok(&find(objects, "ConfigMap")?["data"]["net-conf.json"])
}

fn pod(objects: &[Value]) -> Result<&Value> {
    Ok(&find(objects, "DaemonSet")?["spec"]["template"]["spec"])
}

/// The host's path of a volume.
fn host_path<'p>(pod: &'p Value, volume: &str) -> Option<&'p str> {
    let volumes = pod["volumes"].as_array()?;
    volumes.iter().find(|found| found["name"] == volume)?["hostPath"]["path"].as_str()
}

fn mounts(pod: &Value) -> Vec<&str> {
    let mounts = pod["containers"][0]["volumeMounts"].as_array();
    mounts.into_iter().flatten().filter_map(|mount| mount["mountPath"].as_str()).collect()
}

#[test]
fn every_component_is_accepted_and_changes_what_it_names() -> Result<()> {
    let server = server(&[NAMESPACE])?;
    let rendered = |components: &[&str]| -> Result<Vec<Value>> {
        let text = kustomize(components)?;
        accepted(&server, &text).with_context(|| format!("{components:?}"))?;
        objects(&text)
    };
    let plain = rendered(&[])?;
    ensure!(plain == objects(&std::fs::read_to_string(Path::new(SHIPPED).join("loden.yml"))?)?);
    ensure!(host_path(pod(&plain)?, "tun").is_none());

    let udp = rendered(&["udp"])?;
    ensure!(net_conf(&udp)?["Backend"] == json!({ "Type": "udp" }));
    ensure!(host_path(pod(&udp)?, "tun") == Some("/dev/net/tun"));
    ensure!(mounts(pod(&udp)?).contains(&"/dev/net/tun"));

    let dual = rendered(&["dual-stack"])?;
    ensure!(net_conf(&dual)?["EnableIPv6"] == true && net_conf(&dual)?["IPv6Network"] == "fd00:10:244::/56");

    let iptables = rendered(&["iptables"])?;
    ensure!(net_conf(&iptables)?["EnableNFTables"] == false);
    let rights = &pod(&iptables)?["containers"][0]["securityContext"]["capabilities"];
    ensure!(rights == &json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] }), "{rights}");

    let talos = rendered(&["talos"])?;
    ensure!(host_path(pod(&talos)?, "xtables-lock").is_none());
    ensure!(mounts(pod(&talos)?) == ["/run/flannel", "/etc/kube-flannel"], "{:?}", mounts(pod(&talos)?));

    for (component, network, bin, conf) in [
        ("k3s", "10.42.0.0/16", "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"),
        (
            "microk8s",
            "10.1.0.0/16",
            "/var/snap/microk8s/current/opt/cni/bin",
            "/var/snap/microk8s/current/args/cni-network",
        ),
    ] {
        let objects = rendered(&[component])?;
        let paths = ["cni-bin", "cni-conf"].map(|volume| host_path(pod(&objects).ok()?, volume));
        ensure!(net_conf(&objects)?["Network"] == network && paths == [Some(bin), Some(conf)], "{component}");
    }

    let routes = rendered(&["pod-routes"])?;
    let arguments = pod(&routes)?["containers"][0]["args"].as_array().context("args")?;
    ensure!(arguments.last() == Some(&json!("--pod-routes")), "{arguments:?}");
    ensure!(routes.len() == plain.len() + 2, "a role and its binding");

    // Components that change the same text do not undo each other, in either order.
    let [one, other] = [["udp", "dual-stack", "iptables"], ["iptables", "dual-stack", "udp"]]
        .map(|components| rendered(&components));
    let (one, other) = (one?, other?);
    ensure!(net_conf(&one)? == net_conf(&other)?);
    ensure!(
        net_conf(&one)?
            == &json!({
                "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56",
                "EnableNFTables": false, "Backend": { "Type": "udp" },
            }),
        "{}",
        net_conf(&one)?
    );
    Ok(())
}

#[test]
fn the_chart_makes_the_plain_manifest_and_follows_its_values() -> Result<()> {
    let server = server(&[NAMESPACE, "elsewhere"])?;
    let folder = Path::new(SHIPPED).join("chart");
    let rendered = |namespace: &str, values: &Value| -> Result<Vec<Value>> {
        let text = chart(&folder, namespace, values)?;
        accepted(&server, &text).with_context(|| values.to_string())?;
        objects(&text)
    };
    let plain = objects(&std::fs::read_to_string(Path::new(SHIPPED).join("loden.yml"))?)?;
    let default = rendered(NAMESPACE, &json!({}))?;
    for (ours, theirs) in plain.iter().zip(&default) {
        ensure!(ours == theirs, "the plain manifest has {ours:#}\nthe chart makes {theirs:#}");
    }
    ensure!(plain.len() == default.len());

    // Names and meanings are those of flannel's chart.
    let values = json!({
        "podCidr": "10.42.0.0/16",
        "podCidrv6": "fd00:10:42::/56",
        "flannel": {
            "image": { "repository": "registry.example/loden", "tag": "v1" },
            "cniBinDir": "/bin-of-mine",
            "cniConfDir": "/conf-of-mine",
            "skipCNIConfigInstallation": true,
            "enableNFTables": false,
            "args": ["--ip-masq", "--kube-subnet-mgr", "--iface=eth1"],
            "backend": "vxlan",
            "backendPort": 4789, "vni": 2, "mtu": 1400, "GBP": true, "directRouting": true,
            "healthz": { "port": 9000 },
            "tolerations": [{ "operator": "Exists" }],
            "nodeSelector": { "a": "b" },
        },
        "loden": {
            "serviceAccount": "mine",
            "annotationPrefix": "example.com/net",
            "podRoutes": true,
            "seLinuxOptions": { "type": "spc_t" },
        },
    });
    let changed = rendered("elsewhere", &values)?;
    ensure!(
        net_conf(&changed)?
            == &json!({
                "Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:42::/56",
                "EnableNFTables": false,
                "Backend": {
                    "Type": "vxlan", "Port": 4789, "VNI": 2, "MTU": 1400, "GBP": true, "DirectRouting": true,
                },
            }),
        "{}",
        net_conf(&changed)?
    );
    let pod = pod(&changed)?;
    ensure!(pod["initContainers"].as_array().map(Vec::len) == Some(1), "the configuration is left alone");
    ensure!(host_path(pod, "cni-bin") == Some("/bin-of-mine"));
    ensure!(
        pod["tolerations"] == values["flannel"]["tolerations"] && pod["nodeSelector"] == json!({ "a": "b" })
    );
    let daemon = &pod["containers"][0];
    ensure!(daemon["image"] == "registry.example/loden:v1");
    ensure!(daemon["securityContext"]["seLinuxOptions"] == json!({ "type": "spc_t" }));
    ensure!(
        daemon["args"]
            == json!([
                "--ip-masq",
                "--kube-subnet-mgr",
                "--iface=eth1",
                "--healthz-port=9000",
                "--kube-annotation-prefix=example.com/net",
                "--pod-routes",
            ]),
        "{}",
        daemon["args"]
    );
    let policy = find(&changed, "ValidatingAdmissionPolicy")?;
    let account = r#"request.userInfo.username == "system:serviceaccount:elsewhere:mine""#;
    ensure!(policy["spec"]["matchConditions"][0]["expression"] == account, "{policy:#}");
    ensure!(policy["spec"]["variables"][0]["expression"] == r#""example.com/net-""#, "{policy:#}");
    let subject = &find(&changed, "ClusterRoleBinding")?["subjects"][0];
    ensure!(subject == &json!({ "kind": "ServiceAccount", "name": "mine", "namespace": "elsewhere" }));

    let six = rendered(
        NAMESPACE,
        &json!({ "podCidr": "", "podCidrv6": "fd00::/56", "flannel": { "backend": "udp" } }),
    )?;
    ensure!(
        net_conf(&six)?
            == &json!({
                "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/56",
                "EnableNFTables": true, "Backend": { "Type": "udp" },
            }),
        "{}",
        net_conf(&six)?
    );
    ensure!(host_path(self::pod(&six)?, "tun") == Some("/dev/net/tun"));

    for (values, part) in [
        (json!({ "netpol": { "enabled": true } }), "no network policies yet"),
        (json!({ "flannel": { "backend": "wireguard" } }), "one of vxlan, udp, host-gw and alloc"),
    ] {
        let refused = chart(&folder, NAMESPACE, &values).err().context("it was taken")?;
        ensure!(refused.to_string().contains(part), "{refused:#}");
    }
    Ok(())
}
