//! Programs that this tool runs.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a program whose output people see.
///
/// # Errors
/// When it is not there, or ends otherwise than with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// What a program prints on its standard output.
///
/// # Errors
/// As [`run`], with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {}", output.status, said.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no text"))
}
