//! Command lines that parse but cannot be run.

use std::path::PathBuf;

use super::{DaemonArgs, Run};

/// Where leases come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseSource {
    /// The Kubernetes API (`--kube-subnet-mgr`).
    Kubernetes,
    /// A watched file of Node manifests (`--nodes-file`).
    NodesFile(PathBuf),
}

/// Flags that are right one by one and wrong together. The daemon exits 1 with this text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Neither source of leases was given, which to flannel means etcd.
    #[error(
        "no source of leases: give --kube-subnet-mgr (the Nodes of the Kubernetes API) or --nodes-file PATH (a file \
         such as `kubectl get nodes -o yaml` prints). flannel would read etcd now; etcd is not supported yet. To move: \
         copy the value of the etcd key {etcd_prefix}/config into {net_config_path} and start with one of the two"
    )]
    NoLeaseSource {
        /// `--etcd-prefix`, where flannel kept its configuration.
        etcd_prefix: String,
        /// `--net-config-path`, where it belongs now.
        net_config_path: PathBuf,
    },
    /// Both sources were given.
    #[error(
        "both --kube-subnet-mgr and --nodes-file {} are given, and leases have one source: remove one of them \
         (also from the environment: FLANNELD_KUBE_SUBNET_MGR, FLANNELD_NODES_FILE)",
        nodes_file.display()
    )]
    TwoLeaseSources {
        /// `--nodes-file`.
        nodes_file: PathBuf,
    },
    /// The file source cannot tell which of its Nodes we are.
    #[error(
        "NODE_NAME is not set: set it to the metadata.name of this machine's Node, so that its own lease can be found \
         (in a DaemonSet: valueFrom fieldRef spec.nodeName)"
    )]
    NoNodeName,
}

impl DaemonArgs {
    /// The one source of leases that was asked for.
    ///
    /// # Errors
    ///
    /// None was given, or both.
    pub fn lease_source(&self) -> Result<LeaseSource, ConfigError> {
        match (self.kube_subnet_mgr, &self.nodes_file) {
            (true, None) => Ok(LeaseSource::Kubernetes),
            (false, Some(path)) => Ok(LeaseSource::NodesFile(path.clone())),
            (true, Some(path)) => Err(ConfigError::TwoLeaseSources { nodes_file: path.clone() }),
            (false, None) => Err(ConfigError::NoLeaseSource {
                etcd_prefix: self.etcd.prefix.clone(),
                net_config_path: self.net_config_path.clone(),
            }),
        }
    }
}

impl Run {
    /// The name of our own Node.
    ///
    /// # Errors
    ///
    /// `NODE_NAME` is not set.
    pub fn own_node(&self) -> Result<&str, ConfigError> {
        self.node_name.as_deref().ok_or(ConfigError::NoNodeName)
    }
}
