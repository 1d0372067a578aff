//! `host-local`'s reservations: one file for each address, as the reference plugin keeps them.
//!
//! The file's name is the address; its text is the container's ID and the device, with CR LF between. Beside them lie
//! `last_reserved_ip.N`, the address that range set N gave last, and the file `lock`, whose `flock` makes every change
//! of the folder one step.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{io, read, read_if_there};
use crate::cni::{Attachment, CniError, Code};

const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// The reservations of one network, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the folder of `network` below `data_dir`, makes it where it is missing, and waits for its lock.
    ///
    /// # Errors
    /// Code 5, naming the path.
    pub fn open(data_dir: &str, network: &str) -> Result<Self, CniError> {
        let dir = Path::new(data_dir).join(network);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .map_err(|error| io("cannot make the folder", &dir, &error))?;
        let path = dir.join(LOCK);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io("cannot open", &path, &error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io("cannot lock", &path, &errno.into()))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Reserves `ip` for an attachment and remembers it as the last of range set `set`; `false` if somebody has it.
    ///
    /// # Errors
    /// Code 5; the address is free again then.
    pub fn reserve(&self, attachment: &Attachment, ip: IpAddr, set: usize) -> Result<bool, CniError> {
        let path = self.dir.join(ip.to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(io("cannot make", &path, &error)),
        };
        let last = self.dir.join(format!("{LAST}{set}"));
        let written = file
            .write_all(owner(attachment).as_bytes())
            .map_err(|error| io("cannot write", &path, &error))
            .and_then(|()| {
                fs::write(&last, ip.to_string()).map_err(|error| io("cannot write", &last, &error))
            });
        if let Err(error) = written {
            // Best effort: the first failure is the one to tell of.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(true)
    }

    /// The address that range set `set` gave last.
    ///
    /// # Errors
    /// Code 5. A text that is no address counts as none.
    pub fn last(&self, set: usize) -> Result<Option<IpAddr>, CniError> {
        let text = read_if_there(&self.dir.join(format!("{LAST}{set}")))?;
        Ok(text.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok()))
    }

    /// Addresses of an attachment, also those that were reserved when only the container's ID was written.
    ///
    /// # Errors
    /// Code 5.
    pub fn addresses(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
        let (whole, id) = (owner(attachment), attachment.container_id.trim());
        let mine = self.reservations()?.into_iter().filter(|(_, owner)| *owner == whole || owner == id);
        Ok(mine.filter_map(|(name, _)| name.parse().ok()).collect())
    }

    /// Frees the addresses of an attachment. Nothing to free is fine.
    ///
    /// # Errors
    /// Code 5, after everything else was freed.
    pub fn release(&self, attachment: &Attachment) -> Result<(), CniError> {
        let reservations = self.reservations()?;
        let whole = owner(attachment);
        let id = attachment.container_id.trim();
        // Files that hold only the ID are of an earlier version and count only where none names the device.
        let key = if reservations.iter().any(|(_, owner)| *owner == whole) { whole.as_str() } else { id };
        self.remove(reservations.iter().filter(|(_, owner)| owner == key).map(|(name, _)| name.as_str()))
    }

    /// Frees every address whose attachment is not in `valid`, and those that a killed plugin left half written.
    ///
    /// # Errors
    /// Code 5, after everything else was freed.
    pub fn collect(&self, valid: &[Attachment]) -> Result<(), CniError> {
        let lives = |text: &str| {
            valid.iter().any(|attachment| owner(attachment) == text || attachment.container_id.trim() == text)
        };
        let reservations = self.reservations()?;
        self.remove(reservations.iter().filter(|(_, owner)| !lives(owner)).map(|(name, _)| name.as_str()))
    }

    fn remove<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), CniError> {
        let mut failed = None;
        for name in names {
            let path = self.dir.join(name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => failed = Some(io("cannot remove", &path, &error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Name and owner of every reservation.
    fn reservations(&self) -> Result<Vec<(String, String)>, CniError> {
        let entries = fs::read_dir(&self.dir).map_err(|error| io("cannot list", &self.dir, &error))?;
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io("cannot list", &self.dir, &error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Only addresses are reservations: whatever else lies here belongs to somebody else.
            if name.parse::<IpAddr>().is_err() {
                continue;
            }
            match read(&entry.path()) {
                Ok(text) => found.push((name, String::from_utf8_lossy(&text).trim().to_owned())),
                // A file that cannot be read is reserved for somebody, whoever it is.
                Err(error) if error.code == Code::Io => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// What the file of a reservation says.
fn owner(attachment: &Attachment) -> String {
    format!("{}\r\n{}", attachment.container_id.trim(), attachment.ifname)
}
