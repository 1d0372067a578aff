//! Tasks and threads by name, none of which ends unnoticed.
//!
//! A task that panics takes its own work along and nothing else: without a watch over it the daemon would go on, say
//! that it is ready, and never again do what that task was there for. So each has a name, and its end, by return, error
//! or panic, is told to [`Ends`]. Only a task that the daemon drops when it stops ends without a word.
//!
//! All this rests on panics that unwind, which is what every profile in Cargo.toml has.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tracing::error;

#[cfg(feature = "fault-points")]
use super::fault;

/// How long the daemon may take to stop after a task has ended. Then it ends as it is: the kernel's state stays anyway.
const STOP: Duration = Duration::from_millis(600);

/// How a task or a thread came to its end.
#[derive(Debug)]
pub enum Cause {
    /// It returned.
    Returned,
    /// It gave up, for this reason.
    Failed(anyhow::Error),
    /// It panicked, with this message.
    Panicked(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("returned"),
            Self::Failed(error) => write!(f, "failed: {error:#}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
        }
    }
}

/// The end of a task or a thread that was there to stay.
#[derive(Debug)]
pub struct End {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub cause: Cause,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.cause)
    }
}

/// What a task or a thread returns, as the cause of its end.
pub trait Ending {
    /// The cause.
    fn cause(self) -> Cause;
}

impl Ending for Cause {
    fn cause(self) -> Cause {
        self
    }
}

impl Ending for () {
    fn cause(self) -> Cause {
        Cause::Returned
    }
}

impl Ending for Infallible {
    fn cause(self) -> Cause {
        match self {}
    }
}

impl Ending for Result<()> {
    fn cause(self) -> Cause {
        self.map_or_else(Cause::Failed, |()| Cause::Returned)
    }
}

impl Ending for io::Result<()> {
    fn cause(self) -> Cause {
        self.map_err(anyhow::Error::from).cause()
    }
}

/// Starts tasks and threads that are there to stay. Clones tell the same [`Ends`].
#[derive(Debug, Clone)]
pub struct Tasks(mpsc::UnboundedSender<End>);

/// Hears of the ends of all that [`Tasks`] started.
#[derive(Debug)]
pub struct Ends(mpsc::UnboundedReceiver<End>);

/// Starts nothing yet.
pub fn watched() -> (Tasks, Ends) {
    let (tell, ends) = mpsc::unbounded_channel();
    (Tasks(tell), Ends(ends))
}

impl Tasks {
    /// Runs `body` as a task of this thread.
    pub fn spawn<F: Future<Output: Ending> + 'static>(&self, name: &'static str, body: F) {
        let tasks = self.clone();
        spawn_local(async move { tasks.tell(name, run(name, body).await) });
    }

    /// Runs `body` on a thread of its own.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn thread<T: Ending>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        let (tasks, told) = (self.clone(), name.to_owned());
        thread(name, body, move |cause| tasks.tell(&told, cause))
    }

    fn tell(&self, name: &str, cause: Cause) {
        // A daemon that stops does not listen any more.
        let _ = self.0.send(End { name: name.to_owned(), cause });
    }
}

impl Ends {
    /// Waits for an end that nobody asked for, and says which it was. From then on the process has less than a second.
    ///
    /// # Errors
    /// Always: this is the end of the daemon.
    pub async fn unasked(&mut self) -> Result<()> {
        let Some(end) = self.0.recv().await else { return std::future::pending().await };
        give_up_later();
        Err(anyhow!(
            "{end}; it has to run as long as the daemon does, so the daemon ends, and the next start has it again"
        ))
    }
}

/// Ends the process if it does not end by itself in time.
pub fn give_up_later() {
    let late = || {
        thread::sleep(STOP);
        error!("the daemon does not stop by itself");
        process::exit(1);
    };
    if let Err(error) = thread::Builder::new().name("give-up".into()).spawn(late) {
        error!("nobody watches how long the daemon takes to stop: {error}");
    }
}

/// Runs `body` under a name, and says how it ended.
pub async fn run<F: Future<Output: Ending>>(name: &str, body: F) -> Cause {
    let body = body.map(Ending::cause);
    #[cfg(feature = "fault-points")]
    let body = fault::or(name, body);
    #[cfg(not(feature = "fault-points"))]
    let _ = name;
    AssertUnwindSafe(body).catch_unwind().await.unwrap_or_else(|panic| Cause::Panicked(message(&*panic)))
}

/// Runs `body` as a task that comes to an end. Only a panic of it is news, for the log alone.
pub fn spawn_short<F: Future<Output: Ending> + 'static>(name: &'static str, body: F) {
    spawn_local(short(name, body));
}

/// Runs `body`, which comes to an end, such as a connection. Only a panic of it is news, for the log alone.
pub async fn short<F: Future<Output: Ending>>(name: &str, body: F) {
    if let end @ Cause::Panicked(_) = run(name, body).await {
        error!("{name} {end}");
    }
}

/// Runs `body` on a thread of its own, which tells `ended` how it ended.
///
/// # Errors
/// The system has no thread to give.
pub fn thread<T: Ending>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
    ended: impl FnOnce(Cause) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let work = move || {
        let body = AssertUnwindSafe(|| body().cause());
        ended(catch_unwind(body).unwrap_or_else(|panic| Cause::Panicked(message(&*panic))));
    };
    let thread = thread::Builder::new().name(name.into()).spawn(work);
    thread.with_context(|| format!("cannot start the thread {name}"))
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    async fn panicking() {
        panic!("at {}", 7);
    }

    fn on_one_thread(body: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        LocalSet::new().block_on(&runtime, body);
    }

    #[test]
    fn each_way_to_end_is_told_by_name() {
        on_one_thread(async {
            let (tasks, mut ends) = watched();
            tasks.spawn("stays", std::future::pending::<Infallible>());
            tasks.spawn("returns", async {});
            tasks.spawn("fails", async { Err::<(), _>(anyhow!("no descriptor").context("cannot look")) });
            tasks.spawn("panics", panicking());
            for text in
                ["returns returned", "fails failed: cannot look: no descriptor", "panics panicked: at 7"]
            {
                assert_eq!(ends.0.recv().await.unwrap().to_string(), text);
            }
            assert!(ends.0.try_recv().is_err());
        });
    }

    #[test]
    fn so_are_those_of_a_thread() {
        on_one_thread(async {
            let (tasks, mut ends) = watched();
            tasks.thread("returns", || ()).unwrap().join().unwrap();
            tasks.thread("fails", || Err::<(), _>(io::Error::from_raw_os_error(9))).unwrap().join().unwrap();
            tasks.thread("panics", || -> () { panic!("{}", "here") }).unwrap().join().unwrap();
            for text in [
                "returns returned",
                "fails failed: Bad file descriptor (os error 9)",
                "panics panicked: here",
            ] {
                assert_eq!(ends.0.recv().await.unwrap().to_string(), text);
            }
        });
    }

    #[test]
    fn a_short_task_may_end_and_may_even_panic() {
        on_one_thread(async {
            short("connection", panicking()).await;
            short("connection", async {}).await;
        });
    }
}
