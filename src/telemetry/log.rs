//! Logs on standard error, as text or JSON; the filter can be changed while the daemon runs.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;

use anyhow::{Context, Result};
use tracing::error;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the filter of the running daemon.
#[derive(Debug, Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

/// Starts logging. `filter` is a `tracing` filter such as `info` or `loden=debug,warn`.
pub fn init(filter: &str, json: bool) -> Result<LogControl> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    } else {
        registry
            .with(fmt::layer().with_ansi(colour).with_target(false).with_writer(std::io::stderr))
            .try_init()
    }
    .context("logging was started twice")?;
    std::panic::set_hook(Box::new(panicked));
    Ok(LogControl(handle))
}

/// A panic goes where everything else is logged, and in the same form. Whose it was, the watch over tasks says.
fn panicked(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    error!(at, thread = std::thread::current().name(), backtrace, "panic: {message}");
}

impl LogControl {
    /// Puts another filter in force.
    pub fn set(&self, filter: &str) -> Result<()> {
        self.0.reload(parse(filter)?).context("logging has ended")
    }
}

/// Libraries say little that helps, and the API client's warnings repeat ours; whoever wants them names them, as in
/// `debug,rustls=debug`.
const LIBRARIES: &str =
    "kube_client=error,hyper=warn,hyper_util=warn,rustls=warn,tower=warn,netlink_proto=warn";

fn parse(filter: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(format!("{LIBRARIES},{filter}")).with_context(|| {
        format!("log filter {filter:?}: use error, warn, info, debug, trace or e.g. loden=debug")
    })
}
