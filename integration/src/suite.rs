//! How a test file of the lab runs: checks in order, one after the other, on one shared setup.
//!
//! A namespace must be entered while the process has one thread, so these files have a `main` of their own. They take
//! the arguments of an ordinary test (`cargo test -p integration --test repair -- mtu`), and say at the end what was
//! measured on the way. After a check that fails the setup is rebuilt, so that one defect is one failure.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::backends::Backend;
use crate::topology::Cluster;
use crate::{daemon, lab, wait};

/// What checks share.
pub trait Setup: Send + Sized + 'static {
    /// Builds it from nothing.
    ///
    /// # Errors
    /// When it cannot be built.
    fn build() -> Result<Self>;

    /// What helps to understand a failed check: logs.
    fn explain(&self) -> String;
}

/// Checks that need nothing but the lab.
impl Setup for () {
    fn build() -> Result<Self> {
        Ok(())
    }

    fn explain(&self) -> String {
        String::new()
    }
}

/// A check: a name, and a function that fails with an error.
type Check<S> = (String, Box<dyn Fn(&mut S, &Notes) -> Result<()> + Send>);

/// Measurements made on the way, printed after the results.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    /// Remembers one line.
    pub fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.into());
    }

    /// Remembers how long something took.
    pub fn took(&self, what: &str, took: Duration) {
        self.add(format!("{what}: {}", wait::human(took)));
    }
}

/// The checks of one file.
pub struct Suite<S> {
    checks: Vec<Check<S>>,
    needs_daemon: bool,
}

impl<S: Setup> Suite<S> {
    /// A suite that starts `flanneld`.
    pub fn new() -> Self {
        Self { checks: Vec::new(), needs_daemon: true }
    }

    /// A suite that tests the lab itself.
    pub fn without_daemon() -> Self {
        Self { checks: Vec::new(), needs_daemon: false }
    }

    /// Adds a check, to run after those added before.
    #[must_use]
    pub fn check(mut self, name: &'static str, check: fn(&mut S, &Notes) -> Result<()>) -> Self {
        self.checks.push((name.to_owned(), Box::new(check)));
        self
    }

    /// Adds a check once for each backend, whose name stands behind its own.
    #[must_use]
    pub fn each(self, name: &str, check: fn(&mut S, Backend, &Notes) -> Result<()>) -> Self {
        self.each_of(&Backend::ALL, name, check)
    }

    /// [`Suite::each`] for some of them.
    #[must_use]
    pub fn each_of(
        mut self,
        backends: &[Backend],
        name: &str,
        check: fn(&mut S, Backend, &Notes) -> Result<()>,
    ) -> Self {
        for &backend in backends {
            let run = move |setup: &mut S, notes: &Notes| check(setup, backend, notes);
            self.checks.push((format!("{name} [{backend}]"), Box::new(run)));
        }
        self
    }

    /// Runs what the command line asks for. A machine on which the lab cannot be entered is a failure, not a skip.
    pub fn main(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        if !arguments.list {
            let entered = if self.needs_daemon { daemon::binary().map(|_| ()) } else { Ok(()) };
            if let Err(error) = entered.and_then(|()| lab::enter()) {
                let _ = writeln!(std::io::stderr(), "error: these tests cannot run here: {error:#}");
                return ExitCode::FAILURE;
            }
        }
        // Order is part of a suite, and its checks share one setup.
        arguments.test_threads = Some(1);
        let notes = Notes::default();
        let shared = Arc::new(Mutex::new(None));
        let trials = self.checks.into_iter().map(|(name, check)| {
            let (shared, notes) = (Arc::clone(&shared), notes.clone());
            Trial::test(name, move || {
                run(&*check, &shared, &notes).map_err(|error| Failed::from(format!("{error:#}")))
            })
        });
        let conclusion = libtest_mimic::run(&arguments, trials.collect());
        let notes = notes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !notes.is_empty() {
            let _ = writeln!(std::io::stdout(), "measured:\n    {}\n", notes.join("\n    "));
        }
        conclusion.exit_code()
    }
}

impl<S: Setup> Default for Suite<S> {
    fn default() -> Self {
        Self::new()
    }
}

fn run<S: Setup>(
    check: &dyn Fn(&mut S, &Notes) -> Result<()>,
    shared: &Mutex<Option<S>>,
    notes: &Notes,
) -> Result<()> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out for the time of the check: what a failed or panicked check leaves behind is not used again.
    let mut setup = match shared.take() {
        Some(setup) => setup,
        None => S::build().context("the setup of this suite")?,
    };
    match check(&mut setup, notes) {
        Ok(()) => {
            *shared = Some(setup);
            Ok(())
        }
        // Without the backtrace that anyhow may carry: the chain of causes says where, and the logs say why.
        Err(error) => bail!("{error:#}\n{}", setup.explain()),
    }
}

/// A started cluster, as most suites want it.
impl Setup for Cluster {
    fn build() -> Result<Self> {
        Self::builder().start()
    }

    fn explain(&self) -> String {
        self.logs()
    }
}
