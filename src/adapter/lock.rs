//! One daemon per run directory.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::file;

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
    pub fn take(subnet_file: &Path) -> Result<Self> {
        let path = path(subnet_file);
        file::make_directory(file::directory(&path)).context("--subnet-file")?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(
                || format!("cannot open {}: choose another place with --subnet-file", path.display()),
            )?;
        let mut holder = String::new();
        let _ = file.read_to_string(&mut holder);
        let mut held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => held,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another flanneld (process {}) runs here and holds {}: stop it first, or give this one its own --subnet-file",
                holder.trim(),
                path.display()
            ),
            Err((_, errno)) => bail!("cannot lock {}: {errno}", path.display()),
        };
        held.rewind().and_then(|()| held.set_len(0)).context("cannot rewrite the lock file")?;
        writeln!(held, "{}", std::process::id()).context("cannot write the lock file")?;
        Ok(Self { _file: held })
    }
}
