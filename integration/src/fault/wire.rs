//! Kubernetes' protobuf, as far as the proxy looks into what passes and forges some of it.
//!
//! A message is a row of fields, each a number and a content; a watch is a row of frames, each an event after its length.
//! Numbers of fields are written where they are used, with the message that they belong to.

use std::io::{self, BufRead, ErrorKind};

/// The type of answers to lists, and how that of a watch begins.
pub(super) const TYPE: &str = "application/vnd.kubernetes.protobuf";

/// First bytes of an object that is not part of another.
const MAGIC: &[u8] = b"k8s\0";

/// Reads a frame of a watch, its length included; `None` at the end.
pub(super) fn read_frame(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    if from.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(Some(frame))
}

/// What an event of a watch says.
pub(super) struct Event<'a> {
    pub(super) bookmark: bool,
    /// The object in its envelope.
    pub(super) object: &'a [u8],
}

impl<'a> Event<'a> {
    pub(super) fn of(frame: &'a [u8]) -> io::Result<Self> {
        let event = frame.get(4..).unwrap_or_default();
        // `WatchEvent`: type, object; `RawExtension`: raw.
        let (kind, object) = (field(event, 1), field(event, 2).and_then(|object| field(object, 1)));
        let (kind, object) = kind.zip(object).ok_or(ErrorKind::InvalidData)?;
        Ok(Self { bookmark: kind == b"BOOKMARK", object })
    }

    pub(super) fn version(&self) -> String {
        // Any object: metadata; `ObjectMeta`: resourceVersion.
        let version =
            unsealed(self.object).and_then(|object| field(object, 1)).and_then(|meta| field(meta, 6));
        String::from_utf8_lossy(version.unwrap_or_default()).into_owned()
    }
}

/// An event as it is sent.
pub(super) fn event(kind: &str, object: &[u8]) -> Vec<u8> {
    let event = message(&[(1, kind.as_bytes()), (2, &message(&[(1, object)]))]);
    let length = u32::try_from(event.len()).unwrap_or_default();
    [&length.to_be_bytes()[..], &event].concat()
}

/// A bookmark at this version; `end` marks the end of the initial part of a streaming list.
pub(super) fn bookmark(version: &str, end: bool) -> Vec<u8> {
    let annotation = message(&[(1, b"k8s.io/initial-events-end"), (2, b"true")]);
    let mut metadata = message(&[(6, version.as_bytes())]);
    if end {
        metadata.extend(message(&[(12, &annotation)]));
    }
    event("BOOKMARK", &sealed("Node", &message(&[(1, &metadata)])))
}

/// An error within a watch.
pub(super) fn error(code: u16, reason: &str) -> Vec<u8> {
    // `Status`: status, message, reason, code.
    let mut status = message(&[(2, b"Failure"), (3, b"a fault on purpose"), (4, reason.as_bytes())]);
    status.push(6 << 3);
    put_number(&mut status, code.into());
    event("ERROR", &sealed("Status", &status))
}

/// A list of objects that are in their envelopes.
pub(super) fn list(version: &str, objects: &[Vec<u8>]) -> Vec<u8> {
    // `NodeList`: metadata, items; `ListMeta`: resourceVersion.
    let mut list = message(&[(1, &message(&[(2, version.as_bytes())]))]);
    for object in objects {
        list.extend(message(&[(2, unsealed(object).unwrap_or_default())]));
    }
    sealed("NodeList", &list)
}

fn sealed(kind: &str, object: &[u8]) -> Vec<u8> {
    // `Unknown`: typeMeta, raw; `TypeMeta`: apiVersion, kind.
    let meta = message(&[(1, b"v1"), (2, kind.as_bytes())]);
    [MAGIC, &message(&[(1, &meta), (2, object)])].concat()
}

fn unsealed(envelope: &[u8]) -> Option<&[u8]> {
    field(envelope.strip_prefix(MAGIC)?, 2)
}

fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, content) in fields {
        put_number(&mut message, number << 3 | 2);
        put_number(&mut message, content.len() as u64);
        message.extend_from_slice(content);
    }
    message
}

fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn number(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The content of the first field of this number that has a length.
fn field(mut message: &[u8], wanted: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let key = number(&mut message)?;
        let skip = match key & 7 {
            0 => {
                number(&mut message)?;
                0
            }
            1 => 8,
            2 => usize::try_from(number(&mut message)?).ok()?,
            _ => 4,
        };
        let (content, rest) = message.split_at_checked(skip)?;
        if key == wanted << 3 | 2 {
            return Some(content);
        }
        message = rest;
    }
    None
}
