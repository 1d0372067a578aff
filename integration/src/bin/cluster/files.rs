//! The configuration of every daemon of a node, and its command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use integration::apiserver::folder;
use serde_json::{Value, json};

use crate::images::PAUSE;
use crate::init::SUBNET_ENV;
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
    bin_dirs = ["/opt/cni/bin"]
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

/// The chain of plugins that flannel's own plugin would run for this subnet.env.
pub(crate) fn conflist(spec: &Spec, subnet_env: &str) -> Result<Value> {
    let value = |key: &str| {
        let found = subnet_env.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.with_context(|| format!("{SUBNET_ENV} has no {key}"))
    };
    let mut ranges = vec![json!([{ "subnet": subnet(value("FLANNEL_SUBNET")?)? }])];
    let mut routes = vec![json!({ "dst": value("FLANNEL_NETWORK")? })];
    if spec.dual {
        ranges.push(json!([{ "subnet": subnet(value("FLANNEL_IPV6_SUBNET")?)? }]));
        routes.push(json!({ "dst": value("FLANNEL_IPV6_NETWORK")? }));
    }
    let mtu: u32 = value("FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?;
    Ok(json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "mtu": mtu,
                "hairpinMode": true,
                "isDefaultGateway": true,
                "ipMasq": false,
                "ipam": { "type": "host-local", "ranges": ranges, "routes": routes },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    }))
}

/// The network of an address with its prefix length: the file has the node's own address, host-local wants the subnet.
fn subnet(cidr: &str) -> Result<String> {
    let (address, length) = cidr.split_once('/').with_context(|| format!("`{cidr}` is no CIDR"))?;
    let length: u32 = length.parse().context("prefix length")?;
    Ok(match address.parse().with_context(|| format!("`{address}` is no address"))? {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
            format!("{}/{length}", Ipv4Addr::from_bits(ip.to_bits() & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
            format!("{}/{length}", Ipv6Addr::from_bits(ip.to_bits() & mask))
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        spec: Spec,
    }

    fn spec(args: &str) -> Spec {
        Line::parse_from(std::iter::once("up").chain(args.split_whitespace())).spec
    }

    const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\n\
                              FLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:3::1/64\n\
                              FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn a_subnet_has_no_host_bits() {
        assert_eq!(subnet("10.244.3.1/24").unwrap(), "10.244.3.0/24");
        assert_eq!(subnet("10.244.3.1/32").unwrap(), "10.244.3.1/32");
        assert_eq!(subnet("10.244.3.1/0").unwrap(), "0.0.0.0/0");
        assert_eq!(subnet("fd00:10:244:3::1/64").unwrap(), "fd00:10:244:3::/64");
        assert!(subnet("10.244.3.1").is_err() && subnet("x/24").is_err());
    }

    #[test]
    fn plugins_get_what_subnet_env_says() {
        let chain = conflist(&spec(""), SUBNET_ENV).unwrap();
        let bridge = &chain["plugins"][0];
        assert_eq!(bridge["mtu"], 1472);
        assert_eq!(bridge["ipam"]["ranges"], json!([[{ "subnet": "10.244.3.0/24" }]]));
        assert_eq!(bridge["ipam"]["routes"], json!([{ "dst": "10.244.0.0/16" }]));
        let dual = conflist(&spec("--dual"), SUBNET_ENV).unwrap();
        assert_eq!(dual["plugins"][0]["ipam"]["ranges"][1], json!([{ "subnet": "fd00:10:244:3::/64" }]));
    }

    #[test]
    fn a_key_that_is_missing_is_named() {
        let error = conflist(&spec(""), "FLANNEL_NETWORK=10.244.0.0/16\n").unwrap_err();
        assert!(error.to_string().contains("FLANNEL_SUBNET"), "{error}");
        let error = conflist(&spec("--dual"), &SUBNET_ENV.replace("IPV6_SUBNET", "X")).unwrap_err();
        assert!(error.to_string().contains("FLANNEL_IPV6_SUBNET"), "{error}");
    }
}
