//! The `flanneld` binary: parse, run, turn the outcome into an exit status.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use loden::config::{self, Command, LogFormat, Parsed, Run};
use loden::{adapter, commands, daemon, telemetry};

/// How long files that are being written may take once the daemon has ended.
const LAST_WRITES: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let Parsed { command, warnings } = match config::parse(std::env::args_os(), &env) {
        Ok(parsed) => parsed,
        Err(exit) => {
            say(exit.stderr, &exit.text);
            return ExitCode::from(exit.code);
        }
    };
    let outcome = match command {
        Command::Run(run) => return serve(*run, &warnings),
        Command::Routes(args) => commands::routes::routes(&args).map(|text| say(false, &text)),
        Command::Verify(args) => match commands::verify::verify(&args) {
            Ok((text, true)) => {
                say(false, &text);
                Ok(())
            }
            Ok((text, false)) => {
                say(false, &text);
                return ExitCode::FAILURE;
            }
            Err(error) => Err(error),
        },
        Command::LogLevel(args) => commands::log_level(&args).map(|text| say(false, &text)),
        Command::InstallConf(args) => commands::install_conf(&args).map(|text| say(false, &text)),
        Command::Cleanup(args) => block_on(commands::cleanup(&args)).map(|text| say(false, &text)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure(&error),
    }
}

fn serve(run: Run, warnings: &[String]) -> ExitCode {
    let log = match telemetry::log::init(run.args.log_filter(), run.args.log_format == LogFormat::Json) {
        Ok(log) => log,
        Err(error) => return failure(&error),
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = adapter::descriptors::raise_limit() {
        tracing::warn!("{error:#}");
    }
    match catch_unwind(AssertUnwindSafe(|| block_on(daemon::run(run, log)))) {
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

fn failure(error: &anyhow::Error) -> ExitCode {
    say(true, &format!("flanneld: {error:#}"));
    ExitCode::FAILURE
}

/// The control plane is one thread, and one for each watch of the API server: it waits most of the time, and nothing in it
/// can race.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, future);
    // A file system that hangs, which is what the runtime's own threads may wait for, does not hold up the end.
    runtime.shutdown_timeout(LAST_WRITES);
    outcome
}

fn say(stderr: bool, text: &str) {
    // Nobody is left to tell when the reader of a pipe is gone.
    let _ =
        if stderr { writeln!(std::io::stderr(), "{text}") } else { writeln!(std::io::stdout(), "{text}") };
}
