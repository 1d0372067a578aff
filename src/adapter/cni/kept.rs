//! What flannel's plugin keeps of each ADD for its DEL: the delegate's configuration.
//!
//! flannel's own plugin has one file for each container, named by its ID, so two attachments of one container to two
//! flannel networks overwrite each other. Here each attachment has a file, `ID@DEVICE` (no ID contains `@`), and the
//! first attachment is also linked to `ID`, where flannel's plugin looks for it after a change back.
//!
//! The file `@boot` holds the kernel's ID of the boot in which the last ADD was. Where it is of another boot, every
//! `ID@DEVICE` that lies here is of a container that ended with that boot: nobody but an ADD of ours writes such files, and
//! none does before it has looked. Files of flannel's own plugin say nothing about their boot and are left alone.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{io, read, read_if_there};
use crate::cni::flannel::Delegate;
use crate::cni::{Attachment, CniError};

/// The file with the ID of the boot. No name of an attachment begins with `@`.
const BOOT: &str = "@boot";

/// Where the kernel tells it, drawn anew at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What an earlier boot left, locked against other plugins for as long as this lives.
#[derive(Debug)]
pub struct EarlierBoot {
    /// Attachments of containers that ended with it.
    pub attachments: Vec<Attachment>,
    file: Flock<File>,
    path: PathBuf,
    id: Vec<u8>,
}

impl EarlierBoot {
    /// Has the folder belong to this boot from now on.
    ///
    /// # Errors
    /// Code 5.
    pub fn over(mut self) -> Result<(), CniError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.write_all(&self.id))
            .map_err(|error| io("cannot write", &self.path, &error))
    }
}

/// The folder of kept configurations.
#[derive(Debug)]
pub struct Kept<'a> {
    dir: &'a Path,
}

impl<'a> Kept<'a> {
    /// The folder `dir`, which need not be there yet.
    pub fn new(dir: &'a Path) -> Self {
        Self { dir }
    }

    /// Keeps the delegate of an attachment, before it is run: whatever it does can be undone.
    ///
    /// # Errors
    /// Code 5, naming the path.
    pub fn save(&self, attachment: &Attachment, delegate: &Delegate) -> Result<(), CniError> {
        self.make()?;
        let path = self.own(attachment);
        let temporary = self.dir.join(format!("{}@{}@new", attachment.container_id, attachment.ifname));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|error| io("cannot make", &temporary, &error))?;
        file.write_all(delegate.text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|error| io("cannot write", &path, &error))?;
        match fs::hard_link(&path, self.flannels(&attachment.container_id)) {
            Ok(()) => Ok(()),
            // Another attachment of the container, or this one before: the link is a courtesy to one of them.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(io("cannot link", &path, &error)),
        }
    }

    fn make(&self) -> Result<(), CniError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.dir)
            .map_err(|error| io("cannot make the folder", self.dir, &error))
    }

    /// What an earlier boot left; `None` if there was an ADD in this boot already. To be asked before anything is saved.
    ///
    /// # Errors
    /// Code 5.
    pub fn earlier_boot(&self) -> Result<Option<EarlierBoot>, CniError> {
        let id = read(Path::new(BOOT_ID))?;
        let path = self.dir.join(BOOT);
        if read_if_there(&path)?.as_ref() == Some(&id) {
            return Ok(None);
        }
        self.make()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(|error| io("cannot open", &path, &error))?;
        let file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io("cannot lock", &path, &errno.into()))?;
        // Another plugin may have been here while this one waited.
        let before = read(&path)?;
        if before == id {
            return Ok(None);
        }
        // Without an ID nobody knows of which boot the files are.
        let known = if before.is_empty() { Vec::new() } else { self.list()? };
        let ours = known.into_iter().filter(|(_, names_device)| *names_device);
        let attachments = ours.map(|(attachment, _)| attachment).collect();
        Ok(Some(EarlierBoot { attachments, file, path, id }))
    }

    /// The delegate that ADD kept for an attachment; `None` if there is none, or nothing that can be read.
    ///
    /// # Errors
    /// Code 5.
    pub fn load(&self, attachment: &Attachment) -> Result<Option<Delegate>, CniError> {
        let own = read_if_there(&self.own(attachment))?;
        let text = match own {
            Some(text) => Some(text),
            None if self.is_flannels(&attachment.container_id) => {
                read_if_there(&self.flannels(&attachment.container_id))?
            }
            None => None,
        };
        Ok(text.and_then(|text| Delegate::kept(String::from_utf8_lossy(&text).into_owned())))
    }

    /// Forgets an attachment, once its delegate has undone everything.
    ///
    /// # Errors
    /// Code 5.
    pub fn forget(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (own, flannels) = (self.own(attachment), self.flannels(&attachment.container_id));
        if same_file(&own, &flannels) || !own.exists() && self.is_flannels(&attachment.container_id) {
            remove(&flannels)?;
        }
        remove(&own)
    }

    /// Attachments that were kept here and are not in `valid`. A file of flannel's does not name its device: it counts as
    /// one of `default_ifname` if no attachment of its container is valid.
    ///
    /// # Errors
    /// Code 5.
    pub fn stale(&self, valid: &[Attachment], default_ifname: &str) -> Result<Vec<Attachment>, CniError> {
        let lives = |kept: &Attachment, names_device: bool| {
            valid.iter().any(|other| {
                other.container_id == kept.container_id && (other.ifname == kept.ifname || !names_device)
            })
        };
        let kept = self.list()?.into_iter().filter(|(kept, names_device)| !lives(kept, *names_device));
        Ok(kept
            .map(|(kept, names_device)| match names_device {
                true => kept,
                false => Attachment { ifname: default_ifname.into(), ..kept },
            })
            .collect())
    }

    /// Every attachment that was kept here, and whether its file names the device.
    fn list(&self) -> Result<Vec<(Attachment, bool)>, CniError> {
        let entries = match fs::read_dir(self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io("cannot list", self.dir, &error)),
        };
        let mut kept = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io("cannot list", self.dir, &error))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if name.ends_with("@new") {
                // A plugin was killed while it wrote.
                remove(&entry.path())?;
                continue;
            }
            match name.split_once('@') {
                Some(("", _)) => {}
                Some((id, ifname)) => {
                    kept.push((Attachment { container_id: id.into(), ifname: ifname.into() }, true));
                }
                None if self.is_flannels(&name) => {
                    kept.push((Attachment { container_id: name, ifname: String::new() }, false));
                }
                None => {}
            }
        }
        Ok(kept)
    }

    fn own(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(format!("{}@{}", attachment.container_id, attachment.ifname))
    }

    fn flannels(&self, container_id: &str) -> PathBuf {
        self.dir.join(container_id)
    }

    /// Whether the container's file was written by flannel's plugin: it is no link to a file of ours.
    fn is_flannels(&self, container_id: &str) -> bool {
        fs::metadata(self.flannels(container_id)).is_ok_and(|file| file.is_file() && file.nlink() == 1)
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    inode(a).is_some_and(|inode_of_a| inode(b) == Some(inode_of_a))
}

fn remove(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("cannot remove", path, &error)),
    }
}
