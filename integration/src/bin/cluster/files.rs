//! The configuration of every daemon of a node, and its command line.

use anyhow::{Context, Result};
use integration::apiserver::folder;
use serde_json::{Value, json};

use crate::images::PAUSE;
use crate::spec::{self, DNS, Spec};

const ETC: &str = "/etc/kubernetes";

fn program(module: &str, name: &str) -> Result<String> {
    Ok(folder(module)?.join(name).display().to_string())
}

fn words(program: String, arguments: &[&str]) -> Vec<String> {
    std::iter::once(program).chain(arguments.iter().map(|&argument| argument.to_owned())).collect()
}

pub(crate) fn containerd_command() -> Result<Vec<String>> {
    let program = program("containerd", "containerd")?;
    // It looks for its shim on PATH.
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", folder("containerd")?.display());
    Ok(words("/usr/bin/env".to_owned(), &[&path, &program, "--config", &format!("{ETC}/containerd.toml")]))
}

pub(crate) fn import_command() -> Result<Vec<String>> {
    let ctr = program("containerd", "ctr")?;
    let script = "for archive in /opt/loden/*.tar; do \"$0\" --namespace k8s.io images import \"$archive\" || exit 1; done";
    Ok(words("/bin/sh".to_owned(), &["-c", script, &ctr]))
}

pub(crate) fn kubelet_command(spec: &Spec, node: &str) -> Result<Vec<String>> {
    let number = spec.numbers().find(|number| spec::name(*number) == node).context("no such node")?;
    let arguments = [
        format!("--config={ETC}/kubelet.json"),
        format!("--kubeconfig={ETC}/kubelet.conf"),
        format!("--hostname-override={node}"),
        format!("--node-ip={}", spec.node_ips(number)),
    ];
    Ok(std::iter::once(program("kubernetes", "kubelet")?).chain(arguments).collect())
}

pub(crate) fn proxy_command() -> Result<Vec<String>> {
    Ok(words(program("kubernetes", "kube-proxy")?, &[&format!("--config={ETC}/kube-proxy.json")]))
}

pub(crate) fn flanneld_command() -> Vec<String> {
    let kubeconfig = format!("--kubeconfig-file={ETC}/flannel.conf");
    let arguments =
        ["--kube-subnet-mgr", &kubeconfig, "--ip-masq", "--healthz-ip=127.0.0.1", "--healthz-port=8081"];
    words("/opt/loden/flanneld".to_owned(), &arguments)
}

pub(crate) fn containerd_config() -> Result<String> {
    let runc = program("userland", "runc")?;
    let (plugins, flannel) = (folder("cni-plugins")?, folder("cni-flannel")?);
    let (plugins, flannel) = (plugins.display(), flannel.display());
    Ok(format!(
        r#"version = 3
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.blockfile"]
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE nobody may lower the score with which the kernel chooses what to end.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{plugins}", "{flannel}"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{runc}"
      SystemdCgroup = false
"#
    ))
}

pub(crate) fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": false },
            "x509": { "clientCAFile": format!("{ETC}/ca.crt") },
        },
        "authorization": { "mode": "AlwaysAllow" },
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        "oomScoreAdj": 0,
        "failSwapOn": false,
        // A machine that builds and tests is short of disk now and then; that is not what is tested here.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%" },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "nodeStatusUpdateFrequency": "5s",
    })
}

pub(crate) fn proxy_config(spec: &Spec, node: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": spec.proxy,
        "clusterCIDR": spec.pod_cidrs(),
        "hostnameOverride": node,
        "clientConnection": { "kubeconfig": format!("{ETC}/kube-proxy.conf") },
        "oomScoreAdj": 0,
        // The size of the connection table is the machine's, and not ours to set.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}
