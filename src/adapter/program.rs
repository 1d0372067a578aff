//! Runs a program to its end: argument vector, standard input, and what it printed. Never a shell.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// A rule program that takes longer hangs, most likely on a lock.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where system programs are, also when PATH lacks it.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Why a program did not do its work.
#[derive(Debug)]
pub(super) struct Failure {
    /// In words; the first line that the program printed as an error, where it did.
    pub(super) cause: String,
    /// The program is not installed.
    pub(super) missing: bool,
}

/// Runs `program` with `input`; its standard output when it exits with 0.
pub(super) async fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failure> {
    let fail = |cause: String| Failure { cause, missing: false };
    let path = find(program)
        .ok_or_else(|| Failure { cause: format!("`{program}` is not installed"), missing: true })?;
    let mut child = Command::new(path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure {
            cause: format!("cannot start `{program}`: {error}"),
            missing: error.kind() == ErrorKind::NotFound,
        })?;
    let stdin = child.stdin.take();
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that stops reading says why in its exit status.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        tokio::join!(feed, child.wait_with_output()).1
    };
    let output = tokio::time::timeout(PATIENCE, work)
        .await
        .map_err(|_| fail(format!("`{program}` did not end within {} s", PATIENCE.as_secs())))?
        .map_err(|error| fail(format!("`{program}`: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    Err(fail(format!("`{program}` ended with {}: {said}", output.status)))
}

/// Where `program` is, if it is installed.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(SYSTEM_DIRS.iter().map(PathBuf::from));
    // An empty or relative entry means the working folder, in which anybody may have put anything.
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(program)).find(|path| path.is_file())
}
