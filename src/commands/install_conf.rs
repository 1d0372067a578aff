//! `flanneld install-conf`: puts a CNI configuration where the kubelet reads it. It is the helper of flannel's image, and
//! answers to its own name there.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde::de::IgnoredAny;
use serde_json::json;

use super::output::Output;
use super::{Outcome, Verb};
use crate::adapter::file;

/// A CNI configuration has some hundred bytes.
const LIMIT: u64 = 1 << 20;

/// Copy a CNI configuration to where the kubelet reads it, in one step
#[derive(Debug, Parser)]
#[command(name = "install-conf")]
pub(super) struct InstallConf {
    #[command(flatten)]
    output: Output,
    /// The configuration, from a ConfigMap
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The file to replace, such as /etc/cni/net.d/10-flannel.conflist
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

impl Verb for InstallConf {
    /// Replaces the target in one step, so that the kubelet never sees a part of it. What is no JSON would take the node
    /// out of service, so then the target stays as it is.
    fn exec(self) -> Result<Outcome> {
        let Self { output, source, target } = self;
        let text = file::read(&source, LIMIT)?;
        let (from, to) = (source.display().to_string(), target.display().to_string());
        let _: IgnoredAny = serde_json::from_str(&text)
            .with_context(|| format!("{from} is not JSON; correct it, {to} stays as it is"))?;
        file::replace(&target, &text)?;
        output
            .print(&json!({ "source": from, "target": to }), |_| Ok(format!("{to} is a copy of {from}")))?;
        Ok(Outcome::Fine)
    }
}
