//! Fault points: where a test makes a task or a thread of a real `flanneld` end, to see what the daemon makes of it.
//!
//! `$LODEN_FAULT_FILE` names a file that does not exist at first. A test puts one line into place there, `NAME return`,
//! `NAME error` or `NAME panic`; the task or thread of that name removes the file and ends that way. Only builds with
//! the feature `fault-points` look for it, and a build without debug assertions refuses that feature.

#![expect(clippy::panic, reason = "to panic is what some of these points are for; nothing of this ships")]

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::{Either, select};

use super::tasks::Cause;
use crate::ports::Wake;

#[cfg(not(debug_assertions))]
compile_error!("the feature `fault-points` is for tests: build a release without it");

/// How often the file is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// How something is to end.
enum Kind {
    Return,
    Error,
    Panic,
}

/// The file, where this process was given one.
fn file() -> Option<&'static PathBuf> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    FILE.get_or_init(|| std::env::var_os("LODEN_FAULT_FILE").map(PathBuf::from)).as_ref()
}

/// How `name` is to end now, if it is.
fn due(name: &str) -> Option<Kind> {
    let file = file()?;
    let text = std::fs::read_to_string(file).ok()?;
    let (asked, kind) = text.trim().split_once(' ')?;
    let kind = match kind {
        "return" => Kind::Return,
        "error" => Kind::Error,
        "panic" => Kind::Panic,
        _ => return None,
    };
    // Of several threads with one name, the one that removes it ends.
    (asked == name && std::fs::remove_file(file).is_ok()).then_some(kind)
}

fn error() -> io::Error {
    io::Error::other("a fault that a test asked for")
}

/// `body`, unless it is to end otherwise before.
pub(super) async fn or(name: &str, body: impl Future<Output = Cause>) -> Cause {
    if file().is_none() {
        return body.await;
    }
    let asked = async {
        loop {
            if let Some(kind) = due(name) {
                return kind;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match select(pin!(asked), pin!(body)).await {
        Either::Left((Kind::Return, _)) => Cause::Returned,
        Either::Left((Kind::Error, _)) => Cause::Failed(anyhow!(error())),
        Either::Left((Kind::Panic, _)) => panic!("a panic that a test asked for"),
        Either::Right((cause, _)) => cause,
    }
}

/// How a packet thread that waits is to end: by a word that its loop takes for the end, or by an error; or it panics.
pub(super) fn in_packet_thread() -> Option<io::Result<Wake>> {
    Some(match due(std::thread::current().name()?)? {
        Kind::Return => Ok(Wake::Stop),
        Kind::Error => Err(error()),
        Kind::Panic => panic!("a panic that a test asked for"),
    })
}

/// Whether packet threads have to wake up now and then to look at their point.
pub(super) fn armed() -> bool {
    file().is_some()
}

/// How long a packet thread waits before it looks, milliseconds.
pub(super) const PATIENCE: u8 = 20;
