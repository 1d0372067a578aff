//! As much of HTTP/1.1 as an API server and its clients speak to each other.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};

/// The head of a request or an answer, as it came, and what is known of its body.
#[derive(Debug, Default)]
pub(super) struct Head {
    pub(super) bytes: Vec<u8>,
    /// The first line.
    pub(super) line: String,
    pub(super) chunked: bool,
    pub(super) length: u64,
    /// What the body is.
    pub(super) kind: String,
}

/// Reads a head; `None` at the end of the connection.
pub(super) fn read_head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut head = Head::default();
    loop {
        let start = head.bytes.len();
        if from.read_until(b'\n', &mut head.bytes)? == 0 {
            return if start == 0 { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
        let line = String::from_utf8_lossy(&head.bytes[start..]).trim().to_owned();
        if line.is_empty() {
            return Ok(Some(head));
        }
        if start == 0 {
            head.line.clone_from(&line);
        }
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.trim().parse().map_err(|_| ErrorKind::InvalidData)?,
                "content-type" => value.trim().clone_into(&mut head.kind),
                "transfer-encoding" => head.chunked = value.trim().eq_ignore_ascii_case("chunked"),
                _ => {}
            }
        }
    }
}

impl Head {
    /// The status of an answer.
    pub(super) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
    }

    /// The body that follows, without its chunks.
    pub(super) fn body<'a, R: BufRead>(&self, from: &'a mut R) -> Box<dyn BufRead + 'a> {
        if self.chunked {
            Box::new(BufReader::new(Chunks { from, left: 0, ended: false }))
        } else {
            Box::new(from.take(self.length))
        }
    }
}

/// Reads the data of a chunked body.
struct Chunks<'a, R> {
    from: &'a mut R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Read for Chunks<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.from.read_line(&mut line)?;
            if line.trim().is_empty() {
                // The end of the chunk before.
                line.clear();
                self.from.read_line(&mut line)?;
            }
            self.left = u64::from_str_radix(line.trim(), 16).map_err(|_| ErrorKind::UnexpectedEof)?;
            if self.left == 0 {
                self.ended = true;
                self.from.read_line(&mut line)?;
            }
        }
        let read = (&mut *self.from).take(self.left).read(into)?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Begins an answer whose body comes in chunks.
pub(super) fn begin_chunks(to: &mut impl Write, kind: &str) -> io::Result<()> {
    write!(to, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    to.flush()
}

/// Writes one chunk, or the end for empty `data`.
pub(super) fn write_chunk(to: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    to.write_all(&chunk)?;
    to.flush()
}

/// A whole answer.
pub(super) fn answer(
    to: &mut impl Write,
    status: u16,
    kind: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<()> {
    let length = body.len();
    write!(
        to,
        "HTTP/1.1 {status} Fault\r\nContent-Type: {kind}\r\n{headers}Content-Length: {length}\r\n\r\n"
    )?;
    to.write_all(body)?;
    to.flush()
}
