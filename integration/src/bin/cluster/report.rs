//! A table that grows row by row: what was claimed, whether it held, what was seen.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use console::style;
use integration::wait;

/// How a row ended.
pub(crate) enum Outcome {
    /// It held; what was seen.
    Held(String),
    /// It did not apply to this cluster; why, and what would make it apply.
    Pending(String),
}

/// The rows so far.
pub(crate) struct Report {
    begun: Instant,
    held: usize,
    pending: usize,
    failures: Vec<(String, String)>,
}

impl Report {
    pub(crate) fn new(head: impl fmt::Display) -> Self {
        line(&format!("\n  {head}\n"));
        Self { begun: Instant::now(), held: 0, pending: 0, failures: Vec::new() }
    }

    /// Runs one row.
    pub(crate) fn row(&mut self, claim: &str, check: impl FnOnce() -> Result<Outcome>) {
        let begun = Instant::now();
        let outcome = check();
        self.settled(claim, begun.elapsed(), outcome);
    }

    /// Adds a row that was run elsewhere.
    pub(crate) fn settled(&mut self, claim: &str, took: Duration, outcome: Result<Outcome>) {
        let (mark, detail) = match outcome {
            Ok(Outcome::Held(seen)) => {
                self.held += 1;
                (style("✔").green(), seen)
            }
            Ok(Outcome::Pending(why)) => {
                self.pending += 1;
                (style("·").dim(), format!("pending: {why}"))
            }
            Err(error) => {
                let all = format!("{error:#}");
                let first = all.lines().next().unwrap_or_default().to_owned();
                self.failures.push((claim.to_owned(), all));
                (style("✘").red(), first)
            }
        };
        line(&format!("  {mark} {claim:<58} {:>8}  {detail}", wait::human(took)));
    }

    /// Prints what failed in full, and a verdict.
    pub(crate) fn close(self) -> ExitCode {
        for (claim, why) in &self.failures {
            line(&format!("\n  {}: {why}", style(claim).red().bold()));
        }
        let Self { held, pending, failures, begun } = self;
        let waiting = if pending == 0 { String::new() } else { format!(", {pending} pending") };
        let verdict =
            format!("{held} held, {} failed{waiting}, in {}", failures.len(), wait::human(begun.elapsed()));
        line(&format!("\n  {verdict}\n"));
        if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn line(text: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
