//! `flanneld cp`: copies a file, such as the CNI plugin out of the image to where the runtime looks for it. It is what the
//! init containers of flannel's manifests call, and answers to its own name in the image.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use super::output::Output;
use super::{Outcome, Verb};
use crate::adapter::file;

/// Copy a file in one step, with its mode, as init containers of flannel's manifests do
#[derive(Debug, Parser)]
#[command(name = "cp")]
pub(super) struct Cp {
    #[command(flatten)]
    output: Output,
    /// Accepted, as a file that is there is replaced anyway
    #[arg(short, long)]
    force: bool,
    /// The file to copy, such as /flannel
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Its new path, or the folder that it goes into, such as /opt/cni/bin/flannel
    #[arg(value_name = "TARGET")]
    target: PathBuf,
}

impl Verb for Cp {
    /// Somebody may be running the file that is replaced, and goes on with the old one.
    fn exec(self) -> Result<Outcome> {
        let Self { output, force: _, source, mut target } = self;
        if target.is_dir() {
            target.push(source.file_name().with_context(|| format!("{} is no file", source.display()))?);
        }
        file::copy(&source, &target)?;
        let (from, to) = (source.display().to_string(), target.display().to_string());
        output
            .print(&json!({ "source": from, "target": to }), |_| Ok(format!("{to} is a copy of {from}")))?;
        Ok(Outcome::Fine)
    }
}
