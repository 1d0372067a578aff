//! `flanneld log-level`: another log filter for the running daemon.

use anyhow::Result;
use clap::Parser;
use serde_json::json;

use super::output::Output;
use super::socket::Socket;
use super::{Outcome, Verb};
use crate::config::check_log_filter;
use crate::view::Request;

/// Change the log level of the running daemon
#[derive(Debug, Parser)]
#[command(name = "log-level")]
pub(super) struct LogLevel {
    #[command(flatten)]
    socket: Socket,
    #[command(flatten)]
    output: Output,
    /// A level, or levels by module, such as info,loden::reconcile=debug
    #[arg(value_name = "FILTER", value_parser = filter)]
    filter: String,
}

fn filter(text: &str) -> Result<String, String> {
    check_log_filter(text).map(|()| text.to_owned())
}

impl Verb for LogLevel {
    fn exec(self) -> Result<Outcome> {
        let Self { socket, output, filter } = self;
        socket.ask(&Request::LogLevel { filter: filter.clone() })?;
        output.print(&json!({ "filter": filter }), |_| Ok(format!("log level is now {filter}")))?;
        Ok(Outcome::Fine)
    }
}
