//! One daemon per run directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::file;

/// For how long a lock is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held for as long as the daemon runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: Flock<File>,
}

/// Where the lock of the daemon with this subnet file lies.
pub fn path(subnet_file: &Path) -> PathBuf {
    file::directory(subnet_file).join("flanneld.lock")
}

impl RunLock {
    /// Takes the lock, or says who has it.
    #[expect(clippy::disallowed_methods, reason = "a lock is waited for before anything else runs")]
    pub fn take(subnet_file: &Path) -> Result<Self> {
        let path = path(subnet_file);
        file::make_directory(file::directory(&path)).context("--subnet-file")?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(
                || format!("cannot open {}: choose another place with --subnet-file", path.display()),
            )?;
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let begun = Instant::now();
        let mut held = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => break held,
                // One that was killed a moment ago lets go when the kernel has taken it apart.
                Err((back, Errno::EWOULDBLOCK)) if begun.elapsed() < PATIENCE => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, Errno::EWOULDBLOCK)) => bail!(
                    "another flanneld (process {}) runs here and holds {}: stop it first, or give this one its own --subnet-file",
                    holder.trim(),
                    path.display()
                ),
                Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
            }
        };
        let cannot = || format!("cannot write {}: is its file system full?", path.display());
        held.rewind().and_then(|()| held.set_len(0)).with_context(cannot)?;
        writeln!(held, "{}", std::process::id()).with_context(cannot)?;
        Ok(Self { _file: held })
    }
}
