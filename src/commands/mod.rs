//! Subcommands: what serves people beside the daemon.

mod cleanup;
mod install_conf;
pub mod routes;
pub mod verify;

pub use cleanup::cleanup;
pub use install_conf::install_conf;

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::adapter::control;
use crate::config::{LogLevelArgs, SocketArgs};
use crate::view::Request;

/// The daemon may be silent for so long: `verify --repair` takes some seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemon's whole answer.
fn ask(socket: &SocketArgs, request: &Request) -> Result<Value> {
    control::ask(&control::path(&socket.subnet_file), PATIENCE, request)?.whole()
}

/// `flanneld log-level`.
pub fn log_level(args: &LogLevelArgs) -> Result<String> {
    ask(&args.socket, &Request::LogLevel { filter: args.filter.clone() })?;
    Ok(format!("log level is now {}", args.filter))
}
