//! How the tests of the lab run: checks in order, one after the other, on one setup that they share.
//!
//! A **suite** is one file of checks. It runs in a process of its own, because a namespace must be entered while the
//! process has one thread, and because nothing that one suite leaves behind may reach the next. A **group** is a test
//! binary that holds several suites: it runs itself again for each of them and is told what came of every check
//! ([`group`] is that side of it, `worker` the other). It takes the arguments of an ordinary test
//! (`cargo test -p integration --test kernel -- repair::`), and says at the end what was measured on the way. After a
//! check that fails the setup is built anew, so that one defect is one failure.

pub mod group;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::backends::Backend;
use crate::topology::Cluster;
use crate::wait;

pub use group::Group;

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

    /// Takes away what was remembered so far.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The checks of one file, as they are listed.
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

    /// Ends the list: the suite as a group takes it.
    pub fn checks(self) -> Checks {
        let Self { checks, needs_daemon } = self;
        let names = checks.iter().map(|(name, _)| name.clone()).collect();
        let mut setup = None;
        let run = move |number: usize, notes: &Notes| {
            let (_, check) = checks.get(number).context("no check has this number")?;
            run(&**check, &mut setup, notes)
        };
        Checks { names, needs_daemon, run: Box::new(run) }
    }
}

impl<S: Setup> Default for Suite<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the check with this number.
type Runner = Box<dyn FnMut(usize, &Notes) -> Result<()>>;

/// The checks of a suite, whatever it is that they share.
pub struct Checks {
    /// In the order in which they run.
    names: Vec<String>,
    needs_daemon: bool,
    run: Runner,
}

fn run<S: Setup>(
    check: &dyn Fn(&mut S, &Notes) -> Result<()>,
    shared: &mut Option<S>,
    notes: &Notes,
) -> Result<()> {
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
