//! Where the programs come from: `KUBEBUILDER_ASSETS`, or the cache that `make -C integration/machinery` fills.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Etcd;

/// The three programs a server needs.
pub(super) struct Assets {
    pub(super) kube_apiserver: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) etcd: PathBuf,
}

impl Assets {
    pub(super) fn find(etcd: Etcd) -> Result<Self> {
        let kubernetes = folder("kube-apiserver")?;
        let etcd = match (etcd, std::env::var_os("LODEN_ETCD34")) {
            (Etcd::Current, _) => folder("etcd")?.join("etcd"),
            (Etcd::Debian34, Some(path)) => PathBuf::from(path),
            (Etcd::Debian34, None) => folder("etcd-3.4")?.join("etcd"),
        };
        let assets = Self {
            kube_apiserver: kubernetes.join("kube-apiserver"),
            kubectl: kubernetes.join("kubectl"),
            etcd,
        };
        for program in [&assets.kube_apiserver, &assets.kubectl, &assets.etcd] {
            if !program.is_file() {
                bail!(
                    "{} is missing: run `make -C integration/machinery`, or set KUBEBUILDER_ASSETS to a folder with \
                     kube-apiserver, etcd and kubectl",
                    program.display()
                );
            }
        }
        Ok(assets)
    }
}

/// Where the script that builds puts a module of `machinery/`; asking it keeps that in one place.
///
/// # Errors
/// When there is no such module.
pub fn folder(module: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("machinery/prepare");
    let output = Command::new(&script)
        .args(["--where", module])
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("{} --where {module}: {}", script.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}
