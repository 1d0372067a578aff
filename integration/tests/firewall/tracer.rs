//! Which programs a daemon runs, as the kernel sees it.

use std::path::PathBuf;
use std::process::Child;

use anyhow::Result;
use integration::topology::Node;
use integration::wait;

/// strace at a daemon; it lets go when this is dropped.
pub(super) struct Tracer {
    strace: Child,
    log: PathBuf,
}

impl Tracer {
    /// Begins to watch the daemon of a node, all its threads and whatever it starts.
    pub(super) fn attach(node: &Node) -> Result<Self> {
        let pid = node.daemon()?.pid().to_string();
        let log = node.dir().join("exec.trace");
        let strace =
            node.ns().command("strace").args(["-f", "-qq", "-e", "trace=execve,clone,fork,vfork", "-o"]);
        let strace = strace.arg(&log).args(["-p", &pid]).spawn()?;
        wait::until_true("strace is attached", || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok(status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")))
        })?;
        Ok(Self { strace, log })
    }

    /// The programs that were run so far.
    pub(super) fn programs(&self) -> Result<Vec<String>> {
        let trace = std::fs::read_to_string(&self.log)?;
        Ok(trace.lines().filter(|line| line.contains("execve(")).map(str::to_owned).collect())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
