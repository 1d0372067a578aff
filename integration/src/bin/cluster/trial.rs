//! Asking the daemon itself whether it takes a configuration, before a cluster is built on it.

use std::fs::File;

use anyhow::{Context, Result};
use integration::netns::Netns;
use integration::{daemon, wait};

use crate::spec::{Spec, write};

/// What the daemon says when it does not take a cluster's net-conf.json; none if it does.
pub(crate) fn refusal(spec: &Spec) -> Result<Option<String>> {
    let dir = tempfile::Builder::new().prefix("loden-trial-").tempdir()?;
    let conf = dir.path().join("net-conf.json");
    write(&conf, spec.net_conf().to_string())?;
    let log = dir.path().join("log");
    let mut child = Netns::new("trial")?
        .command(daemon::binary()?)
        .arg("--nodes-file")
        .arg(dir.path().join("none.yaml"))
        .arg("--net-config-path")
        .arg(&conf)
        .arg("--subnet-file")
        .arg(dir.path().join("flannel/subnet.env"))
        .env("NODE_NAME", "n1")
        .log_to(File::create(&log)?)
        .spawn()?;
    // One that takes the configuration goes on to wait for its Node, and says so; the other ends.
    let said = |log: &std::path::Path| std::fs::read_to_string(log).unwrap_or_default();
    let ended = wait::until("flanneld reads its configuration", || {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(!status.success()));
        }
        Ok(said(&log).contains("none.yaml").then_some(false))
    });
    let _ = child.kill();
    let _ = child.wait();
    let (refused, _) = ended.with_context(|| said(&log))?;
    Ok(refused.then(|| said(&log).lines().last().unwrap_or_default().to_owned()))
}
