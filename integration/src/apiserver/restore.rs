//! A backup of etcd, and its restore: the cluster forgets what happened in between.

use std::path::Path;
use std::process::Command;
use std::sync::PoisonError;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::ApiServer;
use super::launch::{ETCD_SOCKET, start_etcd};

impl ApiServer {
    /// Does `work`, and then puts etcd's data from before in place of what has come of it. Both programs start again.
    ///
    /// # Errors
    /// When `work` fails, or the data cannot be copied, or a program does not start from them.
    pub fn undo<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (data, backup) = (self.dir().join("etcd"), self.dir().join("etcd.backup"));
        let mut etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
        let running = etcd.as_ref().context("etcd is not running")?;
        // While it stands still its files are as after a crash, and from such it can start.
        running.signal(Signal::SIGSTOP)?;
        let copied = copy(&data, &backup);
        running.signal(Signal::SIGCONT)?;
        copied?;
        let done = work()?;
        self.kill();
        *etcd = None;
        std::fs::remove_dir_all(&data).context("remove what happened")?;
        std::fs::rename(&backup, &data).context("restore the backup")?;
        // Its presence says that etcd listens.
        let _ = std::fs::remove_file(self.dir().join(ETCD_SOCKET));
        let netns = self.options.netns.clone();
        *etcd = Some(start_etcd(self.options.etcd, &self.assets, self.dir(), netns)?);
        drop(etcd);
        self.restart()?;
        Ok(done)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cannot run cp")?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}
