//! What the daemon was asked to do: command line, environment, net-conf.json, external interface.
//!
//! Everything here is a function from text and plain values to plain values: the edges read the
//! files, the environment and the kernel, and hand over what they found.

mod annotation_prefix;
mod argv;
mod cli;
mod environment;
mod error;
mod excerpt;
pub mod iface;
mod log_filter;
pub mod netconf;
mod offload;
mod values;

pub use annotation_prefix::{AnnotationPrefix, AnnotationPrefixError};
#[cfg(test)]
pub(crate) use cli::command as command_line;
pub use cli::{DaemonArgs, EtcdArgs, KlogArgs, LogFormat, SUBNET_FILE};
pub use environment::PodIdentity;
pub use error::{ConfigError, LeaseSource};
pub(crate) use excerpt::{excerpt, nearest};
pub use log_filter::check as check_log_filter;

use std::ffi::OsString;

use clap::{ArgMatches, FromArgMatches as _};

/// What the process is to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// Run the daemon: no subcommand was given.
    Run(Box<Run>),
    /// Run the subcommand of this name.
    Verb(String, ArgMatches),
}

/// Everything the daemon was told on the command line and in the environment.
#[derive(Debug, Clone)]
pub struct Run {
    /// The command line, with the environment filled in where a flag was not given.
    pub args: DaemonArgs,
    /// `NODE_NAME`: the name of our own Node.
    pub node_name: Option<String>,
    /// `POD_NAME` and `POD_NAMESPACE`: with the Kubernetes source, a way to find the node name.
    pub pod: Option<PodIdentity>,
    /// `CONT_WHEN_CACHE_NOT_READY`: go on with what is known when the first sync takes too long.
    pub continue_when_cache_not_ready: bool,
    /// All offloads but those that `LODEN_OFFLOAD_DISABLE` names.
    pub offloads: encap::offload::Features,
}

/// A successful [`parse`].
#[derive(Debug, Clone)]
pub struct Parsed {
    /// What to do.
    pub command: Command,
    /// What was accepted but deserves a log line, such as an environment value that was ignored.
    pub warnings: Vec<String>,
}

/// The process is to end now, having said `text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status: 0 for `--help` and `--version`, 2 for a command line that was not understood.
    pub code: u8,
    /// What to print, without a final line feed.
    pub text: String,
    /// Print to standard error instead of standard output.
    pub stderr: bool,
}

/// Reads a command line (program name first) in flannel's syntax, then the environment.
///
/// A flag wins over its environment variable; an environment value that cannot be used is reported
/// in [`Parsed::warnings`] and ignored, as flannel does. `env` looks one variable up; `verbs` are the subcommands.
///
/// # Errors
///
/// [`Exit`] when there is nothing to run: help, version, or a command line that was not understood.
pub fn parse(
    argv: impl IntoIterator<Item = OsString>,
    env: &impl Fn(&str) -> Option<String>,
    verbs: impl IntoIterator<Item = clap::Command>,
) -> Result<Parsed, Exit> {
    let command = cli::command(verbs);
    let mut line = argv::normalise(&command, argv::as_helper(argv));
    if let Some((flag, value)) = &line.detached {
        return Err(Exit::detached(flag, value));
    }
    let mut warnings = environment::fill(&command, &mut line, env);

    let mut matches = command.try_get_matches_from(line.args).map_err(|e| Exit::from_clap(&e))?;
    if let Some((name, matches)) = matches.remove_subcommand() {
        return Ok(Parsed { command: Command::Verb(name, matches), warnings });
    }
    let cli = cli::Cli::from_arg_matches_mut(&mut matches).map_err(|e| Exit::from_clap(&e))?;
    if cli.version {
        return Err(Exit::version());
    }
    warnings.extend(cli.daemon.warnings());
    let run = environment::identify(cli.daemon, env, &mut warnings);
    Ok(Parsed { command: Command::Run(Box::new(run)), warnings })
}

impl Exit {
    fn from_clap(error: &clap::Error) -> Self {
        use clap::error::ErrorKind;
        let help = matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
        Self {
            code: if help { 0 } else { 2 },
            text: error.render().to_string().trim_end().to_owned(),
            stderr: !help,
        }
    }

    fn detached(flag: &str, value: &str) -> Self {
        let text = format!(
            "error: --{flag} takes its value behind \"=\": write --{flag}={value}\n\nFor more information, try '--help'."
        );
        Self { code: 2, text, stderr: true }
    }

    /// flannel prints its version to standard error, and scripts read it there.
    fn version() -> Self {
        Self { code: 0, text: format!("flanneld (loden) {}", env!("CARGO_PKG_VERSION")), stderr: true }
    }
}

#[cfg(test)]
mod tests;
