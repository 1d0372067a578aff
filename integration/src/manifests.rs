//! The manifests that we ship, as kustomize and Helm make them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::apiserver::folder;

/// Everything that can be applied, and the chart.
pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// What an overlay makes of the shipped base with these components and nothing else.
///
/// # Errors
/// What kubectl said.
pub fn kustomize(components: &[&str]) -> Result<String> {
    let dir = tempfile::tempdir()?;
    // kustomize takes only relative paths.
    run(Command::new("cp").arg("-a").arg(SHIPPED).arg(dir.path().join("manifests")))?;
    let overlay = dir.path().join("overlay");
    std::fs::create_dir(&overlay)?;
    let components: Vec<String> =
        components.iter().map(|name| format!("../manifests/components/{name}")).collect();
    let kustomization = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../manifests"],
        "components": components,
    });
    std::fs::write(overlay.join("kustomization.yaml"), kustomization.to_string())?;
    run(Command::new(folder("kube-apiserver")?.join("kubectl")).arg("kustomize").arg(&overlay))
}

/// What Helm makes of the chart in the folder `chart` for a release in `namespace`, with these values as JSON or YAML.
///
/// # Errors
/// What Helm said.
pub fn chart(chart: &Path, namespace: &str, values: &Value) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("values.yaml");
    std::fs::write(&file, values.to_string())?;
    run(Command::new(folder("helm")?.join("helm")).arg(chart).arg(namespace).arg(&file))
}

/// The objects in a text of several YAML documents.
///
/// # Errors
/// When it is no YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The first object of a kind.
///
/// # Errors
/// When there is none.
pub fn find<'d>(documents: &'d [Value], kind: &str) -> Result<&'d Value> {
    documents.iter().find(|document| document["kind"] == kind).with_context(|| format!("there is no {kind}"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
