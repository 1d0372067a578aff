//! Other plugins: where they lie, and how they are run.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::cni::{CniError, Code, Request};

/// The plugins in the folders of `CNI_PATH`.
#[derive(Debug)]
pub struct Delegates<'a> {
    path: &'a [PathBuf],
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A program of somebody else.
    Program(PathBuf),
    /// This program under another name.
    Ourselves,
    /// No file of that name.
    Nothing,
}

/// An error as a plugin prints it.
#[derive(Deserialize)]
struct Printed {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl<'a> Delegates<'a> {
    /// Plugins in these folders.
    pub fn new(path: &'a [PathBuf]) -> Self {
        Self { path }
    }

    /// Looks for a plugin, folder by folder.
    ///
    /// # Errors
    /// Code 7 for a name that is none: one with a `/` would leave the folders.
    pub fn find(&self, name: &str) -> Result<Found, CniError> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(CniError::new(
                Code::NetworkConfig,
                format!("{name:?} is no name of a plugin"),
                "write its file name",
            ));
        }
        // An empty or relative entry of a search path means the working directory, which is anybody's.
        let file = self
            .path
            .iter()
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(name))
            .find(|path| path.is_file());
        Ok(match file {
            None => Found::Nothing,
            Some(path) if is_this_program(&path) => Found::Ourselves,
            Some(path) => Found::Program(path),
        })
    }
}

fn is_this_program(path: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    inode(Path::new("/proc/self/exe")).is_some_and(|ours| inode(path) == Some(ours))
}

/// Runs another plugin for `verb` with the request's own environment, and returns what it printed.
///
/// # Errors
/// Its own error, with its code; code 5 if it cannot be run; code 999 if it fails and does not say why.
pub fn run(program: &Path, verb: &str, request: &Request, input: &[u8]) -> Result<Vec<u8>, CniError> {
    let failed = |doing: &str, error: &io::Error| {
        CniError::new(Code::Io, format!("{doing} the plugin {}", program.display()), error.to_string())
    };
    // The rest of the environment is the runtime's, which is what the delegate has to see.
    let mut command = Command::new(program);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &request.container_id)
        .env("CNI_IFNAME", &request.ifname)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    // What GC undoes was attached to namespaces that are gone, whichever the runtime names.
    match &request.netns {
        Some(netns) => command.env("CNI_NETNS", netns),
        None => command.env_remove("CNI_NETNS"),
    };
    let mut child = command.spawn().map_err(|error| failed("cannot start", &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that stops reading says why in its answer.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(|error| failed("cannot wait for", &error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    Err(match serde_json::from_slice::<Printed>(&output.stdout) {
        Ok(printed) => {
            let details = if printed.details.is_empty() {
                printed.msg.clone()
            } else {
                format!("{}: {}", printed.msg, printed.details)
            };
            CniError::new(
                code(printed.code),
                format!("plugin {name} failed ({verb}, code {})", printed.code),
                details,
            )
        }
        Err(_) => CniError::new(
            Code::Internal,
            format!("plugin {name} failed ({verb})"),
            format!("it ended with {} and printed no error", output.status),
        ),
    })
}

/// The code of another plugin's error, where it is one of the specification's.
fn code(number: u32) -> Code {
    [
        Code::IncompatibleVersion,
        Code::UnsupportedField,
        Code::UnknownContainer,
        Code::Environment,
        Code::Io,
        Code::Decode,
        Code::NetworkConfig,
        Code::Netns,
        Code::TryLater,
        Code::NotAvailable,
        Code::LimitedConnectivity,
    ]
    .into_iter()
    .find(|code| *code as u32 == number)
    .unwrap_or(Code::Internal)
}
