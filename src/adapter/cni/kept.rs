//! What flannel's plugin keeps of each ADD for its DEL: the delegate's configuration.
//!
//! flannel's own plugin has one file for each container, named by its ID, so two attachments of one container to two
//! flannel networks overwrite each other. Here each attachment has a file, `ID@DEVICE` (no ID contains `@`), and the
//! first attachment is also linked to `ID`, where flannel's plugin looks for it after a change back.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{io, read_if_there};
use crate::cni::flannel::Delegate;
use crate::cni::{Attachment, CniError};

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
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(self.dir)
            .map_err(|error| io("cannot make the folder", self.dir, &error))?;
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
        let entries = match fs::read_dir(self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io("cannot list", self.dir, &error)),
        };
        let mut stale = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io("cannot list", self.dir, &error))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if name.ends_with("@new") {
                // A plugin was killed while it wrote.
                remove(&entry.path())?;
                continue;
            }
            let (attachment, names_device) = match name.split_once('@') {
                Some((id, ifname)) => (Attachment { container_id: id.into(), ifname: ifname.into() }, true),
                None if self.is_flannels(&name) => {
                    (Attachment { container_id: name, ifname: default_ifname.into() }, false)
                }
                None => continue,
            };
            let lives = valid.iter().any(|other| {
                other.container_id == attachment.container_id
                    && (other.ifname == attachment.ifname || !names_device)
            });
            if !lives {
                stale.push(attachment);
            }
        }
        Ok(stale)
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
