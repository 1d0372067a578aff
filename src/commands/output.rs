//! How a subcommand prints what was asked for.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[value(alias = "table")]
    Text,
    /// For programs
    Json,
    /// For programs, easier to read
    Yaml,
}

/// The flags of everything that prints.
#[derive(Debug, Clone, Args)]
pub(super) struct Output {
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Do without colour; so does the environment variable NO_COLOR, and whatever is no terminal
    #[arg(long)]
    no_color: bool,
}

impl Output {
    /// Prints `told`, for people as `text` writes it, which is told whether it may use colour.
    pub(super) fn print(
        &self,
        told: &impl Serialize,
        text: impl FnOnce(bool) -> Result<String>,
    ) -> Result<()> {
        let text = match self.output {
            Format::Text => text(self.colour())?,
            Format::Json => serde_json::to_string_pretty(told).context("cannot print the answer")?,
            Format::Yaml => serde_saphyr::to_string(told).context("cannot print the answer")?,
        };
        // Nobody is left to tell when the reader of a pipe is gone.
        let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
        Ok(())
    }

    fn colour(&self) -> bool {
        // https://no-color.org: set and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        !self.no_color && !refused && std::io::stdout().is_terminal()
    }
}
