//! What the CNI plugins do to the machine. All of it blocks: a plugin is a process that does one thing and ends.

mod delegates;
mod kept;
mod links;
mod netns;
mod rules;
pub mod settings;
mod store;

pub use self::delegates::{Delegates, Found, run};
pub use self::kept::{EarlierBoot, Kept};
pub use self::links::{Link, Links, Pair};
pub use self::netns::{Netns, enter};
pub use self::rules::Rules;
pub use self::store::Store;

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use crate::cni::{CniError, Code};

/// Largest configuration, result or state file that is read, bytes.
const LIMIT: u64 = 4 << 20;

/// Reads a file of at most 4 MiB.
///
/// # Errors
/// Code 5, naming the file; code 6 for one that is too large.
pub fn read(path: &Path) -> Result<Vec<u8>, CniError> {
    let file = fs::File::open(path).map_err(|error| io("cannot open", path, &error))?;
    read_all(file).map_err(|error| io("cannot read", path, &error))
}

/// Reads a file that may be missing.
///
/// # Errors
/// As [`read`], but for a file that is not there.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, CniError> {
    match fs::File::open(path) {
        Ok(file) => read_all(file).map(Some).map_err(|error| io("cannot read", path, &error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("cannot open", path, &error)),
    }
}

/// Reads a stream to its end.
///
/// # Errors
/// It fails, or has more than 4 MiB.
pub fn read_all(stream: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(std::io::Error::new(ErrorKind::InvalidData, format!("it has more than {LIMIT} bytes")));
    }
    Ok(bytes)
}

fn io(doing: &str, path: &Path, error: &std::io::Error) -> CniError {
    let remedy = match error.kind() {
        ErrorKind::StorageFull => "; free space on that file system",
        ErrorKind::ReadOnlyFilesystem => {
            "; mount it writable, or name another folder in the network configuration"
        }
        ErrorKind::PermissionDenied => "; plugins run as root",
        _ => "",
    };
    CniError::new(Code::Io, format!("{doing} {}", path.display()), format!("{error}{remedy}"))
}
