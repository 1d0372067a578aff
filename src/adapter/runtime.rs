//! The asynchronous runtime of a process.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// How long files that are being written may take once the work has ended.
const LAST_WRITES: Duration = Duration::from_millis(300);

/// Runs `work` to its end on this thread. The control plane is one thread, and one for each listener and each watch of the
/// API server: it waits most of the time, and nothing in it can race.
///
/// # Errors
/// Those of `work`, or there is no runtime to be had.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = LocalSet::new().block_on(&runtime, work);
    // A file system that hangs, which is what the runtime's own threads may wait for, does not hold up the end.
    runtime.shutdown_timeout(LAST_WRITES);
    outcome
}
