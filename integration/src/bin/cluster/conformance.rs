//! Upstream's own tests of the network, from their own binary, on the running cluster.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::apiserver::folder;
use serde_json::Value;

use crate::enter::Kubectl;
use crate::report::{Outcome, Report};
use crate::spec::Layout;

/// What every network plugin is held to.
pub(crate) const FOCUS: &str = r"\[sig-network\].*\[Conformance\]";
/// What no network plugin is held to: a protocol that few kernels have.
pub(crate) const SKIP: &str = "SCTP";
/// Specs that run at the same time; they mostly wait.
const PROCESSES: &str = "6";

/// # Errors
/// When no cluster is up, or the tests did not run at all.
pub(crate) fn run(layout: &Layout, focus: &str, skip: &str) -> Result<ExitCode> {
    let spec = layout.spec()?;
    let kubectl = Kubectl::new(layout)?;
    let programs = folder("kubernetes")?;
    let results = layout.dir.join("conformance.json");
    let log = layout.logs().join("conformance.log");
    let _ = std::fs::remove_file(&results);
    let mut report = Report::new(format_args!("conformance {focus}: {spec}"));
    let mut child = kubectl
        .ns()
        .command(folder("ginkgo")?.join("ginkgo"))
        .args(["run", "--no-color", "--keep-going", "--timeout=1h", "--procs", PROCESSES])
        .arg(format!("--focus={focus}"))
        .arg(format!("--skip={skip}"))
        .arg(format!("--output-dir={}", layout.dir.display()))
        .arg("--json-report=conformance.json")
        .arg(programs.join("e2e.test"))
        .arg("--")
        .arg("--provider=skeleton")
        .arg(format!("--kubeconfig={}", layout.kubeconfig().display()))
        .arg(format!("--kubectl-path={}", folder("kube-apiserver")?.join("kubectl").display()))
        .arg(format!("--num-nodes={}", spec.nodes))
        .args(["--disable-log-dump", "--allowed-not-ready-nodes=0"])
        .env("TMPDIR", layout.dir.join("tmp"))
        .env("HOME", layout.dir.join("tmp"))
        .log_to(std::fs::File::create(&log)?)
        .spawn()?;
    let status = child.wait()?;
    let ran = table(&mut report, &results).with_context(|| {
        format!("the tests ended with {status} and left no results; see {}\n{}", log.display(), end_of(&log))
    })?;
    ensure!(ran > 0, "no test matches {focus}");
    Ok(report.close())
}

/// One row per test that was chosen.
fn table(report: &mut Report, results: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(results).with_context(|| results.display().to_string())?;
    let suites: Value = serde_json::from_str(&text)?;
    let specs = suites[0]["SpecReports"].as_array().context("a report without tests")?;
    let mut ran = 0;
    for spec in specs {
        let state = spec["State"].as_str().unwrap_or_default();
        // One that says why it does not run was chosen; the others of those not run were not.
        let chosen = state != "skipped" || spec["Failure"]["Message"].is_string();
        if spec["LeafNodeType"] != "It" || state == "pending" || !chosen {
            continue;
        }
        ran += 1;
        let took = Duration::from_nanos(spec["RunTime"].as_u64().unwrap_or_default());
        report.settled(&short(spec), took, outcome(spec, state));
    }
    Ok(ran)
}

fn outcome(spec: &Value, state: &str) -> Result<Outcome> {
    if state == "passed" {
        let attempts = spec["NumAttempts"].as_u64().unwrap_or(1);
        return Ok(Outcome::Held(if attempts > 1 {
            format!("at attempt {attempts}")
        } else {
            String::new()
        }));
    }
    let message = spec["Failure"]["Message"].as_str().unwrap_or("no message");
    if state == "skipped" {
        return Ok(Outcome::Pending(message.to_owned()));
    }
    bail!("{state}: {message}")
}

/// A test's name without what all of them have.
fn short(spec: &Value) -> String {
    let containers = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let parts = containers.filter_map(Value::as_str).chain(spec["LeafNodeText"].as_str());
    let name = parts.collect::<Vec<_>>().join(" ");
    name.replace("[sig-network] ", "").replace(" [Conformance]", "").replace(" [NodeConformance]", "")
}

fn end_of(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
