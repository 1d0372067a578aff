//! A test binary of the lab: suites by name, and the process that runs itself again for each of them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};

use super::Checks;
use super::worker::{self, Worker};
use crate::daemon;

/// The `main` of a test binary that holds these suites. Each is the name of a module with a `fn suite() -> Checks`, and
/// they run in this order.
#[macro_export]
macro_rules! group {
    ($($suite:ident),+ $(,)?) => {
        fn main() -> std::process::ExitCode {
            $crate::suite::Group::default()$(.suite(stringify!($suite), $suite::suite))+.main()
        }
    };
}

/// A suite by name, and what makes its list of checks.
type Named = (&'static str, fn() -> Checks);

/// The suites of one test binary. Made by [`crate::group!`].
#[derive(Default)]
pub struct Group {
    suites: Vec<Named>,
}

impl Group {
    /// Adds a suite, to run after those added before.
    #[must_use]
    pub fn suite(mut self, name: &'static str, checks: fn() -> Checks) -> Self {
        self.suites.push((name, checks));
        self
    }

    /// Runs what the command line asks for. A machine on which the lab cannot be entered is a failure, not a skip.
    pub fn main(self) -> ExitCode {
        let mut given = std::env::args().skip(1);
        if given.next().as_deref() == Some(worker::FLAG) {
            let name = given.next().unwrap_or_default();
            let Some((_, checks)) = self.suites.iter().find(|(suite, _)| *suite == name) else {
                return refuse(&format!("no suite of this binary is called {name:?}"));
            };
            return worker::serve(checks());
        }
        let mut arguments = Arguments::from_args();
        // Order is part of a suite, and only a process that the main thread starts lives as long as this one.
        arguments.test_threads = Some(1);
        let results = Arc::new(Mutex::new(Results::default()));
        let runs = self.choose(&mut arguments, &results);
        // Said once for all of them, where it says nothing about any one check.
        if let Some(first) = runs.iter().find(|run| run.chosen).filter(|_| !arguments.list)
            && let Err(error) = first.suite().process()
        {
            return refuse(&format!("these tests cannot run here: {error:#}"));
        }
        let conclusion = libtest_mimic::run(&arguments, runs.into_iter().map(Run::trial).collect());
        results.lock().unwrap_or_else(PoisonError::into_inner).print();
        conclusion.exit_code()
    }

    /// All checks, of which the arguments then skip those that were not asked for. `repair::mtu` asks for checks of
    /// the suite `repair` with `mtu` anywhere in their names; a filter without a suite is looked for everywhere.
    fn choose(&self, arguments: &mut Arguments, results: &Arc<Mutex<Results>>) -> Vec<Run> {
        let suites = || self.suites.iter().map(|(suite, _)| *suite);
        let filter = arguments.filter.as_deref().filter(|_| !arguments.exact);
        let part = filter.and_then(|filter| filter.split_once("::"));
        let part = part.filter(|(named, _)| suites().any(|suite| suite == *named));
        let asked = |suite: &str, run: &Run| match part {
            Some((named, words)) => suite == named && run.name.contains(words),
            None => !arguments.is_filtered_out(&Trial::test(&run.name, || Ok(()))),
        };
        let mut all = Vec::new();
        for (suite, checks) in &self.suites {
            let checks = checks();
            let needs_daemon = checks.needs_daemon;
            let running = Running { suite, needs_daemon, worker: None, results: Arc::clone(results) };
            let mut runs = Run::all(running, checks.names);
            for run in &mut runs {
                run.chosen = asked(suite, run);
            }
            if let Some(last) = runs.iter_mut().rfind(|run| run.chosen) {
                last.last = true;
            }
            all.extend(runs);
        }
        arguments.filter = None;
        arguments.exact = true;
        arguments.skip = all.iter().filter(|run| !run.chosen).map(|run| run.name.clone()).collect();
        all
    }
}

/// One check to run.
struct Run {
    /// `suite::check`.
    name: String,
    /// Its number in the suite.
    number: usize,
    /// Whether the command line asks for it.
    chosen: bool,
    /// Whether none of its suite follows that was asked for.
    last: bool,
    running: Arc<Mutex<Running>>,
}

impl Run {
    fn all(suite: Running, checks: Vec<String>) -> Vec<Self> {
        let (name, running) = (suite.suite, Arc::new(Mutex::new(suite)));
        let run = |(number, check)| Self {
            name: format!("{name}::{check}"),
            number,
            chosen: true,
            last: false,
            running: Arc::clone(&running),
        };
        checks.into_iter().enumerate().map(run).collect()
    }

    fn suite(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trial(self) -> Trial {
        Trial::test(self.name.clone(), move || {
            let mut suite = self.suite();
            let result = suite.check(self.number, self.last);
            result.map_err(|error| {
                suite.results().failed.insert(suite.suite);
                Failed::from(format!("{error:#}"))
            })
        })
    }
}

/// A suite and the process that it has at the moment.
struct Running {
    suite: &'static str,
    needs_daemon: bool,
    worker: Option<Worker>,
    results: Arc<Mutex<Results>>,
}

impl Running {
    /// The process of this suite, which is started where there is none.
    fn process(&mut self) -> Result<&mut Worker> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            // Found, or built, once for all suites.
            None if self.needs_daemon => Worker::start(self.suite, Some(daemon::binary()?))?,
            None => Worker::start(self.suite, None)?,
        };
        Ok(self.worker.insert(worker))
    }

    /// Runs a check; a process that dies of it is that check's failure, and the next check begins with another.
    fn check(&mut self, number: usize, last: bool) -> Result<()> {
        let over = self.process().context("start the suite's process")?.check(number);
        let (notes, failure) = over.inspect_err(|_| self.worker = None)?;
        let suite = self.suite;
        self.results().notes.extend(notes.into_iter().map(|note| format!("{suite}: {note}")));
        let finished = match self.worker.take_if(|_| last) {
            Some(worker) => worker.finish().context("after its last check"),
            None => Ok(()),
        };
        match failure {
            Some(failure) => bail!(failure),
            None => finished,
        }
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is said after the results of the checks.
#[derive(Default)]
struct Results {
    notes: Vec<String>,
    failed: BTreeSet<&'static str>,
}

impl Results {
    fn print(&self) {
        let mut out = std::io::stdout();
        if !self.notes.is_empty() {
            let _ = writeln!(out, "measured:\n    {}\n", self.notes.join("\n    "));
        }
        for suite in &self.failed {
            let _ = writeln!(out, "to run it again: make integration T={suite}");
        }
    }
}

fn refuse(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {why}");
    ExitCode::FAILURE
}
