//! The side of the commands: blocking, without a runtime.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio_util::codec::{Decoder as _, Encoder as _, LengthDelimitedCodec};

use super::{ANSWER_LIMIT, PROTOCOL, QUESTION_LIMIT, Question, Reply, Speaker, codec};
use crate::view::Request;

/// How much is read at once, bytes.
const CHUNK: usize = 64 << 10;

/// The daemon's answer, item by item as it comes. Dropping it hangs up.
#[derive(Debug)]
pub struct Answers {
    stream: UnixStream,
    path: PathBuf,
    patience: Duration,
    codec: LengthDelimitedCodec,
    unread: BytesMut,
    ended: bool,
}

/// Asks the daemon that listens on `path`. It may be silent for `patience` at a time.
///
/// # Errors
/// Nobody listens there, this user may not ask, or the daemon is of another version; each with its remedy.
pub fn ask(path: &Path, patience: Duration, request: &Request) -> Result<Answers> {
    let stream = connect(path, patience)?;
    let codec = codec(ANSWER_LIMIT);
    let mut answers =
        Answers { stream, path: path.to_owned(), patience, codec, unread: BytesMut::new(), ended: false };
    let question = Question { speaker: Speaker::own(), request };
    let text = serde_json::to_vec(&question).context("cannot write the request")?;
    let mut frame = BytesMut::new();
    super::codec(QUESTION_LIMIT)
        .encode(&text[..], &mut frame)
        .context("the request is too long: shorten what was given on the command line")?;
    // A daemon that is told too much answers before it has read everything, so what it says comes first.
    let sent = answers.stream.write_all(&frame);
    answers.check_speaker()?;
    sent.with_context(|| format!("cannot write to {}", path.display()))?;
    Ok(answers)
}

fn connect(path: &Path, patience: Duration) -> Result<UnixStream> {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_read_timeout(Some(patience))?;
        // It limits the wait for a place in the queue of a daemon that accepts nobody, too.
        socket.set_write_timeout(Some(patience))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(UnixStream::from(socket))
    };
    connect().map_err(|error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "no flanneld runs here (nobody listens on {}): start it, or name its --subnet-file",
            path.display()
        ),
        ErrorKind::PermissionDenied => anyhow!("{} is for root only: use sudo", path.display()),
        ErrorKind::WouldBlock => silent(path, patience, "accepts nobody"),
        _ => anyhow!(error).context(format!("cannot connect to {}", path.display())),
    })
}

fn silent(path: &Path, patience: Duration, what: &str) -> anyhow::Error {
    anyhow!(
        "the daemon at {} {what} for {} s: it hangs or is stopped; `kill -ABRT` it and restart it, or wait longer with --timeout",
        path.display(),
        patience.as_secs_f32()
    )
}

impl Answers {
    /// The next item; nothing after the last.
    ///
    /// # Errors
    /// The daemon says why it cannot answer, or it is silent, or it went away.
    pub fn item(&mut self) -> Result<Option<Value>> {
        if self.ended {
            return Ok(None);
        }
        let frame = self.frame("has been silent")?;
        let reply = serde_json::from_slice(&frame).context("the daemon's answer is not understood")?;
        self.ended = !matches!(reply, Reply::Item(_));
        match reply {
            Reply::Item(item) => Ok(Some(item)),
            Reply::End => Ok(None),
            Reply::Error(text) => bail!(text),
        }
    }

    /// The whole answer as one value: a long one comes in parts, whose lists continue those of the first.
    ///
    /// # Errors
    /// As [`Answers::item`].
    pub fn whole(mut self) -> Result<Value> {
        let mut whole = Value::Null;
        while let Some(part) = self.item()? {
            append(&mut whole, part);
        }
        Ok(whole)
    }

    fn check_speaker(&mut self) -> Result<()> {
        let frame = self.frame("has not said who it is")?;
        let daemon: Speaker = serde_json::from_slice(&frame).with_context(|| not_ours(&self.path))?;
        if daemon.protocol != PROTOCOL {
            let own = Speaker::own();
            bail!(
                "this flanneld is {} and speaks version {PROTOCOL} of the local socket, the daemon is {} and speaks version {}: \
                 use the daemon's own flanneld, or restart the daemon with this one",
                own.version,
                daemon.version,
                daemon.protocol
            );
        }
        Ok(())
    }

    fn frame(&mut self, silence: &str) -> Result<BytesMut> {
        loop {
            let frame = self.codec.decode(&mut self.unread);
            if let Some(frame) = frame.with_context(|| not_ours(&self.path))? {
                return Ok(frame);
            }
            let have = self.unread.len();
            self.unread.resize(have + CHUNK, 0);
            let read = self.stream.read(&mut self.unread[have..]);
            self.unread.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => bail!(
                    "the daemon at {} hung up: it ended, or it has too many clients; ask again",
                    self.path.display()
                ),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(silent(&self.path, self.patience, silence));
                }
                Err(error) => return Err(error).context("the daemon hung up"),
            }
        }
    }
}

fn not_ours(path: &Path) -> String {
    let own = Speaker::own();
    format!(
        "what listens on {} does not speak as this flanneld does ({}, version {PROTOCOL} of the local socket): \
         restart the daemon with this flanneld",
        path.display(),
        own.version
    )
}

/// Lists of `part` continue those of `whole`; of everything else the first that came stays.
fn append(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (name, value) in part {
                match (whole.get_mut(&name), value) {
                    (Some(Value::Array(list)), Value::Array(more)) => list.extend(more),
                    (Some(_), _) => {}
                    (None, value) => {
                        whole.insert(name, value);
                    }
                }
            }
        }
        (whole @ Value::Null, part) => *whole = part,
        _ => {}
    }
}
