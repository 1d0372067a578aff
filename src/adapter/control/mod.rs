//! The local socket, by which commands ask the daemon. Only root can reach it.
//!
//! Either side sends frames: four bytes of length, big-endian, then so many bytes of JSON. The client sends one frame, the
//! daemon says first who it is and then sends an answer of any number of items, until it says that this was all or why it
//! could not go on. Whoever does not want the rest hangs up, and the work for it ends. Both sides say their version first:
//! within one version of the protocol fields may be added, what else changes makes another one.

mod client;
mod server;

pub use client::{Answers, ask};
pub use server::{Out, bind, serve};

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use super::file;

/// Version of the protocol.
pub const PROTOCOL: u32 = 1;

/// Largest question, bytes.
const QUESTION_LIMIT: usize = 64 << 10;

/// Largest frame of an answer, bytes. A longer answer is sent in several.
const ANSWER_LIMIT: usize = 4 << 20;

/// Where the socket of the daemon with this subnet file lies.
pub fn path(subnet_file: &Path) -> PathBuf {
    file::directory(subnet_file).join("flanneld.sock")
}

/// Who speaks. Both sides begin with it, and no version of the protocol changes these two fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Speaker {
    protocol: u32,
    version: String,
}

impl Speaker {
    /// This program.
    fn own() -> Self {
        let [version, commit] = crate::VERSION;
        Self { protocol: PROTOCOL, version: format!("{version} ({commit})") }
    }
}

/// What a client sends: who it is, and what it wants to know.
#[derive(Debug, Serialize, Deserialize)]
struct Question<R> {
    #[serde(flatten)]
    speaker: Speaker,
    request: R,
}

/// What the daemon sends after its [`Speaker`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply<T> {
    /// A part of the answer.
    Item(T),
    /// There is no more, and why.
    Error(String),
    /// There is no more.
    End,
}

/// Cuts the stream into frames of at most `limit` bytes, and allocates no more than that whatever the other side sends.
fn codec(limit: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(limit).new_codec()
}

#[cfg(test)]
mod tests;
