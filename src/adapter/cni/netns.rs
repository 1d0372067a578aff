//! Network namespaces: entering one and coming back.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

use super::io;
use crate::cni::{CniError, Code};

/// `NSFS_MAGIC` of `linux/magic.h`: the file system of namespaces.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// An open network namespace.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Opens the namespace at `path`; `None` if there is none (any more).
    ///
    /// # Errors
    /// Code 5, naming the path; code 8 for a file that is no namespace.
    pub fn open(path: &Path) -> Result<Option<Self>, CniError> {
        match File::open(path) {
            Ok(file) => match fstatfs(&file) {
                Ok(system) if system.filesystem_type() == NSFS_MAGIC => Ok(Some(Self(file))),
                _ => Err(CniError::new(
                    Code::Netns,
                    format!("{} is no network namespace", path.display()),
                    "the runtime names the container's in CNI_NETNS",
                )),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("cannot open the namespace", path, &error)),
        }
    }

    /// The namespace that this thread is in.
    ///
    /// # Errors
    /// Code 5.
    pub fn current() -> Result<Self, CniError> {
        let path = Path::new("/proc/thread-self/ns/net");
        File::open(path).map(Self).map_err(|error| io("cannot open the namespace", path, &error))
    }

    /// The open file, for the kernel.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> bool {
        let inode = |file: &File| file.metadata().ok().map(|file| (file.dev(), file.ino()));
        inode(&self.0).is_some_and(|ours| inode(&other.0) == Some(ours))
    }
}

/// Runs `work` in a namespace and returns to the one before. Namespaces belong to threads, and a plugin has one.
///
/// # Errors
/// Code 8 for a file that is no network namespace. Else what `work` says.
pub fn enter<T>(netns: &Netns, work: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
    let home = Netns::current()?;
    setns(&netns.0, CloneFlags::CLONE_NEWNET).map_err(|errno| {
        CniError::new(Code::Netns, "CNI_NETNS is no network namespace that can be entered", errno.to_string())
    })?;
    let outcome = work();
    // Everything after this would happen in the wrong namespace.
    setns(&home.0, CloneFlags::CLONE_NEWNET).map_err(|errno| {
        CniError::new(Code::Internal, "cannot return to the host's namespace", errno.to_string())
    })?;
    outcome
}
