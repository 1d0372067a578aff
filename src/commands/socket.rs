//! The flags that say which daemon is meant, and how it is asked.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::adapter::control;
use crate::config::SUBNET_FILE;
use crate::view::Request;

/// Whose run files.
#[derive(Debug, Clone, Args)]
pub(super) struct RunFiles {
    /// The daemon's --subnet-file: its socket lies beside it
    #[arg(long, value_name = "PATH", default_value = SUBNET_FILE)]
    pub(super) subnet_file: PathBuf,
}

/// Which daemon to ask, and how long to wait.
#[derive(Debug, Clone, Args)]
pub(super) struct Socket {
    #[command(flatten)]
    files: RunFiles,
    /// Seconds that the daemon may be silent
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

impl Socket {
    /// The daemon's whole answer.
    pub(super) fn ask(&self, request: &Request) -> Result<Value> {
        control::ask(&control::path(&self.files.subnet_file), self.timeout, request)?.whole()
    }
}

/// `5` or `5s`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().ok().filter(|seconds| *seconds > 0);
    number.map(Duration::from_secs).ok_or_else(|| "write a whole number of seconds above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_with_and_without_unit() {
        assert_eq!((seconds("5"), seconds("5s")), (Ok(Duration::from_secs(5)), Ok(Duration::from_secs(5))));
        for bad in ["", "s", "0", "-1", "1.5", "5m", "99999999999999999999"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
