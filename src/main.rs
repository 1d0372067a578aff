//! The `flanneld` binary: parse, run, turn the outcome into an exit status.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use loden::adapter::{descriptors, runtime};
use loden::commands::{self, Outcome};
use loden::config::{self, Command, LogFormat, Parsed, Run};
use loden::{daemon, telemetry};

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let Parsed { command, warnings } =
        match config::parse(std::env::args_os(), &env, commands::clap_commands()) {
            Ok(parsed) => parsed,
            Err(exit) => {
                say(exit.stderr, &exit.text);
                return ExitCode::from(exit.code);
            }
        };
    match command {
        Command::Run(run) => serve(*run, &warnings),
        Command::Verb(name, matches) => match commands::run(&name, &matches) {
            Ok(Outcome::Fine) => ExitCode::SUCCESS,
            Ok(Outcome::Found) => ExitCode::from(1),
            Err(error) => {
                say(true, &format!("flanneld: {error:#}"));
                ExitCode::from(2)
            }
        },
    }
}

fn serve(run: Run, warnings: &[String]) -> ExitCode {
    let log = match telemetry::log::init(run.args.log_filter(), run.args.log_format == LogFormat::Json) {
        Ok(log) => log,
        Err(error) => {
            say(true, &format!("flanneld: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = descriptors::raise_limit() {
        tracing::warn!("{error:#}");
    }
    match catch_unwind(AssertUnwindSafe(|| runtime::block_on(daemon::run(run, log)))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            // The log is on standard error too; once is enough, and in the form that was asked for.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        // The log has it already.
        Err(_) => ExitCode::FAILURE,
    }
}

fn say(stderr: bool, text: &str) {
    // Nobody is left to tell when the reader of a pipe is gone.
    let _ =
        if stderr { writeln!(std::io::stderr(), "{text}") } else { writeln!(std::io::stdout(), "{text}") };
}
