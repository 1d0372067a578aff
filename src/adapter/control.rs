//! The local socket: one JSON request per line, one JSON answer per line. Only root can reach it.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::{file, tasks};

/// Requests are short; more than this is a mistake.
const REQUEST_LIMIT: u64 = 64 << 10;

/// A client that neither asks nor hangs up is cut off after this.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What can be asked over the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// The live map.
    Routes,
    /// What the kernel should hold beside what it holds.
    Verify {
        /// Whether the daemon is to put right what differs, before it says what is left.
        #[serde(default)]
        repair: bool,
    },
    /// Another log filter.
    LogLevel {
        /// A `tracing` filter.
        filter: String,
    },
}

/// The answer: a value, or an error in words.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What was asked for.
    Ok(serde_json::Value),
    /// Why not.
    Error(String),
}

/// Where the socket of the daemon with this subnet file lies.
pub fn path(subnet_file: &Path) -> PathBuf {
    file::directory(subnet_file).join("flanneld.sock")
}

/// Binds the socket. Whoever holds the run lock may replace a socket that a killed daemon left behind.
pub fn bind(path: &Path) -> Result<UnixListener> {
    file::remove(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot make socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot restrict {}", path.display()))?;
    Ok(listener)
}

/// Serves until the task is dropped.
pub async fn serve<F, Answer>(listener: UnixListener, answer: F) -> Infallible
where
    F: Fn(Request) -> Answer + 'static,
    Answer: Future<Output = Result<serde_json::Value>> + 'static,
{
    let answer = Rc::new(answer);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        tasks::spawn_short("local-connection", async move {
            // A client that breaks off is its own business.
            let _ = tokio::time::timeout(CLIENT_TIMEOUT, converse(stream, &*answer)).await;
        });
    }
}

async fn converse<Answer>(
    mut stream: tokio::net::UnixStream,
    answer: &dyn Fn(Request) -> Answer,
) -> Result<()>
where
    Answer: Future<Output = Result<serde_json::Value>>,
{
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(reader.take(REQUEST_LIMIT)).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            answer(request).await.map_or_else(|error| Reply::Error(format!("{error:#}")), Reply::Ok)
        }
        Err(error) => Reply::Error(format!("not a request that this version knows: {error}")),
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    Ok(())
}

/// Asks the daemon whose run files lie beside `subnet_file`.
pub fn ask(subnet_file: &Path, request: &Request) -> Result<serde_json::Value> {
    let path = path(subnet_file);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => bail!(
            "no flanneld runs here (nobody listens on {}): start it, or name its --subnet-file",
            path.display()
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{} is for root only: use sudo", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot connect to {}", path.display())),
    };
    stream.set_read_timeout(Some(CLIENT_TIMEOUT)).context("cannot set a time limit")?;
    let mut text = serde_json::to_string(request).context("cannot write the request")?;
    text.push('\n');
    stream.write_all(text.as_bytes()).context("the daemon hung up")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the daemon did not answer within ten seconds")?;
    match serde_json::from_str(&line)
        .context("the daemon's answer is not understood; is it another version?")?
    {
        Reply::Ok(value) => Ok(value),
        Reply::Error(text) => bail!(text),
    }
}
