//! Files that other programs read while we write them.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;

/// How the names of files begin that are not complete yet.
const TEMPORARY: &str = ".flanneld-";

/// Replaces `path` in one step, so that a reader sees the old text or the new, never a part; mode 0644 whatever
/// the umask says, the directory made with 0755 when missing.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = directory(path);
    make_directory(directory)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)
        .with_context(|| format!("cannot write in {}: is it read-only?", directory.display()))?;
    temporary.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    temporary.as_file().set_permissions(Permissions::from_mode(0o644)).context("cannot set mode 0644")?;
    // Without this a crash of the machine may leave an empty file behind the new name.
    temporary.as_file().sync_all().with_context(|| format!("cannot flush {}", path.display()))?;
    temporary.persist(path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

/// Copies a file with its mode, in one step: who has the old file at `to` open keeps it. The directory has to exist.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let directory = directory(to);
    if !directory.is_dir() {
        anyhow::bail!("there is no directory {}: mount the node's there", directory.display());
    }
    let mut source = fs::File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let mode = source.metadata().with_context(|| format!("cannot look at {}", from.display()))?.permissions();
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)
        .with_context(|| format!("cannot write in {}: is it read-only?", directory.display()))?;
    std::io::copy(&mut source, &mut temporary)
        .with_context(|| format!("cannot copy {} to {}", from.display(), directory.display()))?;
    temporary.as_file().set_permissions(mode).context("cannot set the mode")?;
    temporary.as_file().sync_all().with_context(|| format!("cannot flush {}", to.display()))?;
    temporary.persist(to).with_context(|| format!("cannot replace {}", to.display()))?;
    Ok(())
}

/// Makes the directory with mode 0755 when it is missing.
pub fn make_directory(directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make directory {}", directory.display()))?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))
        .with_context(|| format!("cannot set mode 0755 on {}", directory.display()))
}

/// The directory that holds `path`.
pub fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reads a configuration file of at most `limit` bytes. Only a regular file will do: anything else may keep us waiting.
pub fn read(path: &Path, limit: u64) -> Result<String> {
    use std::io::Read as _;
    let mut options = fs::OpenOptions::new();
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.read(true).custom_flags(flags.bits()).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let kind = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.file_type();
    if !kind.is_file() {
        let what = match kind {
            kind if kind.is_dir() => "Is a directory",
            kind if kind.is_fifo() => "it is a pipe (FIFO)",
            _ => "it is a device",
        };
        anyhow::bail!("cannot read {}: {what}; name a regular file", path.display());
    }
    let mut text = String::new();
    file.take(limit + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > limit {
        anyhow::bail!("{} is larger than {limit} bytes: is it the right file?", path.display());
    }
    Ok(text)
}

/// Whether an error says nothing about the file, only that this process or the machine has run out of something.
pub fn is_exhaustion(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    errno
        .map(Errno::from_raw)
        .is_some_and(|errno| matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}

/// Removes what a process that was killed while it wrote has left in `directory`. Nobody else may be writing there.
pub fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let left = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY));
    for entry in left.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
        if let Err(error) = remove(&entry.path()) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Removes a file; whether there was one.
pub fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file, link) = (dir.path().join("pipe"), dir.path().join("file"), dir.path().join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        assert_eq!(read(&file, 10).unwrap(), "text");
        for (path, part) in [(&pipe, "FIFO"), (&link, "FIFO"), (&dir.path().to_owned(), "Is a directory")] {
            assert!(read(path, 10).unwrap_err().to_string().contains(part));
        }
        assert!(read(Path::new("/dev/zero"), 10).unwrap_err().to_string().contains("device"));
    }

    #[test]
    fn what_a_killed_writer_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".flanneld-abc", "subnet.env"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        sweep(dir.path());
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["subnet.env"]);
    }
}
