//! Waiting for a state instead of sleeping, and remembering how long it took.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Long enough for the slowest shared machine; reaching it always means a defect.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Polls `look` until it returns something, and says how long that took.
///
/// # Errors
/// After [`DEADLINE`], naming `what` and the last error `look` gave.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<(T, Duration)> {
    until_within(DEADLINE, what, look)
}

/// [`until`] with a deadline of its own.
///
/// # Errors
/// After `limit`, naming `what` and the last error `look` gave.
pub fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let last = look();
        let took = start.elapsed();
        match last {
            Ok(Some(found)) => return Ok((found, took)),
            Ok(None) if took > limit => bail!("{what}: not within {limit:?}"),
            Err(error) if took > limit => {
                return Err(error)
                    .with_context(|| format!("{what}: not within {limit:?}; the last look failed"));
            }
            Ok(None) | Err(_) => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// [`until`] for a plain condition.
///
/// # Errors
/// After [`DEADLINE`], naming `what`.
pub fn until_true(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<Duration> {
    until(what, || Ok(look()?.then_some(()))).map(|((), took)| took)
}

/// A time for people: `1.24 s`, `38 ms`, `2.5 ms`, `61 µs`.
pub fn human(took: Duration) -> String {
    match took.as_secs_f64() {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}
