//! Subcommands: what serves people beside the daemon.

mod cleanup;
mod install_conf;
pub mod routes;
pub mod verify;

pub use cleanup::cleanup;
pub use install_conf::install_conf;

use anyhow::Result;

use crate::adapter::control::{self, Request};
use crate::config::LogLevelArgs;

/// `flanneld log-level`.
pub fn log_level(args: &LogLevelArgs) -> Result<String> {
    control::ask(&args.socket.subnet_file, &Request::LogLevel { filter: args.filter.clone() })?;
    Ok(format!("log level is now {}", args.filter))
}
