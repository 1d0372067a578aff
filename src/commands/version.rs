//! `flanneld version`: which build this is.

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use super::output::Output;
use super::{Outcome, Verb};
use crate::adapter::control::PROTOCOL;

/// Print version, commit and features of this flanneld
#[derive(Debug, Parser)]
#[command(name = "version")]
pub(super) struct Version {
    #[command(flatten)]
    output: Output,
}

/// What is told. Field names are stable: programs read them.
#[derive(Debug, Serialize)]
struct VersionView {
    version: &'static str,
    commit: &'static str,
    /// Version of the local socket's protocol.
    protocol: u32,
    os: &'static str,
    arch: &'static str,
    /// Cargo features that it was built with.
    features: Vec<&'static str>,
}

impl Verb for Version {
    fn exec(self) -> Result<Outcome> {
        let [version, commit] = crate::VERSION;
        let features = if cfg!(feature = "fault-points") { vec!["fault-points"] } else { Vec::new() };
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let view = VersionView { version, commit, protocol: PROTOCOL, os, arch, features };
        let with = if view.features.is_empty() { "none".to_owned() } else { view.features.join(", ") };
        self.output.print(&view, |_| {
            Ok(format!(
                "flanneld (loden) {version}\ncommit {commit}\nbuilt for {os} on {arch}\nfeatures {with}\n\
                 local socket version {PROTOCOL}"
            ))
        })?;
        Ok(Outcome::Fine)
    }
}
