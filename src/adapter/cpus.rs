//! Which CPU a thread runs on.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps the calling thread on the `nth` of the CPUs that it may use, from the first again after the last; says which
/// that is.
///
/// # Errors
/// When the kernel refuses, as it does when that CPU goes away at the same moment.
pub fn pin(nth: usize) -> Result<usize> {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).context("cannot read which CPUs may be used")?;
    let usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let cpu = usable.cycle().nth(nth).context("no CPU may be used")?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(this_thread, &only).with_context(|| format!("cannot stay on CPU {cpu}"))?;
    Ok(cpu)
}
